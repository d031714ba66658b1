"""One or several answers to one request, as a single stream of events. Knows purchases, not HTTP.

Each choice of a request with n > 1 is a purchase of its own: another seed position, another receipt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from market.buyer import Buyer, Order, Purchase, WorkOrder
from market.errors import OctoError, PeerFailed
from market.reception import Outcome
from market.taking import Shown
from market.talk import stop_tasks
from market.values import value

Event = tuple[int, Shown | Outcome]
"""The index of the choice, and a piece of it or, at its end, how it ended."""


@value
class Answer:
    """All of one answer."""

    shown: tuple[Shown, ...]
    outcome: Outcome


@asynccontextmanager
async def open_answers(
    buyer: Buyer, orders: Sequence[Order | WorkOrder], on_progress: Callable[[int], None] | None = None
) -> AsyncIterator[AsyncIterator[Event]]:
    """Buy all `orders` at once. Leaving the block early cancels what still runs. `on_progress` hears how far the
    provider says that it is, in percent.

    The events raise the first OctoError that ended any of the answers.
    """
    async with AsyncExitStack() as stack:
        purchases = [await stack.enter_async_context(buyer.buy(order)) for order in orders]
        if on_progress is not None:
            for purchase in purchases:
                purchase.on_progress = on_progress
        if len(purchases) == 1:
            events = _told(0, purchases[0])
        else:
            queue: asyncio.Queue[Event | Exception] = asyncio.Queue()
            pumps = [asyncio.create_task(_pump(i, purchase, queue)) for i, purchase in enumerate(purchases)]
            stack.push_async_callback(stop_tasks, *pumps)
            events = _merged(queue, len(orders))
        yield await stack.enter_async_context(aclosing(events))


async def gathered(events: AsyncIterator[Event], *, choices: int) -> list[Answer]:
    """All that is said, choice by choice."""
    shown: list[list[Shown]] = [[] for _ in range(choices)]
    outcomes: dict[int, Outcome] = {}
    async for index, item in events:
        if isinstance(item, Outcome):
            outcomes[index] = item
        else:
            shown[index].append(item)
    return [Answer(shown=tuple(shown[index]), outcome=outcomes[index]) for index in range(choices)]


async def _told(index: int, purchase: Purchase) -> AsyncGenerator[Event]:
    async with aclosing(_shown(purchase)) as shown:
        async for item in shown:
            yield index, item
    outcome = purchase.outcome
    if outcome is None:  # the buyer was closed under us
        raise OctoError("the answer was cut off: this node is stopping.")
    if outcome.finish not in ("stop", "length"):
        raise PeerFailed(
            f"the provider ended the answer early after {outcome.tokens_out} tokens; receipt {outcome.receipt}.",
            peer=outcome.provider,
            remote_code=outcome.finish,
        )
    yield index, outcome


async def _shown(purchase: Purchase) -> AsyncGenerator[Shown]:
    if isinstance(purchase.order, WorkOrder):
        async for part in purchase.parts():
            yield part
    else:
        async for delta in purchase.deltas():
            yield delta


async def _pump(index: int, purchase: Purchase, queue: asyncio.Queue[Event | Exception]) -> None:
    try:
        async for event in _told(index, purchase):
            queue.put_nowait(event)
    except Exception as error:  # noqa: BLE001 - raised again by whoever reads the queue
        queue.put_nowait(error)


async def _merged(queue: asyncio.Queue[Event | Exception], running: int) -> AsyncGenerator[Event]:
    while running:
        item = await queue.get()
        if isinstance(item, Exception):
            raise item
        running -= isinstance(item[1], Outcome)
        yield item
