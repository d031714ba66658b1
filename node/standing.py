"""What this node remembers of each provider: how fast, how reliable, who took a prepayment and stayed silent.

Implements `market.ports.Standing` on the store. The name of a fact says how it adds up:

    …_ms, …_per_s, …_rate    a moving average
    success, failure         counted, and `failure_rate` is their moving average, which fades with time
    silent                   counted, and fades over days, and a little with each success
    anything else            a sum

Answers come from memory; changes reach the disk every few seconds, so a kill forgets little.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import structlog

from market.errors import OctoError
from market.identity import PeerId
from market.ports import Clock
from node.store import Store

PEERS_LIMIT = 4096
"""New peer ids cost nothing: beyond this the one unheard of for longest is forgotten."""

AVERAGE_WEIGHT = 0.2
FAILURE_HALF_LIFE_MS = 10 * 60 * 1000
"""A peer that failed gets another chance: without fading, routing would never ask it again and never learn."""

SILENT_HALF_LIFE_MS = 24 * 3600 * 1000
"""A provider that kept three prepayments is left alone for a day, not for ever."""

FORGIVENESS = 0.95
"""A provider that was killed three times between hundreds of answers is no thief. Who keeps every tenth prepayment is
one, and stays over the buyer's limit of 2.5: 1 / (1 - 0.95^9) = 2.7."""

_FADES = {"failure_rate": FAILURE_HALF_LIFE_MS, "silent": SILENT_HALF_LIFE_MS}
_AVERAGED = ("_ms", "_per_s", "_rate")
_NOTED = "noted_at_ms"
_log = structlog.get_logger()


class StoredStanding:
    """Use `open_standing`."""

    def __init__(self, store: Store, clock: Clock, facts: Mapping[str, Mapping[str, float]]) -> None:
        self._store = store
        self._clock = clock
        self._facts = OrderedDict((peer, dict(known)) for peer, known in facts.items())
        self._changed: set[str] = set()

    def of(self, peer: PeerId) -> Mapping[str, float]:
        """Facts by name; empty for a peer that we never dealt with."""
        known = self._facts.get(peer)
        if known is None:
            return {}
        return self._faded({name: fact for name, fact in known.items() if name != _NOTED}, since_ms=known[_NOTED])

    def note(self, peer: PeerId, **facts: float) -> None:
        """Add what was seen of a peer: `note(peer, first_token_ms=80, success=1)`; NaN and infinity are dropped."""
        known = self._facts.setdefault(peer, {})
        known.update(self._faded(known, since_ms=known.get(_NOTED, 0)))
        for name, fact in facts.items():
            if not math.isfinite(fact) or name == _NOTED:
                continue
            if name in ("success", "failure") and fact:
                self._average(known, "failure_rate", float(name == "failure"), start=0.0)
            if name == "success" and fact and known.get("silent"):
                known["silent"] *= FORGIVENESS
            if name.endswith(_AVERAGED):
                self._average(known, name, fact, start=fact)
            else:
                known[name] = known.get(name, 0.0) + fact
        known[_NOTED] = float(self._clock.now_ms())
        self._facts.move_to_end(peer)
        self._changed.add(peer)
        while len(self._facts) > PEERS_LIMIT:
            forgotten, _ = self._facts.popitem(last=False)
            self._changed.add(forgotten)

    async def flush(self) -> None:
        """Write what changed since the last flush."""
        changed, self._changed = self._changed, set()
        if not changed:
            return
        try:
            await self._store.keep_standing({peer: self._facts.get(peer) for peer in changed})
        except BaseException:
            self._changed |= changed  # kept for the next flush
            raise

    @staticmethod
    def _average(known: dict[str, float], name: str, fact: float, *, start: float) -> None:
        before = known.get(name, start)
        known[name] = before + AVERAGE_WEIGHT * (fact - before)

    def _faded(self, known: dict[str, float], *, since_ms: float) -> dict[str, float]:
        age_ms = max(0.0, self._clock.now_ms() - since_ms)
        fading = {name: half_life for name, half_life in _FADES.items() if known.get(name)}
        return {**known, **{name: known[name] * 0.5 ** (age_ms / half_life) for name, half_life in fading.items()}}


@asynccontextmanager
async def open_standing(store: Store, clock: Clock, *, flush_s: float = 5.0) -> AsyncIterator[StoredStanding]:
    """Read what is known of every peer; written back every `flush_s` seconds and at the end of the block."""
    known = await store.standing()
    oldest_first = sorted(known.items(), key=lambda entry: entry[1].get(_NOTED, 0.0))
    standing = StoredStanding(store, clock, {p: {_NOTED: 0.0, **facts} for p, facts in oldest_first})
    flushing = asyncio.create_task(_flush_forever(standing, flush_s), name="octo-standing-flush")
    try:
        yield standing
    finally:
        flushing.cancel()
        with suppress(asyncio.CancelledError):
            await flushing
        await _flush(standing)


async def _flush_forever(standing: StoredStanding, flush_s: float) -> None:
    while True:
        await asyncio.sleep(flush_s)
        await _flush(standing)


async def _flush(standing: StoredStanding) -> None:
    try:
        await standing.flush()
    except OctoError as error:  # a full disk must not take the node down over a memory of speeds
        _log.warning("standing_not_kept", reason=error.message)
