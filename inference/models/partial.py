"""A file on its way in: `.part` with leaves at their final offsets, `.map` with a byte for each leaf that is safe.

Lives here: verified writes, the order "data to disk, then the map", resuming. Knows no index and no network.
Everything here blocks; callers bring a thread, and hold `open_pull_lock` of the root.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from inference.models.disk import Disk, disk_errors, disk_full
from inference.models.folders import stamp_of
from inference.models.index import Stamp
from inference.models.unixfs import Leaf

_STAMP_BYTES = 8
_TABLE_BYTES = 16
_HEADER_BYTES = _STAMP_BYTES + _TABLE_BYTES
_EARLY_BYTES = 8 * 1024 * 1024
"""How much is written before the disk is told to begin; a `save` then has little left to wait for."""


class Partial:
    """`done` has one byte a leaf. Thread-safe: several connections write to one file.

    Resuming trusts the map if it is of this very leaf table and `.part` is exactly as old as it says. Otherwise the
    writer was killed between a write and its map (or somebody touched the file), and all the data that is there is
    hashed again. A map that a power loss tore between two states names no leaf too many, since its bytes only ever
    turn from 0 to 1, after their data was synced; leaves that it does not name are hashed if there is data.
    """

    def __init__(
        self, folder: Path, root: str, leaves: Sequence[Leaf], size_bytes: int, *, disk: Disk | None = None
    ) -> None:
        self.part = folder / f"{root}.part"
        self.leaves = leaves
        self.done = bytearray(len(leaves))
        self.done_bytes = 0
        self._left = len(leaves)
        self._disk = disk or Disk()
        self._map = folder / f"{root}.map"
        self._size_bytes = size_bytes
        self._table = _fingerprint(leaves)
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self._unsaved = False
        self._unsent = 0
        with disk_errors(size_bytes):
            self._fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._map_fd = os.open(self._map, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except BaseException:
                os.close(self._fd)
                raise
            try:
                self._resume()
                self._check_room()
                if os.fstat(self._fd).st_size != size_bytes:
                    self._disk.resize(self._fd, size_bytes)
                self._unsaved = True
                self.save()
                self._disk.sync_folder(folder)
            except BaseException:
                self.close()
                raise

    def accept(self, number: int, data: bytes | bytearray | memoryview) -> bool:
        """Write leaf `number` if `data` hashes to it. False: these are other bytes. Raises DiskFull."""
        leaf = self.leaves[number]
        if not leaf.matches(data):
            return False
        if self.done[number]:
            return True
        with disk_errors(self._size_bytes - self.done_bytes):
            self._disk.write(self._fd, data, leaf.offset)
        self._mark(number)
        self._unsent += leaf.length
        if self._unsent >= _EARLY_BYTES:
            self._unsent = 0
            self._disk.start_writing(self._fd, 0, 0)
        return True

    def save(self) -> None:
        """Data first, then the map. The map is overwritten in place, so that a full disk cannot stop it."""
        with self._saving:  # a slower save must not put an older map over a newer one
            with self._lock:
                if not self._unsaved:
                    return
                done, self._unsaved = bytes(self.done), False
            try:
                with disk_errors(0):
                    self._disk.sync_data(self._fd)
                    stamp = os.fstat(self._fd).st_mtime_ns.to_bytes(_STAMP_BYTES, "big")
                    self._disk.write(self._map_fd, stamp + self._table + done, 0)
            except BaseException:
                self._unsaved = True
                raise

    @property
    def whole(self) -> bool:
        return self._left == 0

    def missing(self) -> list[int]:
        return [number for number, done in enumerate(self.done) if not done]

    def finish(self) -> Stamp:
        """All leaves are in: make them durable, make the file read-only and say what it looks like now."""
        assert self.whole
        self.save()
        with disk_errors(0):
            os.fchmod(self._fd, 0o444)
            self._disk.sync(self._fd)
        return stamp_of(os.fstat(self._fd))

    def forget(self) -> None:
        """The part has become the file: the map has nothing more to say."""
        self._disk.remove(self._map)

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._map_fd)

    def _resume(self) -> None:
        there = os.fstat(self._fd)
        known = os.pread(self._map_fd, _HEADER_BYTES + len(self.leaves), 0)
        stamp, table, done = known[:_STAMP_BYTES], known[_STAMP_BYTES:_HEADER_BYTES], known[_HEADER_BYTES:]
        if known and table != self._table:
            # What a torn write leaves of this map must never be read as one of ours.
            self._disk.resize(self._map_fd, 0)
            self._disk.sync_data(self._map_fd)
        elif stamp == there.st_mtime_ns.to_bytes(_STAMP_BYTES, "big"):
            for number, bit in enumerate(done):
                if bit:
                    self._mark(number)
        for number, leaf in enumerate(self.leaves):
            if self.done[number] or leaf.offset + leaf.length > there.st_size or not _has_data(self._fd, leaf):
                continue
            if leaf.matches(os.pread(self._fd, leaf.length, leaf.offset)):
                self._mark(number)

    def _check_room(self) -> None:
        """Better to hear it before the download than after 40 GB."""
        needed = self._size_bytes - self.done_bytes
        disk = os.fstatvfs(self._fd)
        room = disk.f_bavail * disk.f_frsize
        if room < needed:
            raise disk_full(needed, room)

    def _mark(self, number: int) -> None:
        with self._lock:
            if not self.done[number]:
                self.done[number] = 1
                self.done_bytes += self.leaves[number].length
                self._left -= 1
                self._unsaved = True


def _fingerprint(leaves: Sequence[Leaf]) -> bytes:
    """Of a root with dag-pb leaves one pull may see another leaf table than the next (`TreeWalk.settle`)."""
    told = hashlib.sha256()
    for leaf in leaves:
        told.update(leaf.offset.to_bytes(8, "big") + leaf.length.to_bytes(8, "big") + leaf.digest)
    return told.digest()[:_TABLE_BYTES]


def _has_data(descriptor: int, leaf: Leaf) -> bool:
    """False for a hole: no need to hash gigabytes of zeros that were never written."""
    try:
        return os.lseek(descriptor, leaf.offset, os.SEEK_DATA) < leaf.offset + leaf.length
    except OSError as error:
        return error.errno != errno.ENXIO  # ENXIO: nothing but a hole until the end
