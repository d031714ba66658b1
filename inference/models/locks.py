"""Locks on files, across tasks, threads and processes. The kernel lets go of a dead holder's lock.

Lives here: flock(2) and nothing else. A model in use is locked through its own file, shared; who wants to take it away
asks for the same lock alone. Knows no store.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from inference.models.disk import disk_errors

_POLL_S = 0.1


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Blocking. One holder at a time; not reentrant, also not within a thread."""
    with disk_errors(0):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def in_use(path: Path) -> Iterator[int]:
    """A descriptor to read `path` with, which nobody takes away meanwhile. Raises FileNotFoundError.

    Blocks for the moment in which another takes the file away, or looks whether it could.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not _is_named(path, descriptor):
            raise FileNotFoundError(path)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether nobody uses `path` (or it is gone); if so, nobody can begin to before the block ends."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        else:
            free = True
        yield free
    finally:
        os.close(descriptor)


@asynccontextmanager
async def open_pull_lock(folder: Path, root: str) -> AsyncIterator[None]:
    """One pull of `root` at a time, across tasks and processes."""
    path = folder / f"{root}.lock"
    while True:
        with disk_errors(0):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(path, descriptor):
                break  # the last holder unlinks its lock: the file we hold must still be the one with the name
        except BlockingIOError:
            pass
        os.close(descriptor)
        await asyncio.sleep(_POLL_S)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _is_named(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
