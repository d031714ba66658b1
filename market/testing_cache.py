"""A double for a seller's cache of answers, and the kit that a real one runs."""

from __future__ import annotations

from dataclasses import replace

from market.kept import Kept
from market.ports import ResponseCache


class MemoryResponseCache:
    """Keeps everything, until told otherwise."""

    def __init__(self) -> None:
        self.kept: dict[bytes, Kept] = {}
        self.wrongs = 0

    async def find(self, place: bytes) -> Kept | None:
        return self.kept.get(place)

    async def keep(self, kept: Kept) -> None:
        self.kept[kept.place()] = kept

    async def wrong(self, place: bytes) -> None:
        self.wrongs += 1
        self.kept.pop(place, None)

    async def forget(self, owner: str) -> int:
        gone = [place for place, kept in self.kept.items() if kept.owner == owner]
        for place in gone:
            del self.kept[place]
        return len(gone)


async def check_response_cache(cache: ResponseCache, kept: Kept) -> None:
    """Run every rule of the port with an entry that fits. Raises AssertionError naming the rule."""
    place = kept.place()
    assert await cache.find(place) is None, "nothing is there before"
    await cache.keep(kept)
    assert await cache.find(place) == kept, "what was kept is found, whole"
    again = replace(kept, kept_ms=kept.kept_ms - 1)
    await cache.keep(again)
    assert await cache.find(place) == again, "the newer one takes its place"
    await cache.wrong(place)
    assert await cache.find(place) is None, "what was wrong is gone"
    await cache.keep(kept)
    assert await cache.forget("somebody else") == 0, "nobody throws away what another asked for"
    assert await cache.find(place) == kept, "nobody throws away what another asked for"
    assert await cache.forget(kept.owner) == 1, "who asked may have it thrown away"
    assert await cache.find(place) is None, "what was thrown away is gone"
