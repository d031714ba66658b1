"""Channels that we are about to open, written down before the transaction is sent.

The terms hold a random salt: if the process dies after the transaction and before the purse wrote the channel
down, nobody would know any more which channel the deposit lies in. With this it is found, and asked back.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated

import structlog
from pydantic import Field

from contracts.keeping import Keeper
from market.errors import OctoError
from market.money import Amount
from market.values import decode, encode, value
from market.voucher import ChannelTerms

log = structlog.get_logger()

HANDED_S = 60.0


@value
class PlannedOpening:
    terms: ChannelTerms
    deposit: Amount
    since_ms: Annotated[int, Field(ge=0, lt=2**53)]


class Openings:
    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._planned: dict[bytes, PlannedOpening] = {}
        self._under_way: dict[bytes, int] = {}
        self._handed: dict[bytes, float] = {}
        self._writing = asyncio.Lock()

    async def load(self) -> None:
        raw = await self._keeper.load()
        try:
            for item in json.loads(raw)["openings"] if raw else ():
                planned = decode(PlannedOpening, bytes.fromhex(item))
                self._planned[planned.terms.channel_id()] = planned
        except (ValueError, KeyError, TypeError, RecursionError, OctoError) as error:
            log.warning("openings_unreadable", why=repr(error)[:200])

    @asynccontextmanager
    async def making(self, terms: ChannelTerms, deposit: int, *, now_ms: int) -> AsyncIterator[None]:
        """On the disk before the body runs, which opens the channel."""
        channel_id = terms.channel_id()
        self._under_way[channel_id] = deposit
        try:
            self._planned[channel_id] = PlannedOpening(terms=terms, deposit=deposit, since_ms=now_ms)
            await self._save()
            yield
            self._handed[channel_id] = time.monotonic()
        finally:
            del self._under_way[channel_id]

    def under_way(self) -> int:
        """The sum of deposits whose transactions are not confirmed yet."""
        return sum(self._under_way.values())

    def planned(self) -> Mapping[bytes, PlannedOpening]:
        return dict(self._planned)

    def in_hand(self, channel_id: bytes) -> bool:
        """Whether someone in this process is opening it, or has just been handed it and may be writing it down."""
        handed = self._handed.get(channel_id)
        return channel_id in self._under_way or (handed is not None and time.monotonic() - handed < HANDED_S)

    async def forget(self, channel_id: bytes) -> None:
        self._handed.pop(channel_id, None)
        if self._planned.pop(channel_id, None) is not None:
            await self._save()

    async def _save(self) -> None:
        async with self._writing:
            items = [encode(PlannedOpening, planned).hex() for planned in self._planned.values()]
            await self._keeper.save(json.dumps({"openings": items}).encode())
