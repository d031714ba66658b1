"""The few calls through which the store changes the disk, and what a full or read-only disk becomes.

Lives here: writing, syncing, renaming, removing. Knows no CID and no index. A test hands in a `Disk` of its own that
fills up, or stops the world, between any two calls; what SQLite writes goes through SQLite.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from market.errors import DiskFull, NodeMisconfigured

_START_WRITE = 2
"""SYNC_FILE_RANGE_WRITE: send dirty pages to the disk, wait for nothing (sync_file_range(2))."""


class Disk:
    """All of it blocks, and raises OSError."""

    def __init__(self) -> None:
        libc: Any = ctypes.CDLL(None, use_errno=True)
        self._start_write = getattr(libc, "sync_file_range", None)
        self._allocate = getattr(libc, "fallocate", None)

    def create(self, path: Path, size_bytes: int, *, reserve: bool = False) -> int:
        """A descriptor of a new file of zeros. `reserve`: its blocks are taken now, if the file system can: then it
        is now that a disk turns out to be full, and writing costs a quarter less CPU (measured on ext4)."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(descriptor, size_bytes)
            if reserve and size_bytes and self._allocate is not None:
                length = ctypes.c_int64(size_bytes)
                if self._allocate(ctypes.c_int(descriptor), ctypes.c_int(0), ctypes.c_int64(0), length) != 0:
                    failed = ctypes.get_errno()
                    if failed not in (errno.EOPNOTSUPP, errno.ENOSYS):
                        raise OSError(failed, os.strerror(failed))
        except BaseException:
            os.close(descriptor)
            path.unlink()
            raise
        return descriptor

    def resize(self, descriptor: int, size_bytes: int) -> None:
        os.ftruncate(descriptor, size_bytes)

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """All of `data`: pwrite may write a part only, above all on a disk that is about to be full."""
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written

    def start_writing(self, descriptor: int, offset: int, length: int) -> None:
        """A hint, worth half of the time that a later `sync` of a large file takes; it promises nothing."""
        if self._start_write is not None:
            span = (ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(_START_WRITE))
            self._start_write(ctypes.c_int(descriptor), *span)

    def sync_data(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder outlive a power loss."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def remove(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            path.unlink()


@contextmanager
def disk_errors(needed_bytes: int) -> Iterator[None]:
    """ENOSPC and EDQUOT become DiskFull, EROFS NodeMisconfigured; other errors of the disk stay what they are."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(needed_bytes, 0) from None
        if error.errno == errno.EROFS:
            raise read_only(Path(error.filename or "the model folder")) from None
        raise


def disk_full(needed: int, room: int) -> DiskFull:
    return DiskFull(
        f"The disk is full: {needed} bytes are still needed, {room} are free.",
        next_step="Free some space and pull again; what has arrived is kept.",
    )


def read_only(path: Path) -> NodeMisconfigured:
    return NodeMisconfigured(
        f"The model store is read-only: {path} cannot be written.",
        next_step="Mount it writable and give this user the right to write, or set another folder for models.",
    )
