"""A file or a folder of this machine as an origin.

Lives here: what counts as a file of it. Nothing is copied or hashed: the store does that. A folder must hold its
files itself: a link that leads out of it could publish anything that this user can read.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from inference.models.origins import OriginFile
from inference.models.progress import OnProgress
from inference.models.references import LocalReference, is_safe_path
from market.errors import ContentUnavailable, RequestInvalid

FILES_LIMIT = 10_000
DEPTH_LIMIT = 16


class LocalOrigin:
    """See `Origin`. Hidden files (`.git`, `.cache`) are left out."""

    def __init__(self, reference: LocalReference) -> None:
        self._reference = reference
        self._path = Path(reference.path)

    @property
    def reference(self) -> str:
        return self._reference.text

    async def files(self) -> Sequence[OriginFile]:
        return await asyncio.to_thread(self._files)

    async def bring(self, file: OriginFile, folder: Path, progress: OnProgress) -> Path:  # noqa: ARG002 - the port's
        """The file itself, which must stay; `folder` is not used."""
        return await asyncio.to_thread(self._find, file.name)

    def _files(self) -> list[OriginFile]:
        root = self._root()
        if not root.is_dir():
            return [OriginFile(name=self._own_name(root), size_bytes=_regular(root).st_size)]
        found = []
        for path in _walk(root, DEPTH_LIMIT):
            real = self._inside(root, path)
            name = path.relative_to(root).as_posix()
            if not is_safe_path(name):
                raise RequestInvalid(f"{name!r} cannot be the name of a model's file.", next_step="Rename it.")
            found.append(OriginFile(name=name, size_bytes=_regular(real).st_size))
            if len(found) > FILES_LIMIT:
                raise RequestInvalid(
                    f"The folder holds more than {FILES_LIMIT} files.", next_step="Name a smaller one."
                )
        if not found:
            raise RequestInvalid("The folder holds no files.")
        return sorted(found, key=lambda file: file.name)

    def _find(self, name: str) -> Path:
        root = self._root()
        path = self._inside(root, root / name) if root.is_dir() and is_safe_path(name) else root
        if not root.is_dir() and name != self._own_name(root):
            raise RequestInvalid(f"{self.reference} is not {name[:200]!r}.")
        _regular(path)
        return path

    def _root(self) -> Path:
        try:
            return self._path.expanduser().resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: a home folder that nobody knows, a loop of links
            raise ContentUnavailable(f"There is no {self._path}.", next_step="Check the path.") from None

    def _own_name(self, root: Path) -> str:
        """As the user wrote it: the target of a link may be called anything."""
        name = self._path.name or root.name
        return name if is_safe_path(name) else "model"

    def _inside(self, root: Path, path: Path) -> Path:
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise ContentUnavailable(f"{path.name} is a link to nothing, or is gone.") from None
        if not real.is_relative_to(root):
            raise RequestInvalid(
                f"{path.name} is a link that leads out of its folder.",
                next_step="Put the file itself there (`cp -rL` copies a folder with what its links mean).",
            )
        return real


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Everything below that is not a folder and not hidden. Links to folders are not walked: they may lead round."""
    if depth == 0:
        raise RequestInvalid(f"The folder is more than {DEPTH_LIMIT} levels deep.")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), depth - 1)
            else:
                yield Path(entry.path)


def _regular(path: Path) -> os.stat_result:
    try:
        seen = path.stat()
    except OSError:
        raise ContentUnavailable(f"{path.name} is gone.") from None
    if not stat.S_ISREG(seen.st_mode):
        raise RequestInvalid(f"{path.name} is not a file: folders behind links, devices and pipes are not taken.")
    return seen
