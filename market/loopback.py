"""A conversation inside one process: a node's own gateway talking to its own provider side."""

from __future__ import annotations

import asyncio

from market.errors import PeerGone, PeerTimedOut
from market.identity import PeerId
from market.message import TYPE_OF, Body, Message
from market.ports import Clock
from market.task import TaskId


class LoopConversation:
    """One end. Its peer may be itself; closing either end is seen at the other once the queue is read."""

    def __init__(self, peer: PeerId, task: TaskId, clock: Clock) -> None:
        self.peer = peer
        self.task = task
        self._clock = clock
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._other: LoopConversation | None = None
        self._seq = 0

    async def send(self, body: Body) -> None:
        if self._other is None:
            raise PeerGone("the conversation is over.", peer=self.peer)
        message = Message(
            type=TYPE_OF[type(body)], task=self.task, seq=self._seq, sent_ms=self._clock.now_ms(), body=body
        )
        self._seq += 1
        self._other._inbox.put_nowait(message)

    async def receive(self, timeout_s: float) -> Message:
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._inbox.get()
        except TimeoutError:
            raise PeerTimedOut(f"nothing came for {timeout_s:g} s.", peer=self.peer) from None
        if message is None:
            self._inbox.put_nowait(None)
            raise PeerGone("the other side closed the conversation.", peer=self.peer)
        return message

    async def aclose(self) -> None:
        other, self._other = self._other, None
        if other is not None:
            other._inbox.put_nowait(None)
            other._other = None


def conversation_pair(
    *, caller: PeerId, callee: PeerId, task: TaskId, clock: Clock
) -> tuple[LoopConversation, LoopConversation]:
    """The caller's end and the callee's end of one conversation."""
    ours, theirs = LoopConversation(callee, task, clock), LoopConversation(caller, task, clock)
    ours._other, theirs._other = theirs, ours
    return ours, theirs
