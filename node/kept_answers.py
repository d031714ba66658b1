"""Answers that are told again, on both sides of this node: what it keeps for others, and what others keep for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from market.buyer import Buyer
from market.ports import Clock
from market.talk import stop_tasks
from node.cache_salt import CacheSalt
from node.folder import Folder
from node.response_cache import ResponseCacheFolder, open_response_cache
from node.settings import Settings


class KeptAnswers:
    """`cache` is what this node keeps as a provider, None if it keeps nothing; `salt` makes its keys as a buyer."""

    def __init__(self, cache: ResponseCacheFolder | None, salt: CacheSalt) -> None:
        self.cache = cache
        self.salt = salt

    def facts(self, buyer: Buyer) -> Mapping[str, Any]:
        """Plain data: `keeps` (None: nothing) and `bought`, with their counters since the start."""
        cache = self.cache
        kept = None
        if cache is not None:
            kept = {
                "answers": len(cache),
                "size_bytes": cache.size_bytes,
                "limit_bytes": cache.limit_bytes,
                **asdict(cache.counts),
            }
        return {"keeps": kept, "bought": asdict(buyer.memory.counts)}

    async def forget(self, buyer: Buyer) -> Mapping[str, int | str]:
        """No answer given so far is told again. What we keep for others is thrown away, under "here"; what others
        keep for us they are asked to throw away, and under our new key it is not found. How many each peer had, or
        why it did not."""
        await asyncio.to_thread(self.salt.renew)
        ends = dict(await buyer.forget_answers())
        if self.cache is not None:
            ends["here"] = await self.cache.clear()
        return ends


@asynccontextmanager
async def open_kept_answers(settings: Settings, folder: Folder, clock: Clock) -> AsyncIterator[KeptAnswers]:
    """Raises NodeMisconfigured if what an earlier run left cannot be read."""
    cache = await open_response_cache(
        folder.path("cache", "answers"),
        limit_bytes=settings.engine.response_cache,
        ttl_s=settings.engine.response_cache_ttl_s,
        clock=clock,
    )
    answers = KeptAnswers(cache, CacheSalt(folder))
    sweeping = asyncio.create_task(cache.run(), name="answers") if cache is not None else None
    try:
        yield answers
    finally:
        await stop_tasks(sweeping)
