"""Hugging Face as an origin, and as one more source of ranges: `hf:OWNER/REPO[@REV][/PATH]`.

Lives here: what the Hub's answers mean. Its hash of a file (sha256 of LFS files, a git blob hash of small ones) is
checked; a branch or tag becomes the commit that it was; the token goes to the endpoint and nowhere else. Asked
directly rather than through huggingface_hub: that library looks up who calls it (a request to the Hub and a file in
the user's cache), reads tokens and proxies from the environment, follows redirects anywhere, and reads answers of
any length (docs of huggingface_hub 2.4, read in its source). Tests hold both against the same mock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from pydantic import AliasPath, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from inference.models.choice import model_files
from inference.models.download import download_file
from inference.models.download_part import Expected
from inference.models.origins import HUB, OriginFile, Token, no_token
from inference.models.progress import OnProgress
from inference.models.references import HubReference, is_safe_path
from inference.models.remote import Patience, RemoteFile, RemoteSource
from inference.models.web_client import HttpRefused, OnHop, Web
from market.errors import BlockInvalid, ContentUnavailable, RequestInvalid

_LISTING_LIMIT_BYTES = 32 * 1024 * 1024
"""About 100,000 files; a model has tens."""
_TOKEN = re.compile(r"[\x21-\x7e]{1,512}")
_COMMIT = "^[0-9a-f]{40}$"
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')


@checked(frozen=True)
class _Listed:
    """A file as the Hub lists it; fields that we do not know are left alone."""

    name: Annotated[str, Field(alias="rfilename", max_length=1024)]
    size_bytes: Annotated[int | None, Field(alias="size", ge=0, lt=2**53)] = None
    git_sha1: Annotated[str | None, Field(alias="blobId", pattern=_COMMIT)] = None
    sha256: Annotated[str | None, Field(validation_alias=AliasPath("lfs", "sha256"), pattern="^[0-9a-f]{64}$")] = None


@checked(frozen=True)
class _Model:
    commit: Annotated[str, Field(alias="sha", pattern=_COMMIT)]
    files: Annotated[list[_Listed], Field(alias="siblings", max_length=100_000)]


_MODEL = TypeAdapter(_Model)


class HubOrigin:
    """See `Origin`. `endpoint` is the Hub or a mirror of it; `token` is asked for each request."""

    def __init__(
        self,
        reference: HubReference,
        *,
        web: Web,
        endpoint: str = HUB,
        token: Token = no_token,
        patience: Patience | None = None,
    ) -> None:
        self._reference = reference
        self._hub = _Hub(web, endpoint, token)
        self._patience = patience or Patience()
        self._listed: dict[str, _Listed] = {}

    @property
    def reference(self) -> str:
        return self._reference.text

    async def files(self) -> Sequence[OriginFile]:
        if not self._listed:
            model = await self._hub.model(self._reference, self._patience)
            listed = {file.name: file for file in model.files}
            try:
                chosen = model_files(list(listed), self._reference.path)
            except RequestInvalid as error:
                raise RequestInvalid(f"{self.reference}: {error.message}", next_step=error.next_step) from None
            self._reference = replace(self._reference, revision=model.commit)
            self._listed = {name: listed[name] for name in chosen}
        return [OriginFile(name=f.name, size_bytes=f.size_bytes, sha256=f.sha256) for f in self._listed.values()]

    async def bring(self, file: OriginFile, folder: Path, progress: OnProgress) -> Path:
        await self.files()
        listed = self._listed.get(file.name)
        if listed is None:
            raise RequestInvalid(f"{self.reference} has no file {file.name[:200]!r} that belongs to the model.")
        reference = replace(self._reference, path=listed.name)
        try:
            return await download_file(
                self._hub.remote(reference, _same_as(listed, reference)),
                folder,
                reference.text,
                expected=_expected(listed, reference),
                progress=progress,
                patience=self._patience,
            )
        except HttpRefused as error:
            raise self._hub.explained(error, reference) from None


class HubSource(RemoteSource):
    """The file `name` of a repository as a source of ranges for its root; `market.ports.ContentSource`."""

    def __init__(
        self,
        reference: HubReference,
        name: str,
        root: str,
        *,
        web: Web,
        endpoint: str = HUB,
        token: Token = no_token,
    ) -> None:
        if not is_safe_path(name):
            raise RequestInvalid(f"{name[:200]!r} is not a path in a repository.")
        whole = replace(reference, path=name)
        super().__init__(whole.text, root, _Hub(web, endpoint, token).remote(whole, lambda _: None))


class _Hub:
    """Where things are at an endpoint, and how to ask for them. Its repr holds no token: it asks for it each time."""

    def __init__(self, web: Web, endpoint: str, token: Token) -> None:
        self._web = web
        self._endpoint = endpoint.rstrip("/")
        self._token = token

    def remote(self, reference: HubReference, check: OnHop) -> RemoteFile:
        """Raises RequestInvalid if the endpoint is not https (http on loopback)."""
        where = (
            f"{quote(reference.repo)}/resolve/{quote(reference.revision or 'main', safe='')}/{quote(reference.path)}"
        )
        return RemoteFile(self._web, f"{self._endpoint}/{where}", authorization=self._authorization, on_hop=check)

    async def model(self, reference: HubReference, patience: Patience) -> _Model:
        revision = quote(reference.revision or "main", safe="")
        url = f"{self._endpoint}/api/models/{quote(reference.repo)}/revision/{revision}?blobs=true"
        remote = RemoteFile(self._web, url, authorization=self._authorization)
        try:
            return _MODEL.validate_json(await remote.read_small(_LISTING_LIMIT_BYTES, patience))
        except HttpRefused as error:
            raise self.explained(error, reference) from None
        except ValidationError:
            raise ContentUnavailable(f"The answer about {reference.text} is not what a model hub says.") from None

    def explained(self, error: HttpRefused, reference: HubReference) -> ContentUnavailable:
        """What the Hub's refusal means, and what to do about it."""
        page, has_token = f"{self._endpoint}/{reference.repo}", self._token() is not None
        said = {
            "GatedRepo": (
                f"{reference.repo} is gated: its authors ask for consent first.",
                f"Accept the licence on {page}, then set the Hugging Face token of that account.",
            ),
            "RevisionNotFound": (
                f"{reference.repo} has no revision {reference.revision}.",
                f"Look for its branches and tags on {page}.",
            ),
            "EntryNotFound": (f"{reference.text} is not there.", f"Look for the right path on {page}."),
        }.get(error.error_code)
        if said is None and error.status in (401, 403) and has_token:
            said = (
                f"The Hub does not let this token read {reference.repo} ({error.status}).",
                f"Check that the token is valid, and that its account may read {page}.",
            )
        elif said is None and error.status in (401, 403, 404):
            said = (
                f"{reference.repo} does not exist, or it is private or gated ({error.status}).",
                "Check the name; for a private or gated model set a Hugging Face token that may read it.",
            )
        if said is None:
            return error
        return ContentUnavailable(said[0], next_step=said[1])

    def _authorization(self) -> str | None:
        token = self._token()
        if token is None:
            return None
        if not _TOKEN.fullmatch(token):  # a line break would end the header, and an error about it would quote it
            raise RequestInvalid(
                "The Hugging Face token holds characters that no token has.", next_step="Set it again, on one line."
            )
        return f"Bearer {token}"


def _expected(listed: _Listed, reference: HubReference) -> Expected:
    if listed.sha256:
        return Expected(size_bytes=listed.size_bytes, sha256=listed.sha256)
    if listed.git_sha1 is None or listed.size_bytes is None:
        raise ContentUnavailable(
            f"The Hub names no hash of {reference.text}, so nothing could be checked.",
            next_step="Use the Hub itself rather than a mirror, or download the file and give its path.",
        )
    return Expected(size_bytes=listed.size_bytes, git_sha1=listed.git_sha1)


def _same_as(listed: _Listed, reference: HubReference) -> OnHop:
    """The Hub says twice what a file is: in its list, and in the headers of the file. Both must agree."""

    def check(headers: Mapping[str, str]) -> None:
        commit, etag = headers.get("X-Repo-Commit"), _SHA256.fullmatch(headers.get("X-Linked-Etag", ""))
        other = etag is not None and listed.sha256 is not None and etag[1] != listed.sha256
        if other or commit not in (None, reference.revision):
            raise BlockInvalid(f"The Hub contradicts itself about {reference.text}: another file than it listed.")

    return check
