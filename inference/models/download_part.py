"""A download on disk: the bytes so far, a note of which they are, and their hash as far as they reach without a gap.

Lives here: `.part` and `.state`, written so that `kill -9` or a power cut costs a few seconds of data and never
leaves a note that promises more than is there. Knows no network. Everything blocks; `in_thread` brings a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from inference.models.disk import disk_errors
from market.errors import DiskFull
from market.values import value

T = TypeVar("T")

SEGMENT_BYTES = 8 * 1024 * 1024
"""What one request brings. On a WAN of 100 ms and 100 MB/s the round trip costs a tenth of its time."""
ROOM_KEPT_BYTES = 512 * 1024 * 1024
"""Left free on the disk while a file of unknown size is coming in: it may be endless."""
_PIECE_BYTES = 1024 * 1024


@value
class Expected:
    """What the finished file must be. At least one of the hashes (hex); a git blob hash needs the size too."""

    size_bytes: int | None = None
    sha256: str = ""
    git_sha1: str = ""

    def digests(self) -> dict[str, hashlib._Hash]:
        digests = {"sha256": hashlib.sha256()} if self.sha256 else {}
        if self.git_sha1:
            assert self.size_bytes is not None
            head = b"blob %d\0" % self.size_bytes  # how git names the bytes of a file
            digests["git sha1"] = hashlib.sha1(head, usedforsecurity=False)
        assert digests, "nothing says which bytes are the right ones"
        return digests

    def wrong(self, size_bytes: int, digests: dict[str, hashlib._Hash]) -> str:
        """What is not as expected, in words, or nothing."""
        if self.size_bytes not in (None, size_bytes):
            return f"it has {size_bytes} bytes where {self.size_bytes} were promised"
        for name, digest in digests.items():
            wanted = self.sha256 if name == "sha256" else self.git_sha1
            if digest.hexdigest() != wanted:
                return f"its {name} is {digest.hexdigest()} where {wanted} was promised"
        return ""


@value
class _State:
    """`filled`: for each segment how many of its first bytes are safe. `pin` and `size_bytes` say of which file."""

    pin: Annotated[str, Field(max_length=256)]
    size_bytes: Annotated[int, Field(ge=0, lt=2**53)] | None
    filled: Annotated[list[Annotated[int, Field(ge=0, le=SEGMENT_BYTES)]], Field(max_length=1 << 20)]


_STATE = TypeAdapter(_State)
_STATE_LIMIT_BYTES = 16 * 1024 * 1024


class DownloadPart:
    """`pin` is None until a host has said what it has. Several tasks write, each into a segment of its own."""

    def __init__(self, path: Path, expected: Expected) -> None:
        self.path = path
        self.pin: str | None = None
        self.size_bytes: int | None = None
        self.filled: list[int] = []
        self.resumed = False
        self.streamed = False
        self._expected = expected
        self._state = path.with_name(path.name + ".state")
        self._saved: tuple[int, ...] = ()
        self._saving, self._hashing = threading.Lock(), threading.Lock()
        with disk_errors(expected.size_bytes or 0):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._hashed, self._digests = 0, expected.digests()
        self._resume()

    @property
    def done_bytes(self) -> int:
        return sum(self.filled)

    def start(self, pin: str, size_bytes: int | None, *, streamed: bool) -> None:
        """A host has said what it has, and nothing is here yet. Raises DiskFull before anything is downloaded.

        `streamed`: one segment of any length, from the first byte to the last, that nobody can go on with.
        """
        self.pin, self.size_bytes, self.streamed = pin, size_bytes, streamed
        room = os.fstatvfs(self._fd)
        free = room.f_bavail * room.f_frsize
        if free < (size_bytes or ROOM_KEPT_BYTES):
            raise DiskFull(
                f"The disk is full: {size_bytes or 'an unknown number of'} bytes are needed, {free} are free.",
                next_step="Free some space and try again.",
            )
        self.filled = [0] * (1 if streamed else _segments(size_bytes or 0))
        os.ftruncate(self._fd, size_bytes or 0)

    def clear(self) -> None:
        """Forget everything: it belongs to another file."""
        with self._hashing:
            self._state.unlink(missing_ok=True)
            os.ftruncate(self._fd, 0)
            self.pin, self.size_bytes, self.filled, self._saved = None, None, [], ()
            self.resumed = self.streamed = False
            self._hashed, self._digests = 0, self._expected.digests()

    def gap(self, number: int) -> tuple[int, int]:
        """What is missing of a segment: its first byte's place in the file, and how many."""
        assert self.size_bytes is not None
        assert not self.streamed
        start = number * SEGMENT_BYTES
        end = min(start + SEGMENT_BYTES, self.size_bytes)
        return start + self.filled[number], end - start - self.filled[number]

    def write(self, number: int, data: bytes | bytearray) -> None:
        """Append to a segment. Raises DiskFull."""
        at, view = number * SEGMENT_BYTES + self.filled[number], memoryview(data)
        with disk_errors((self.size_bytes or 0) - self.done_bytes):
            while view:
                written = os.pwrite(self._fd, view, at)
                view, at = view[written:], at + written
        self.filled[number] += len(data)
        if self.size_bytes is None:
            room = os.fstatvfs(self._fd)
            if room.f_bavail * room.f_frsize < ROOM_KEPT_BYTES:
                raise DiskFull("The disk is nearly full, and nobody says how long this file is.")

    def save(self) -> None:
        """The data first, then the note; without ranges there is nothing that could be gone on from."""
        with self._saving:
            filled = tuple(self.filled)
            if filled == self._saved or self.streamed or self.size_bytes is None:
                return
            with disk_errors(0):
                os.fdatasync(self._fd)
                new = self._state.with_name(self._state.name + ".new")
                note = _STATE.dump_json(_State(pin=self.pin or "", size_bytes=self.size_bytes, filled=list(filled)))
                with new.open("wb") as file:
                    file.write(note)
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(self._state)
            self._saved = filled

    def hash_more(self) -> int:
        """Hash on, to the first gap; how many bytes that took. They come from the page cache."""
        with self._hashing:
            before = self._hashed
            while piece := os.pread(self._fd, min(_PIECE_BYTES, self._front() - self._hashed), self._hashed):
                for digest in self._digests.values():
                    digest.update(piece)
                self._hashed += len(piece)
            return self._hashed - before

    def wrong(self) -> str:
        """Once all is there: what is not as expected, in words, or nothing."""
        self.hash_more()
        return self._expected.wrong(self._hashed, self._digests)

    def finish(self, target: Path) -> None:
        with disk_errors(0):
            os.fsync(self._fd)
            self.path.replace(target)
        self._state.unlink(missing_ok=True)

    def discard(self) -> None:
        """Not worth keeping."""
        self.path.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._fd)
        if self.streamed:
            self.discard()  # nobody can go on with it, and what is whole has another name by now

    def _front(self) -> int:
        if self.streamed:
            return self.filled[0]
        for number, filled in enumerate(self.filled[self._hashed // SEGMENT_BYTES :], self._hashed // SEGMENT_BYTES):
            if filled < SEGMENT_BYTES:
                return number * SEGMENT_BYTES + filled
        return self.size_bytes or 0

    def _resume(self) -> None:
        """Take a note that fits the part; anything else is started over."""
        with contextlib.suppress(OSError, ValidationError):
            if self._state.stat().st_size <= _STATE_LIMIT_BYTES:
                state = _STATE.validate_json(self._state.read_bytes())
                whole = state.size_bytes is not None and os.fstat(self._fd).st_size == state.size_bytes
                fits = self._expected.size_bytes in (None, state.size_bytes)
                if whole and fits and len(state.filled) == _segments(state.size_bytes or 0):
                    self.pin, self.size_bytes, self.filled = state.pin, state.size_bytes, state.filled
                    self.resumed, self._saved = any(state.filled), tuple(state.filled)
        if self.pin is None or any(self.gap(number)[1] < 0 for number in range(len(self.filled))):
            self.clear()


def _segments(size_bytes: int) -> int:
    return max(1, -(-size_bytes // SEGMENT_BYTES))


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    """Run blocking work. A cancelled caller waits for its end: no thread may outlive the file it uses."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        with contextlib.suppress(BaseException):
            task.result()  # we are leaving: nobody will ask what came of it
        raise
