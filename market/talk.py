"""A conversation that keeps to the table: each message, said or heard, must be allowed where the task stands."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from market.errors import PeerBrokeProtocol, PeerFailed, StepNotAllowed
from market.message import Body, TaskError
from market.negotiation import Dialogue, Side, Stage
from market.ports import Conversation

Kind = TypeVar("Kind")
T = TypeVar("T")


class Talk:
    def __init__(self, conversation: Conversation, side: Side) -> None:
        self.conversation = conversation
        self._side: Side = side
        self._other: Side = "seller" if side == "buyer" else "buyer"
        self._dialogue = Dialogue()

    @property
    def peer(self) -> str:
        return self.conversation.peer

    @property
    def ended(self) -> bool:
        return self._dialogue.stage is Stage.ENDED

    async def say(self, body: Body) -> None:
        self._dialogue = self._dialogue.after(self._side, body)
        await self.conversation.send(body)

    async def hear(self, timeout_s: float) -> Body:
        """The next message, if it is allowed here.

        Raises PeerFailed for ERROR, PeerBrokeProtocol for what may not follow."""
        body = (await self.conversation.receive(timeout_s)).body
        if isinstance(body, TaskError):
            self._dialogue = self._dialogue.after(self._other, body)
            raise PeerFailed(body.message, peer=self.peer, remote_code=body.code, remote_fault=body.fault)
        try:
            self._dialogue = self._dialogue.after(self._other, body)
        except StepNotAllowed as error:
            raise PeerBrokeProtocol(str(error), peer=self.peer) from None
        return body

    async def hear_a(self, kind: type[Kind], timeout_s: float) -> Kind:
        body = await self.hear(timeout_s)
        if not isinstance(body, kind):
            raise PeerBrokeProtocol(f"expected {kind.__name__}, got {body.kind!r}.", peer=self.peer)
        return body


async def stop_tasks(*tasks: asyncio.Task[None] | None) -> None:
    """Cancel and wait: nothing that this task started outlives it."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def whole(step: Coroutine[Any, Any, T]) -> T:
    """Run a step that must not be left half done: a cancellation waits until it is over.

    A voucher that is on disk but not in memory would make the next one a step back.
    """
    running = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
