"""What the chain last said of the channels that we have to do with; asked again when an event touches one.

So a task that starts waits for no chain: it looks here. Reading the whole state anew, rather than adding events up,
makes a reorganisation harmless: whatever happened, the next look is right.
"""

from __future__ import annotations

from collections.abc import Iterable

from contracts.channels import Channels, OnChain

_AT_ONCE = 200


class Views:
    """`confirmations`: how deep a block must lie before what it says of a deposit counts; 1 is the newest."""

    def __init__(self, channels: Channels, *, confirmations: int) -> None:
        self._channels = channels
        self._confirmations = confirmations
        self._known: dict[bytes, OnChain] = {}

    def known(self, channel_id: bytes) -> OnChain | None:
        return self._known.get(channel_id)

    async def look(self, channel_id: bytes) -> OnChain:
        """As of the newest block that counts. Raises ChainAway."""
        (found,) = await self.look_at([channel_id])
        return found

    async def look_at(self, channel_ids: Iterable[bytes]) -> list[OnChain]:
        at = None
        if self._confirmations > 1:
            head = await self._channels.contract.chain.head()
            at = max(0, head.number + 1 - self._confirmations)
        return await self._read(list(channel_ids), at)

    async def look_newest(self, channel_ids: Iterable[bytes]) -> list[OnChain]:
        """As of the newest block, counted or not: for what one must not do twice, or too late."""
        return await self._read(list(channel_ids), None)

    async def _read(self, ids: list[bytes], at: int | None) -> list[OnChain]:
        found: list[OnChain] = []
        for first in range(0, len(ids), _AT_ONCE):
            found += await self._channels.channels(ids[first : first + _AT_ONCE], at=at)
        self._known.update(zip(ids, found, strict=True))
        return found
