"""What need not be made twice, on both sides of this node: the answers that it keeps for others, those that others keep
for it, and the vectors that it bought."""

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
from node.vectors.cache import EmbeddingCache, open_embedding_cache


class KeptAnswers:
    """`cache` is what this node keeps as a provider, `vectors` what it keeps as a buyer, None if it keeps nothing;
    `salt` makes its keys as a buyer."""

    def __init__(self, cache: ResponseCacheFolder | None, salt: CacheSalt, vectors: EmbeddingCache | None) -> None:
        self.cache = cache
        self.salt = salt
        self.vectors = vectors

    def facts(self, buyer: Buyer) -> Mapping[str, Any]:
        """Plain data: `keeps` (None: nothing), `bought`, and `vectors` (None: none), with their counters since the
        start."""
        cache = self.cache
        kept = None
        if cache is not None:
            kept = {
                "answers": len(cache),
                "size_bytes": cache.size_bytes,
                "limit_bytes": cache.limit_bytes,
                **asdict(cache.counts),
            }
        vectors = self.vectors.facts() if self.vectors is not None else None
        return {"keeps": kept, "bought": asdict(buyer.memory.counts), "vectors": vectors}

    def counts(self, buyer: Buyer) -> Mapping[str, int]:
        """By the names of `node.api.metrics`."""
        kept, vectors, bought = self.cache, self.vectors, buyer.memory.counts
        return {
            "cache_asked": bought.asked,
            "cache_told_again": bought.told_again,
            "cache_hits": kept.counts.hits if kept else 0,
            "cache_misses": kept.counts.misses if kept else 0,
            "cache_evicted": kept.counts.evicted if kept else 0,
            "cache_bytes": kept.size_bytes if kept else 0,
            "embedding_cache_hits": vectors.counts.hits if vectors else 0,
            "embedding_cache_misses": vectors.counts.misses if vectors else 0,
            "embedding_cache_evicted": vectors.counts.evicted if vectors else 0,
            "embedding_cache_damaged": vectors.counts.damaged if vectors else 0,
            "embedding_cache_bytes": vectors.size_bytes if vectors else 0,
        }

    async def forget(self, buyer: Buyer) -> Mapping[str, int | str]:
        """No answer given so far is told again. What we keep for others is thrown away, under "here"; what others
        keep for us they are asked to throw away, and under our new key it is not found. How many each peer had, or
        why it did not. Kept vectors are thrown away, under "vectors"."""
        ends: dict[str, int | str] = {}
        if self.vectors is not None:
            ends["vectors"] = await self.vectors.clear()  # first: a full disk keeps nobody from removing a file
        await asyncio.to_thread(self.salt.renew)
        ends.update(await buyer.forget_answers())
        if self.cache is not None:
            ends["here"] = await self.cache.clear()
        return ends

    async def forget_vectors(self) -> int:
        """All users'; how many they were."""
        return await self.vectors.clear() if self.vectors is not None else 0


@asynccontextmanager
async def open_kept_answers(settings: Settings, folder: Folder, clock: Clock) -> AsyncIterator[KeptAnswers]:
    """Raises NodeMisconfigured if what an earlier run left cannot be read."""
    cache = await open_response_cache(
        folder.path("cache", "answers"),
        limit_bytes=settings.engine.response_cache,
        ttl_s=settings.engine.response_cache_ttl_s,
        clock=clock,
    )
    salt = CacheSalt(folder)
    async with open_embedding_cache(
        folder.path("cache", "vectors.db"),
        limit_bytes=settings.routing.embedding_cache,
        shared=settings.routing.embedding_cache_shared,
        secret=salt.current,
    ) as vectors:
        answers = KeptAnswers(cache, salt, vectors)
        sweeping = asyncio.create_task(cache.run(), name="answers") if cache is not None else None
        try:
            yield answers
        finally:
            await stop_tasks(sweeping)
