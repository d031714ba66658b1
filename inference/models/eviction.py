"""Room for new bytes: what the owner's quota allows, and which files go when it is used up.

Lives here: the choice (pure) and making it true. Only an owner who set a quota has files taken away, the least
recently used first, whole, never one in use: each is locked by whoever maps or reads it (`locks.in_use`), in this
process or another. A part on its way in counts with its full size: that is how two pulls do not promise one room twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from inference.models.disk import Disk, disk_errors, disk_full
from inference.models.folders import Folders
from inference.models.index import Index
from inference.models.locks import alone, locked
from inference.models.partial import Partial
from inference.models.unixfs import Leaf
from inference.models.views import drop_dead_views
from inference.models.waste import drop_waste
from market.errors import DiskFull
from market.values import value

_log = structlog.get_logger()


@value
class StoredFile:
    """`public`: by its own mark or a directory's. `in_use`: somebody reads or maps it now."""

    root: str
    size_bytes: int
    public: bool
    last_used_ms: int
    in_use: bool


def choose_victims(files: Sequence[StoredFile], needed_bytes: int) -> Sequence[StoredFile] | None:
    """The least recently used files that nobody uses, as many as it takes and none for nothing; None: not enough."""
    victims: list[StoredFile] = []
    freed = 0
    for file in sorted((file for file in files if not file.in_use), key=lambda file: (file.last_used_ms, file.root)):
        if freed >= needed_bytes:
            break
        victims.append(file)
        freed += file.size_bytes
    if freed < needed_bytes:
        return None
    for file in list(reversed(victims)):  # the most recently used of them is spared first
        if freed - file.size_bytes >= needed_bytes:
            victims.remove(file)
            freed -= file.size_bytes
    return victims


class Room:
    """Everything blocks. `clock` gives seconds since 1970."""

    def __init__(
        self,
        folders: Folders,
        index: Index,
        disk: Disk,
        quota_bytes: int | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folders = folders
        self._index = index
        self._disk = disk
        self._quota_bytes = quota_bytes
        self._clock = clock

    def files(self) -> list[StoredFile]:
        """What is whole and here, oldest row first."""
        found = []
        for row in self._index.files():
            path = self._folders.path_of(row.root)
            if row.whole and path.exists():
                with alone(path) as free:
                    in_use = not free
                found.append(
                    StoredFile(
                        root=row.root,
                        size_bytes=row.stamp.size_bytes,
                        public=row.public or self._index.is_public(row.root),
                        last_used_ms=row.used_ms,
                        in_use=in_use,
                    )
                )
        return found

    def make(self, new_bytes: int, *, on_disk: int | None = None, but: Path | None = None) -> None:
        """Room for `new_bytes`, `on_disk` of which the disk does not hold yet. `but`: a part that is not counted.

        Raises DiskFull, which says what is in use, if that cannot be.
        """
        self._folders.need_write()
        with locked(self._folders.lock):
            self._make(new_bytes, new_bytes if on_disk is None else on_disk, but)

    def create(self, path: Path, size_bytes: int) -> int:
        """A descriptor of a new file among the parts, with room for all of it."""
        with locked(self._folders.lock), disk_errors(size_bytes):
            self._make(size_bytes, size_bytes, None)
            free = self._free_bytes()
            if free < size_bytes:
                raise disk_full(size_bytes, free)
            return self._disk.create(path, size_bytes, reserve=True)

    def open_partial(self, root: str, leaves: Sequence[Leaf], size_bytes: int) -> Partial:
        """The part of a pull, new or taken up again. The caller holds `open_pull_lock` of `root`."""
        self._folders.need_write()
        part = self._folders.parts / f"{root}.part"
        with locked(self._folders.lock), disk_errors(size_bytes):
            here = part.stat().st_blocks * 512 if part.exists() else 0
            self._make(size_bytes, max(0, size_bytes - here), part)
            if not part.exists():
                os.close(self._disk.create(part, size_bytes))  # from now on it counts
        return Partial(self._folders.parts, root, leaves, size_bytes, disk=self._disk)

    def used_bytes(self, but: Path | None = None) -> int:
        """Of models, parts (with the size that they will have) and what lies in quarantine."""
        total = 0
        for folder in (self._folders.files, self._folders.parts, self._folders.quarantine):
            for path in folder.rglob("*"):
                try:
                    total += path.lstat().st_size if path.is_file() and path != but else 0
                except FileNotFoundError:
                    continue
        return total

    def _make(self, new_bytes: int, on_disk: int, but: Path | None) -> None:
        if self._quota_bytes is None:
            return
        if self._short(new_bytes, on_disk, but) > 0:
            drop_waste(self._folders, self._index, self._disk, self._clock(), but=but)
        while (short := self._short(new_bytes, on_disk, but)) > 0:
            files = self.files()
            victims = choose_victims(files, short)
            if victims is None:
                raise self._full(new_bytes, files, but)
            for file in victims:
                self._evict(file)
            drop_dead_views(self._folders)  # they would hold on to the bytes

    def _short(self, new_bytes: int, on_disk: int, but: Path | None) -> int:
        """By how many bytes the quota or the disk is too small."""
        quota = self._quota_bytes or 0
        return max(self.used_bytes(but) + new_bytes - quota, on_disk - self._free_bytes())

    def _free_bytes(self) -> int:
        disk = os.statvfs(self._folders.parts)
        return disk.f_bavail * disk.f_frsize

    def _evict(self, file: StoredFile) -> None:
        with alone(self._folders.path_of(file.root)) as free:
            if free:
                self._disk.remove(self._folders.path_of(file.root))
                self._index.drop_file(file.root)
                _log.info("model_file_evicted", cid=file.root, bytes=file.size_bytes, last_used_ms=file.last_used_ms)

    def _full(self, new_bytes: int, files: Sequence[StoredFile], but: Path | None) -> DiskFull:
        busy = [file for file in files if file.in_use]
        names = ", ".join(f"{file.root} ({file.size_bytes} bytes)" for file in busy[:8]) or "no model"
        stored = sum(file.size_bytes for file in files)
        return DiskFull(
            f"The models' quota of {self._quota_bytes} bytes has no room for {new_bytes} more: {stored} bytes are "
            f"stored, {sum(file.size_bytes for file in busy)} of them in use ({names}), "
            f"{max(0, self.used_bytes(but) - stored)} belong to unfinished downloads, and the disk has "
            f"{self._free_bytes()} bytes free.",
            next_step="Raise the quota, stop a model that is running, or remove one (`octo-node models rm`).",
        )
