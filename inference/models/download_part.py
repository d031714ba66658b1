"""A download on disk: the bytes so far, a note of which they are, and their hash as far as they reach without a gap.

Lives here: the part and two notes about it. `.now` is cheap and written often: it costs a killed process a moment
of data, and counts only until the machine starts again, because the page cache is gone then. `.state` is written
after its data was synced: a power cut costs seconds. Knows no network. Everything blocks; `in_thread` brings a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import threading
from collections.abc import Callable, Sequence
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
    """`filled`: for each segment how many of its first bytes are there. `pin` and `size_bytes` say of which file;
    `boot` until when the note holds, if its data was not synced."""

    pin: Annotated[str, Field(max_length=256)]
    size_bytes: Annotated[int, Field(ge=0, lt=2**53)]
    filled: Annotated[list[Annotated[int, Field(ge=0, le=SEGMENT_BYTES)]], Field(max_length=1 << 20)]
    boot: Annotated[str, Field(max_length=64)] = ""


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
        self._now = path.with_name(path.name + ".now")
        self._saved: tuple[int, ...] = ()
        self._noted: tuple[int, ...] = ()
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
            self._forget()
            os.ftruncate(self._fd, 0)
            self.pin, self.size_bytes, self.filled = None, None, []
            self._saved = self._noted = ()
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
            if filled != self._saved and not self.streamed:
                with disk_errors(0):
                    os.fdatasync(self._fd)
                    self._write_note(self._state, filled, "")
                    self._now.unlink(missing_ok=True)  # older by now, and it would be believed first
                self._saved = self._noted = filled

    def note(self) -> None:
        """How far we are, for a process that takes over from this one before the next `save`."""
        with self._saving:
            filled = tuple(self.filled)
            if filled != self._noted and not self.streamed:
                with disk_errors(0):
                    self._write_note(self._now, filled, _boot())
                self._noted = filled

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
        self._forget()

    def discard(self) -> None:
        """Not worth keeping."""
        self.path.unlink(missing_ok=True)
        self._forget()

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
        """Go on from a note that fits the part; without one all is begun again."""
        there = os.fstat(self._fd).st_size
        for path, boot in ((self._now, _boot()), (self._state, "")):
            state = _read_note(path)
            if state is not None and state.boot == boot and state.size_bytes == there:
                self.size_bytes, self.filled = state.size_bytes, state.filled
                fits = len(state.filled) == _segments(there) and self._expected.size_bytes in (None, there)
                if fits and all(self.gap(number)[1] >= 0 for number in range(len(self.filled))):
                    self.pin, self.resumed = state.pin, any(state.filled)
                    return
        self.clear()

    def _forget(self) -> None:
        self._state.unlink(missing_ok=True)
        self._now.unlink(missing_ok=True)

    def _write_note(self, path: Path, filled: Sequence[int], boot: str) -> None:
        state = _State(pin=self.pin or "", size_bytes=self.size_bytes or 0, filled=list(filled), boot=boot)
        new = path.with_name(path.name + ".new")
        with new.open("wb") as file:
            file.write(_STATE.dump_json(state))
            if path == self._state:
                file.flush()
                os.fsync(file.fileno())
        new.replace(path)


def _read_note(path: Path) -> _State | None:
    with contextlib.suppress(OSError, ValidationError):
        if path.stat().st_size <= _STATE_LIMIT_BYTES:
            return _STATE.validate_json(path.read_bytes())
    return None


def _boot() -> str:
    """Another one each time that the machine starts (random(4)); a word that no note has, where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return secrets.token_hex(8)


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
