"""A file on its way in: `.part` with leaves at their final offsets, `.map` with a bit for each leaf that is safe.

Lives here: verified writes, the order "data to disk, then the bit", resuming, and the lock that keeps two
pulls of one CID apart. Knows no index and no network. Everything here blocks; callers bring a thread.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from inference.models.unixfs import Leaf
from market.errors import DiskFull

_STAMP_BYTES = 8
_LOCK_POLL_S = 0.1


class Partial:
    """`done` has one byte a leaf. Thread-safe: several connections write to one file.

    Resuming trusts the map if `.part` is exactly as old as the map says. Otherwise the writer was killed
    between a write and its bit (or somebody touched the file), and all the data that is there is hashed again.
    """

    def __init__(self, folder: Path, root: str, leaves: Sequence[Leaf], size_bytes: int) -> None:
        self.part = folder / f"{root}.part"
        self.leaves = leaves
        self.done = bytearray(len(leaves))
        self.done_bytes = 0
        self._map = folder / f"{root}.map"
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._unsaved = False
        with disk_errors(size_bytes):
            self._fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._map_fd = os.open(self._map, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._resume()
                self._check_room()
                os.ftruncate(self._fd, size_bytes)
                self._unsaved = True
                self.save()
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
            _write_all(self._fd, data, leaf.offset)
        self._mark(number)
        return True

    def save(self) -> None:
        """Data first, then the map. The map is overwritten in place, so that a full disk cannot stop it."""
        with self._lock:
            if not self._unsaved:
                return
            bits, self._unsaved = bytes(self.done), False
        with disk_errors(0):
            os.fdatasync(self._fd)
            stamp = os.fstat(self._fd).st_mtime_ns.to_bytes(_STAMP_BYTES, "big")
            _write_all(self._map_fd, stamp + bits, 0)

    @property
    def whole(self) -> bool:
        return 0 not in self.done

    def missing(self) -> list[int]:
        return [number for number, done in enumerate(self.done) if not done]

    def finish(self) -> os.stat_result:
        """All leaves are in: make them durable, make the file read-only and say what it looks like now."""
        assert self.whole
        self.save()
        os.fsync(self._fd)
        os.fchmod(self._fd, 0o444)
        return os.fstat(self._fd)

    def forget(self) -> None:
        """The part has become the file: the map has nothing more to say."""
        self._map.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._map_fd)

    def _resume(self) -> None:
        there = os.fstat(self._fd)
        known = os.pread(self._map_fd, _STAMP_BYTES + len(self.leaves), 0)
        whole = len(known) == _STAMP_BYTES + len(self.leaves)
        if whole and known[:_STAMP_BYTES] == there.st_mtime_ns.to_bytes(_STAMP_BYTES, "big"):
            for number, bit in enumerate(known[_STAMP_BYTES:]):
                if bit:
                    self._mark(number)
            return
        for number, leaf in enumerate(self.leaves):
            if leaf.offset + leaf.length > there.st_size or not _has_data(self._fd, leaf):
                continue
            if leaf.matches(os.pread(self._fd, leaf.length, leaf.offset)):
                self._mark(number)

    def _check_room(self) -> None:
        """Better to hear it before the download than after 40 GB."""
        needed = self._size_bytes - self.done_bytes
        disk = os.fstatvfs(self._fd)
        room = disk.f_bavail * disk.f_frsize
        if room < needed:
            raise _full(needed, room)

    def _mark(self, number: int) -> None:
        with self._lock:
            if not self.done[number]:
                self.done[number] = 1
                self.done_bytes += self.leaves[number].length
                self._unsaved = True


@asynccontextmanager
async def open_pull_lock(folder: Path, root: str) -> AsyncIterator[None]:
    """One pull of `root` at a time, across tasks and processes; the kernel lets go of a dead holder's lock."""
    path = folder / f"{root}.lock"
    while True:
        with disk_errors(0):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                break  # the last holder unlinks its lock: the file we hold must still be the one with the name
        except BlockingIOError:
            pass
        os.close(descriptor)
        await asyncio.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def disk_errors(needed_bytes: int) -> Iterator[None]:
    """ENOSPC and EDQUOT become DiskFull; other errors of the disk stay what they are."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(needed_bytes, 0) from None
        raise


def _full(needed: int, room: int) -> DiskFull:
    return DiskFull(
        f"The disk is full: {needed} bytes are still needed, {room} are free.",
        next_step="Free some space and pull again; what has arrived is kept.",
    )


def _write_all(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """pwrite may write a part only, above all on a disk that is about to be full."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _has_data(descriptor: int, leaf: Leaf) -> bool:
    """False for a hole: no need to hash gigabytes of zeros that were never written."""
    try:
        return os.lseek(descriptor, leaf.offset, os.SEEK_DATA) < leaf.offset + leaf.length
    except OSError as error:
        return error.errno != errno.ENXIO  # ENXIO: nothing but a hole until the end
