"""Sellers that keep answers, and what to ask them so that they may."""

from __future__ import annotations

import asyncio

from shop import MODEL

from market.buyer import WorkOrder
from market.task import Privacy, Sampling
from market.testing_cache import MemoryResponseCache
from market.work import EmbedRequest

ANSWER = "Hello from the engine."
GREEDY = Sampling(seed=bytes(32), temperature_micro=0)
PUBLIC = {"privacy": Privacy.PUBLIC, "sampling": GREEDY}
EMBED = WorkOrder(model=MODEL, request=EmbedRequest(inputs=("one", "two")), privacy=Privacy.PUBLIC)


def keeper(shop, name="bob", **options):
    """A seller that keeps answers and tells them again for a tenth."""
    options.setdefault("cache", MemoryResponseCache())
    options.setdefault("cached_percent", 10)
    return shop.seller(name, **options)


async def settled(seller, kept=None):
    async with asyncio.timeout(60):
        while kept is not None and len(seller.cache.kept) < kept:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)


async def ask_twice(bob, first, second, **order):
    await first.ask(**{**PUBLIC, **order})
    await settled(bob)
    generated = bob.engine.generated
    text, purchase = await second.ask(**{**PUBLIC, **order})
    await settled(bob)
    return text, purchase.outcome, bob.engine.generated - generated


async def bought(buyer, order=EMBED):
    async with buyer.buyer.buy(order) as purchase:
        parts = [part.data async for part in purchase.parts()]
    return parts, purchase.outcome
