"""How far a long step has come, for whoever shows a bar. Knows nobody who shows one.

Lives here: the event, and the meter that turns bytes into rates and decides when an event is due.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import field

from market.values import value

_EVENT_EVERY_S = 0.1
_MEMORY_S = 3.0
_SHORTEST_S = 0.05
"""A rate over less time than this says more about buffers than about a source."""


@value
class Progress:
    """`what` is a CID or a reference; `total_bytes` 0 if nobody knows. `sources` says who sends how many bytes a
    second; it is empty while what was on disk already is read. `eta_s` is None if it cannot be told."""

    what: str
    done_bytes: int
    total_bytes: int
    rate_bytes_per_s: float = 0.0
    eta_s: float | None = None
    sources: Mapping[str, float] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]


def quiet(progress: Progress) -> None:
    """For callers that show nothing."""


class Rate:
    """Bytes per second, the last few seconds weighing most (exponentially, 3 s); right from the first moment on."""

    def __init__(self, now: float) -> None:
        self._since = self._last = now
        self._bytes = 0.0

    def add(self, count: int, now: float) -> None:
        self._bytes = self._bytes * math.exp((self._last - now) / _MEMORY_S) + count
        self._last = now

    def per_s(self, now: float) -> float:
        lived = max(now - self._since, _SHORTEST_S)
        left = self._bytes * math.exp((self._last - now) / _MEMORY_S)
        return left / (_MEMORY_S * -math.expm1(-lived / _MEMORY_S))


class Meter:
    """Tells `tell` about ten times a second how far a pull has come. `clock` gives seconds and never goes back,
    `speeds` each source's bytes per second."""

    def __init__(
        self,
        what: str,
        total_bytes: int,
        tell: OnProgress,
        clock: Callable[[], float],
        speeds: Callable[[], Mapping[str, float]],
    ) -> None:
        self._what = what
        self._total_bytes = total_bytes
        self._tell = tell
        self._clock = clock
        self._speeds = speeds
        self._rate = Rate(clock())
        self._told = -math.inf

    def moved(self, count: int, done_bytes: int) -> None:
        """`count` verified bytes came; `done_bytes` are there now."""
        now = self._clock()
        self._rate.add(count, now)
        if now - self._told >= _EVENT_EVERY_S:
            self.say(done_bytes)

    def say(self, done_bytes: int) -> None:
        """An event now, due or not: the first and the last one are never left out."""
        now = self._told = self._clock()
        rate, left = self._rate.per_s(now), self._total_bytes - done_bytes
        self._tell(
            Progress(
                what=self._what,
                done_bytes=done_bytes,
                total_bytes=self._total_bytes,
                rate_bytes_per_s=rate,
                eta_s=left / rate if rate >= 1 else None if left else 0.0,
                sources=self._speeds(),
            )
        )
