"""One task in a process of its own, forked from the engine's child: what it breaks, the next task does not see.

Lives here: the fork, the pipe between, its limits. For libraries in C that keep state from one text to the next (the
same text would not sound the same) or that a text may crash. The fork loses the line to the node; it may open the
library's files until it calls `Sink.close_the_door`, then nothing more.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

from inference.isolation import die_with_parent
from inference.work.no_sockets import forbid_sockets

CPU_LIMIT_S: Final = 120
_CHUNK: Final = struct.Struct("<BI")
_CHUNK_LIMIT_BYTES: Final = 64 * 1024 * 1024
_READ_BYTES: Final = 1 << 16
_READS_LIMIT: Final = 64
"""Then it is time for a word to the node, however fast the fork is."""
_POLL_MS: Final = 20


class ForkFailed(Exception):
    """It ended in another way than by returning; the text says how."""


class Sink:
    """The fork's end."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def put(self, data: bytes, progress: int = 0) -> None:
        """Blocks until there is room: nothing piles up. `progress` is percent, 0 to 100."""
        left = memoryview(_CHUNK.pack(progress, len(data)) + data)
        while left:
            left = left[os.write(self._handle, left) :]

    def close_the_door(self) -> None:
        """From here on nothing can be opened: the next bytes are a stranger's."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))

    def forbid_sockets(self) -> None:
        """For a library that opens files as it goes: it can open what its process may read, and nothing else."""
        forbid_sockets()


@dataclass(frozen=True, slots=True)
class Chunk:
    data: bytes
    progress: int


class Forks:
    """Make it before the door is closed: its pipe serves one fork after the other."""

    def __init__(self, *, cpu_limit_s: int = CPU_LIMIT_S) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self._cpu_limit_s = cpu_limit_s
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)

    @contextmanager
    def run(self, work: Callable[[Sink], None]) -> Iterator[Iterator[Chunk | None]]:
        """Chunks as `work` puts them, None when there was none for 20 ms; leaving early ends the fork.

        Iterating raises ForkFailed.
        """
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._live(parent, work)
        life = _Life(pid)
        try:
            yield self._chunks(life)
        finally:
            life.end()
            self._take()

    def _live(self, parent: int, work: Callable[[Sink], None]) -> NoReturn:
        status = 1
        try:
            die_with_parent()
            if os.getppid() == parent:  # else it died before die_with_parent could see
                for handle in (0, 1, 2, self._read):
                    os.close(handle)
                resource.setrlimit(resource.RLIMIT_CPU, (self._cpu_limit_s, self._cpu_limit_s))
                work(Sink(self._write))
                status = 0
        finally:
            os._exit(status)

    def _chunks(self, life: _Life) -> Iterator[Chunk | None]:
        buffer = bytearray()
        while True:
            over = life.is_over()  # asked first: what it has put is then all in the pipe
            data = self._take()
            buffer += data
            while (size := _size_of_first(buffer)) <= len(buffer):
                yield Chunk(bytes(buffer[_CHUNK.size : size]), min(buffer[0], 100))
                del buffer[:size]
            if over:
                break
            if not data and not self._poll.poll(_POLL_MS):
                yield None
        if life.status != 0 or buffer:
            raise ForkFailed(life.how)

    def _take(self) -> bytes:
        """All that is in the pipe."""
        parts = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._read, _READ_BYTES):
                parts.append(data)
                if len(parts) == _READS_LIMIT:
                    break
        return b"".join(parts)


class _Life:
    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.status: int | None = None

    @property
    def how(self) -> str:
        status = self.status or 0
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def is_over(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def end(self) -> None:
        if not self.is_over():
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def _size_of_first(buffer: bytearray) -> int:
    """Raises ForkFailed for what nobody of ours would put."""
    if len(buffer) < _CHUNK.size:
        return _CHUNK.size
    _, size = _CHUNK.unpack_from(buffer)
    if size > _CHUNK_LIMIT_BYTES:
        raise ForkFailed("a chunk that cannot be")
    return _CHUNK.size + int(size)
