"""Events of some contracts, each at least once, through restarts and reorganisations.

Polls eth_getLogs: every node software has it, subscriptions break with the connection, and the back-fill
after an outage needs it anyway. The last `depth` blocks are read again each time: a log that a
reorganisation took away is told as removed, one that came back in another block as new.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

import structlog

from contracts.chain import Chain, Log
from contracts.faults import ChainRefused
from contracts.keeping import Keeper

log = structlog.get_logger()

SPAN = 2_000

OnLogs = Callable[[Sequence[Log], Sequence[Log]], Awaitable[None]]
"""Takes (new, removed)."""


class Cursor:
    def __init__(
        self,
        chain: Chain,
        keeper: Keeper,
        *,
        addresses: Sequence[bytes],
        topics: Sequence[Sequence[bytes] | None] = (),
        start: int,
        depth: int = 16,
    ) -> None:
        """`start` is the first block that can hold such events: the contracts' own."""
        self._chain = chain
        self._keeper = keeper
        self._addresses = addresses
        self._topics = topics
        self._start = start
        self._depth = depth
        self._read_to: int | None = None
        self._recent: dict[tuple[bytes, int], Log] = {}

    async def step(self, handle: OnLogs) -> int:
        """Read what is new and hand it on; how far it has read. The place is kept once `handle` has returned."""
        if self._read_to is None:
            self._read_to = await self._kept()
        head = (await self._chain.head()).number
        first = max(self._start, min(self._read_to, head) + 1 - self._depth)
        while True:
            last = min(head, first + SPAN - 1)
            await self._span(first, last, handle)
            self._recent = {key: seen for key, seen in self._recent.items() if seen.block > last - self._depth}
            self._read_to = last
            await self._keeper.save(json.dumps({"block": last}).encode())
            if last >= head:
                return last
            first = last + 1

    async def _span(self, first: int, last: int, handle: OnLogs) -> None:
        found = {(seen.block_hash, seen.index): seen for seen in await self._logs(first, last)}
        new = [seen for key, seen in found.items() if key not in self._recent]
        removed = [seen for key, seen in self._recent.items() if seen.block >= first and key not in found]
        if removed:
            log.info("chain_reorganised", host=self._chain.host, logs_removed=len(removed), from_block=first)
        if new or removed:
            await handle(new, removed)
        for seen in removed:
            del self._recent[seen.block_hash, seen.index]
        self._recent.update(found)

    async def _logs(self, first: int, last: int) -> list[Log]:
        """Endpoints limit span, count and time, each with words of its own: halve until it passes."""
        if last < first:
            return []
        try:
            return await self._chain.logs(first, last, addresses=self._addresses, topics=self._topics)
        except ChainRefused:
            if first == last:
                raise
        middle = (first + last) // 2
        return [*await self._logs(first, middle), *await self._logs(middle + 1, last)]

    async def _kept(self) -> int:
        raw = await self._keeper.load()
        try:
            block = json.loads(raw)["block"] if raw else 0
        except (ValueError, KeyError, TypeError, RecursionError):
            block = 0  # all of it can be read again
        return block if type(block) is int and block > 0 else self._start - 1
