"""The mesh, with this node in it: a task for our own provider side stays inside the process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from market.identity import PeerId
from market.loopback import LoopConversation, conversation_pair
from market.offer import CheckedOffer, SignedOffer
from market.ports import Clock, Conversation, Network
from market.task import TaskId

log = structlog.get_logger()

Serve = Callable[[Conversation], Awaitable[None]]


class OwnNetwork:
    """Implements `market.ports.Network` around another one; `own_offer` is ours as of now, if we have one."""

    def __init__(
        self, mesh: Network, *, serve: Serve, own_offer: Callable[[], CheckedOffer | None], clock: Clock
    ) -> None:
        self.peer: PeerId = mesh.peer
        self._mesh = mesh
        self._serve = serve
        self._own_offer = own_offer
        self._clock = clock
        self._serving: set[asyncio.Task[None]] = set()

    async def open_conversation(self, peer: PeerId, task: TaskId) -> Conversation:
        if peer != self.peer:
            return await self._mesh.open_conversation(peer, task)
        ours, theirs = conversation_pair(caller=peer, callee=peer, task=task, clock=self._clock)
        serving = asyncio.create_task(self._serve_own(theirs))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        return ours

    async def announce(self, offer: SignedOffer) -> None:
        await self._mesh.announce(offer)

    def offers(self) -> Sequence[CheckedOffer]:
        """Everybody's, ours first."""
        own = self._own_offer()
        return [*([own] if own is not None else []), *self._mesh.offers()]

    def to_buy_from(self) -> Sequence[CheckedOffer]:
        """The offers as our own gateway sees them: what we run ourselves costs us nothing."""
        return [_free(checked) if checked.offer.peer == self.peer else checked for checked in self.offers()]

    async def aclose(self) -> None:
        for serving in list(self._serving):
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve_own(self, conversation: LoopConversation) -> None:
        try:
            await self._serve(conversation)
        except Exception:
            log.exception("own_task_failed", task=conversation.task.hex())
        finally:
            await conversation.aclose()


def _free(own: CheckedOffer) -> CheckedOffer:
    models = tuple(replace(model, price_in=0, price_out=0) for model in own.offer.models)
    return replace(own, offer=replace(own.offer, models=models))
