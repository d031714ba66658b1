"""One task's messages between two peers, asyncio side: implements `market.ports.Conversation`.

Knows a link and its own task; never sockets, and never what the messages mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from market.errors import PeerBrokeProtocol, PeerError, PeerGone, PeerTimedOut
from market.identity import PeerId
from market.message import TYPE_OF, Body, Message, TaskError
from market.ports import Clock
from market.task import TaskId
from p2p.bridge import QueueClosed
from p2p.limits import NetworkLimits
from p2p.streams import Link, Received
from p2p.wire import message_frame

Fault = Literal["gone", "protocol"]


class MeshConversation:
    """Messages that arrived before the link died are still received; then every call raises why it died."""

    def __init__(
        self, link: Link, task: TaskId, clock: Clock, limits: NetworkLimits, forget: Callable[[MeshConversation], None]
    ) -> None:
        self.peer: PeerId = link.peer
        self.task = task
        self._link = link
        self._clock = clock
        self._limits = limits
        self._forget = forget
        self._sent = 0
        self._arrived = 0
        self._unread: deque[Received] = deque()
        self._unread_bytes = 0
        self._waiting: asyncio.Future[None] | None = None
        self._end: tuple[Fault, str] | None = None

    async def send(self, body: Body) -> None:
        """Queue a message for the peer; waits while its link is full. Raises PeerGone; EncodingInvalid over 1 MiB."""
        try:
            await self._link.outbox.ready()
            self._check_open()
            self._put(body)
        except QueueClosed:
            raise self._error() from None

    def dismiss(self, error: TaskError) -> None:
        """Tell the peer why nobody listens any more, if there is room: a peer that floods us does not read either."""
        with suppress(QueueClosed):
            if not self._link.outbox.is_full:
                self._put(error)

    def _put(self, body: Body) -> None:
        # No await in here: the number and the place in the queue are one step.
        message = Message(
            type=TYPE_OF[type(body)], task=self.task, seq=self._sent, sent_ms=self._clock.now_ms(), body=body
        )
        frame = message_frame(message)
        self._link.outbox.put(frame, len(frame))
        self._sent += 1

    async def receive(self, timeout_s: float) -> Message:
        """The next message. Raises PeerTimedOut, PeerGone, or PeerBrokeProtocol."""
        if not self._unread:
            self._check_open()
            if self._waiting is not None:
                raise RuntimeError("two receivers wait on one conversation")
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._waiting
            except TimeoutError:
                if not self._unread:
                    raise PeerTimedOut(f"{self.peer} sent nothing for {timeout_s:g} s.", peer=self.peer) from None
            finally:
                self._waiting = None
            if not self._unread:
                raise self._error()
        received = self._unread.popleft()
        self._unread_bytes -= received.size_bytes
        return received.message

    async def aclose(self) -> None:
        """Stop listening; later messages of the task are dropped. What was sent still goes out."""
        self._forget(self)
        self._unread.clear()
        self.end("gone", "the conversation was closed")

    def take(self, received: Received) -> str | None:
        """A message arrived. None if it was taken, else the stable code of why the conversation ended."""
        if received.message.seq != self._arrived:
            self.end("protocol", f"message {received.message.seq} came where {self._arrived} was due")
            return "out_of_order"
        self._arrived += 1
        self._unread.append(received)
        self._unread_bytes += received.size_bytes
        if len(self._unread) > self._limits.unread_messages or self._unread_bytes > self._limits.unread_bytes:
            self.end("protocol", f"{len(self._unread)} messages ({self._unread_bytes} bytes) lie unread")
            return "too_many_unread"
        self._wake()
        return None

    def end(self, fault: Fault, reason: str) -> None:
        """The first reason counts."""
        if self._end is None:
            self._end = (fault, reason)
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _check_open(self) -> None:
        if self._end is not None:
            raise self._error()

    def _error(self) -> PeerError:
        fault, reason = self._end or ("gone", "the connection closed")
        kind = PeerGone if fault == "gone" else PeerBrokeProtocol
        return kind(f"{self.peer}: {reason}.", peer=self.peer)
