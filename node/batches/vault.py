"""Contents of files on disk, whole or not at all: written aside, synced, renamed. Knows no table."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from market.errors import DiskFull, OctoError

P = ParamSpec("P")
T = TypeVar("T")

_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_PART = ".part"


class Incoming:
    """A file that is being written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        await _on_disk(self._file.write, data)


class Vault:
    """One folder, for its owner alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for made in (folder.parent, folder):  # `parents=True` would make the one above with the usual mode
            made.mkdir(mode=0o700, exist_ok=True)

    def path(self, id: str) -> Path:
        assert _ID.fullmatch(id), "an id is ours, and no path"
        return self._folder / id

    @asynccontextmanager
    async def incoming(self, id: str) -> AsyncIterator[Incoming]:
        """At the end of the block the file is there, durably; if the block raises, nothing is."""
        path = self.path(id)
        part = path.with_name(path.name + _PART)
        file = await _on_disk(_open, part)
        try:
            yield Incoming(file)
            await _on_disk(_settle, file, part, path)
        finally:
            file.close()
            part.unlink(missing_ok=True)

    async def remove(self, id: str) -> None:
        await _on_disk(self.path(id).unlink, missing_ok=True)

    async def keep_only(self, ids: Collection[str]) -> None:
        """Remove what no table knows: uploads that a kill cut off."""

        def sweep() -> None:
            for path in self._folder.iterdir():
                if path.name not in ids:
                    path.unlink()

        await _on_disk(sweep)


def _open(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb")


def _settle(file: BinaryIO, part: Path, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


async def _on_disk(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    try:
        return await asyncio.to_thread(work, *arguments, **named)
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise DiskFull("no room for the file.", next_step="Free space on that disk, then try again.") from None
        raise OctoError(f"the file could not be kept ({error.strerror}).", next_step="Check the data folder.") from None
