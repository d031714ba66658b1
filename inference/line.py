"""A child process's own side: its end of a socket pair as standard input, and how its life begins and ends.

Lives here: the line to the node, and what every child does before and after it loads its model. Must not know: any
engine, jobs.

A child ends when its parent does: by the end of the stream, by SIGKILL from the kernel (PR_SET_PDEATHSIG) if it is in
the middle of a call. One thread speaks, so a heartbeat means that the loop really turns, or that a call is not late
(`inference.work.onnx_session`).
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from inference.frames import Dialect, F, Frame, FrameBuffer, Limits, S, pack
from inference.isolation import die_with_parent
from market.errors import OctoError
from market.values import from_plain, to_plain

HEARTBEAT_S: Final = 0.25
_READ_BYTES: Final = 1 << 16
"""Python sets so much aside for each read, however little comes: 2 us; for 256 KiB it is 50 us."""
_INHERITED_LIMIT: Final = 4096


class Gone(BaseException):
    """The parent closed its end. Nothing may catch it by `except Exception`."""


class Line:
    """Our end of the socket pair, blocking for writes: if the node is stuck, so are we, and nothing piles up."""

    def __init__(self, end: socket.socket, *, heard: Limits, said: Limits) -> None:
        self._end = end
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)
        self._buffer = FrameBuffer(heard)
        self._said = said
        self._sent_at = 0.0

    def receive(self, timeout_s: float | None) -> list[Frame]:
        """Frames that have become whole; waits up to `timeout_s` for bytes, for ever if None."""
        if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            return []
        try:
            data = self._end.recv(_READ_BYTES)
        except ConnectionResetError:
            raise Gone from None
        if not data:
            raise Gone
        return list(self._buffer.feed(data))

    def send(self, message: Sequence[Any], parts: Sequence[bytes] = ()) -> None:
        """Raises EncodingInvalid over a limit."""
        data = pack(message, self._said, parts)
        try:
            self._end.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone from None
        self._sent_at = time.monotonic()

    def heartbeat(self) -> None:
        """If it is time for one."""
        if time.monotonic() - self._sent_at >= HEARTBEAT_S:
            self.send(["alive"])


def live(dialect: Dialect[S, F], open_model: Callable[[S, Line], tuple[F, Callable[[], None]]]) -> int:
    """The whole life of a child, and its exit status. `open_model` gives up this process's rights and loads the model;
    it returns the facts, and what then serves the line until the parent is gone. It may raise OctoError."""
    die_with_parent()
    os.closerange(3, _INHERITED_LIMIT)  # uvloop leaves second copies of 0, 1 and 2
    line = Line(socket.socket(fileno=0), heard=dialect.to_child, said=dialect.to_node)
    try:
        frames: list[Frame] = []
        while not frames:
            frames = line.receive(None)
        settings = from_plain(dialect.settings, frames[0].message[0])
        if os.getppid() != settings.parent:  # it died before die_with_parent could see
            return 0
        try:
            facts, serve = open_model(settings, line)
        except OctoError as error:
            line.send(["fail", error.code, error.message, error.next_step])
            return 1
        line.send(["ready", to_plain(dialect.facts, facts)])
        serve()
    except Gone:
        pass
    return 0
