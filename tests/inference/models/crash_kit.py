"""A disk that remembers what a crash at any moment would leave of a folder.

`kill -9` leaves everything that was written. A power loss leaves, of each file, what was last synced and any of the
writes since; of the names, any state from the last synced folder on (journalling file systems keep their order:
ext4, XFS, btrfs). SQLite's files are taken as they are between two calls: with synchronous=full a transaction that
was committed is on the disk.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inference.models.disk import Disk

Listing = Mapping[str, int]
"""Relative path -> inode."""


@dataclass
class _File:
    """`synced` is what is safe; `since` what was done to it after that: (offset, bytes), or (size, None)."""

    synced: bytes = b""
    synced_mtime_ns: int = 0
    since: list[tuple[int, bytes | None]] = field(default_factory=list)

    def content(self, keep: Callable[[], bool]) -> bytes:
        data = bytearray(self.synced)
        for offset, written in self.since:
            if not keep():
                continue
            end = offset if written is None else offset + len(written)
            data.extend(bytes(max(0, end - len(data))))
            if written is None:
                del data[offset:]
            else:
                data[offset:end] = written
        return bytes(data)


@dataclass
class Image:
    """What is on the disk at one moment. `promised` is what had been told to the caller by then."""

    what: str
    index: Mapping[str, bytes]
    listings: list[Listing]
    live: Mapping[int, tuple[bytes, int]]
    files: Mapping[int, _File]
    promised: frozenset[object]

    def state(self, kind: str, seed: int) -> dict[str, tuple[int, bytes, int]]:
        """Name -> (inode, bytes, mtime) after a crash: "kill", "worst" (nothing unsynced) or "some"."""
        chance = random.Random(seed)
        listing = {"kill": self.listings[-1], "worst": self.listings[0]}.get(kind) or chance.choice(self.listings)
        found = {}
        for name, inode in listing.items():
            data, mtime_ns = self.live.get(inode, (b"", 0))
            if kind != "kill":
                file = self.files.get(inode, _File())
                data = file.content(lambda: kind == "some" and chance.random() < 0.5)
                mtime_ns = chance.choice((mtime_ns, file.synced_mtime_ns)) or file.synced_mtime_ns
            found[name] = inode, data, mtime_ns
        return found

    def write(self, folder: Path, state: Mapping[str, tuple[int, bytes, int]]) -> None:
        """Make the folder as it would be found."""
        for name in ("models/files", "models/parts", "models/quarantine", "models/views"):
            (folder / name).mkdir(parents=True)
        for name, data in self.index.items():
            (folder / "models" / name).write_bytes(data)
        inodes = {}
        for name, (inode, data, mtime_ns) in state.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            os.utime(path, ns=(mtime_ns, mtime_ns))
            inodes[inode] = path.stat().st_ino
        # The copies have other inodes than the index says: that must not be what saves us.
        database = sqlite3.connect(folder / "models" / "index.db")
        database.execute("pragma synchronous=off")
        for (inode,) in database.execute("select inode from files").fetchall():
            if inode in inodes:
                database.execute("update files set inode=? where inode=?", (inodes[inode], inode))
        database.commit()
        database.close()


class Recorder(Disk):
    """Takes an image of `folder` before and after each change, and in the middle of each write."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.images: list[Image] = []
        self.promised: set[object] = set()
        self._folder = folder
        self._files: dict[int, _File] = {}
        self._listings: list[Listing] = [self._names()]
        for name, inode in self._listings[0].items():
            path = folder / name
            self._files[inode] = _File(path.read_bytes(), path.stat().st_mtime_ns)

    def take(self, what: str) -> None:
        names = self._names()
        if names != self._listings[-1]:
            self._listings.append(names)
        models = self._folder / "models"
        self.images.append(
            Image(
                what=what,
                index={p.name: p.read_bytes() for p in models.glob("index.db*") if not p.name.endswith("-shm")},
                listings=list(self._listings),
                live={
                    inode: ((self._folder / name).read_bytes(), (self._folder / name).stat().st_mtime_ns)
                    for name, inode in names.items()
                },
                files={
                    inode: _File(file.synced, file.synced_mtime_ns, list(file.since))
                    for inode, file in self._files.items()
                },
                promised=frozenset(self.promised),
            )
        )

    def create(self, path: Path, size_bytes: int, *, reserve: bool = False) -> int:
        self.take(f"before create {path.name}")
        descriptor = super().create(path, size_bytes, reserve=reserve)
        self._of(descriptor).since.append((size_bytes, None))
        self.take(f"create {path.name}")
        return descriptor

    def resize(self, descriptor: int, size_bytes: int) -> None:
        self.take("before resize")
        super().resize(descriptor, size_bytes)
        self._of(descriptor).since.append((size_bytes, None))
        self.take("resize")

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        self.take("before write")
        half = len(data) // 2
        for at, piece in ((offset, bytes(data[:half])), (offset + half, bytes(data[half:]))):
            super().write(descriptor, piece, at)
            self._of(descriptor).since.append((at, piece))
            self.take(f"write at {at}")

    def sync_data(self, descriptor: int) -> None:
        self.sync(descriptor)

    def sync(self, descriptor: int) -> None:
        self.take("before sync")
        super().sync(descriptor)
        seen = os.fstat(descriptor)
        self._files[seen.st_ino] = _File(os.pread(descriptor, seen.st_size, 0), seen.st_mtime_ns)
        self.take("sync")

    def sync_folder(self, folder: Path) -> None:
        self.take("before sync of a folder")
        super().sync_folder(folder)
        self._listings = [self._names()]
        self.take("sync of a folder")

    def rename(self, source: Path, target: Path) -> None:
        self.take(f"before rename to {target}")
        super().rename(source, target)
        self.take(f"rename to {target}")

    def remove(self, path: Path) -> None:
        self.take(f"before removal of {path}")
        super().remove(path)
        self.take(f"removal of {path}")

    def _of(self, descriptor: int) -> _File:
        return self._files.setdefault(os.fstat(descriptor).st_ino, _File())

    def _names(self) -> Listing:
        return {
            str(path.relative_to(self._folder)): path.stat().st_ino
            for path in sorted(self._folder.rglob("*"))
            if path.is_file() and not path.name.startswith(("index.db", "store.lock")) and path.suffix != ".lock"
        }


def forget(folder: Path) -> None:
    shutil.rmtree(folder)
