"""Any web server as an origin, and as a source of ranges: `https://HOST/PATH#sha256=…`.

Lives here: what the reference promises. The hash is required, because a certificate says who sends and not what.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yarl import URL

from inference.models.download import download_file
from inference.models.download_part import Expected
from inference.models.origins import OriginFile
from inference.models.progress import OnProgress
from inference.models.references import WebReference, is_safe_path
from inference.models.remote import Patience, RemoteFile, RemoteSource
from inference.models.web_client import Web


class WebOrigin:
    """See `Origin`: one file, named as the last part of the URL's path."""

    def __init__(self, reference: WebReference, *, web: Web, patience: Patience | None = None) -> None:
        self._reference = reference
        self._remote = RemoteFile(web, reference.url)
        self._patience = patience
        name = URL(reference.url).name
        self._file = OriginFile(
            name=name if is_safe_path(name) and "/" not in name else "model", sha256=reference.sha256
        )

    @property
    def reference(self) -> str:
        return self._reference.text

    async def files(self) -> Sequence[OriginFile]:
        return [self._file]

    async def bring(self, file: OriginFile, folder: Path, progress: OnProgress) -> Path:
        assert file == self._file, "one of `files`"
        expected = Expected(sha256=self._reference.sha256)
        return await download_file(
            self._remote, folder, self.reference, expected=expected, progress=progress, patience=self._patience
        )


class WebSource(RemoteSource):
    """The file behind a URL as a source of ranges for its root; `market.ports.ContentSource`.

    `strangers_word`: the URL comes out of a manifest; then only public addresses are asked.
    """

    def __init__(self, reference: WebReference, root: str, *, web: Web, strangers_word: bool = False) -> None:
        super().__init__(reference.url, root, RemoteFile(web, reference.url, strangers_word=strangers_word))
