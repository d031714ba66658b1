"""The one face of every place that models come from: what files are there, and bring me this one.

Lives here: the port and the way from a reference to its origin. What an origin brings has been checked against
the hash that its place names; the store gives it a CID. Knows no store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from inference.models.progress import OnProgress
from inference.models.references import HubReference, LocalReference, NameReference, Reference, WebReference
from inference.models.web_client import Web
from market.errors import RequestInvalid
from market.ports import ContentSource
from market.values import value

HUB = "https://huggingface.co"

Token = Callable[[], str | None]
"""Asked each time, so that a secret lies in one place only."""


@value
class OriginFile:
    """`name` is a safe relative path. `size_bytes` and `sha256` (hex) are None where the place does not tell."""

    name: str
    size_bytes: int | None = None
    sha256: str | None = None


class Origin(Protocol):
    """A place with the files of one model."""

    @property
    def reference(self) -> str:
        """Canonical, without secrets; as exact as is known: `files` pins a commit, `bring` the hash of a wheel."""

    async def files(self) -> Sequence[OriginFile]:
        """What belongs to the model. Raises ContentUnavailable, RequestInvalid (there is no such thing, or a choice
        between several)."""

    async def bring(self, file: OriginFile, folder: Path, progress: OnProgress) -> Path:
        """One of `files`, whole and checked, as a path; `folder` keeps what a later call goes on from.

        The path lies in `folder`, and the caller removes or moves it; only a local origin gives its own file, which
        must stay. Raises ContentUnavailable, BlockInvalid (other bytes than promised), DiskFull, RequestInvalid.
        """


def no_token() -> str | None:
    return None


def open_origin(reference: Reference, *, web: Web, endpoint: str = HUB, token: Token = no_token) -> Origin:
    """The origin that a reference names; asks nobody yet. `endpoint` and `token` are for Hugging Face alone.

    Raises RequestInvalid for a name or a CID, which are not places, and for an endpoint that is no https URL.
    """
    if isinstance(reference, HubReference):
        from inference.models.hub import HubOrigin

        return HubOrigin(reference, web=web, endpoint=endpoint, token=token)
    if isinstance(reference, WebReference):
        from inference.models.web import WebOrigin

        return WebOrigin(reference, web=web)
    if isinstance(reference, LocalReference):
        from inference.models.local import LocalOrigin

        return LocalOrigin(reference)
    if isinstance(reference, NameReference):
        raise RequestInvalid(f"{reference.text} is a name or a CID, not a place that files come from.")
    from inference.models.wheel import WheelOrigin

    return WheelOrigin(reference)


def range_source(
    reference: Reference, name: str, root: str, *, web: Web, endpoint: str = HUB, token: Token = no_token
) -> ContentSource | None:
    """The place that a manifest names as its source, as one more source of ranges of the file `name` (as its
    OriginFile said) with CID `root`.

    None if it has no ranges to give: a wheel is packed, a path was another machine's. A manifest is a stranger's
    word, so that only public addresses are asked, apart from the endpoint that the owner of this node has set.
    """
    if isinstance(reference, HubReference):
        from inference.models.hub import HubSource

        return HubSource(reference, name, root, web=web, endpoint=endpoint, token=token)
    if isinstance(reference, WebReference):
        from inference.models.web import WebSource

        return WebSource(reference, root, web=web, strangers_word=True)
    return None
