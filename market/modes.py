"""What the three modes mean on either side: whose turn it is, how long the line may be, how long who waits.

    realtime    streamed; goes before the others at every provider
    batch       seconds matter less than the price
    async       nobody waits in front of it; cheapest, last

Pure numbers; `market.seller` and `market.reception` act on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from market.task import Mode
from market.values import value

_RANK = {Mode.REALTIME: 0, Mode.BATCH: 1, Mode.ASYNC: 2}


def priority_of(mode: Mode, *, known: bool) -> int:
    """A `market.ports.Job`'s priority: modes in order, within one those who have paid before strangers."""
    return 2 * _RANK[mode] + (not known)


@value
class WaitTerms:
    """Of one mode at a seller: so many tasks may have been accepted and had nothing yet; a task that could not begin
    within `deadline_s` is given up (0: never)."""

    limit: int
    deadline_s: float


WAIT_TERMS: Mapping[Mode, WaitTerms] = {
    Mode.REALTIME: WaitTerms(limit=64, deadline_s=60.0),
    Mode.BATCH: WaitTerms(limit=256, deadline_s=1800.0),
    Mode.ASYNC: WaitTerms(limit=512, deadline_s=0.0),
}
"""Together they stay below the 1,024 jobs that an engine lets wait. Each costs a megabyte of prompt at worst."""

PATIENCE_S: Mapping[Mode, float] = {Mode.REALTIME: 300.0, Mode.BATCH: 3600.0, Mode.ASYNC: 24 * 3600.0}
"""How long a buyer takes signs of life for an answer: a provider that only ever says "queued" holds a prepayment."""


class Line:
    """The tasks that a seller accepted and that have had nothing yet, by model and mode."""

    def __init__(self) -> None:
        self._waiting: Counter[tuple[str, Mode]] = Counter()

    def waiting(self, model: str, mode: Mode) -> int:
        return self._waiting[model, mode]

    @contextmanager
    def stand(self, model: str, mode: Mode) -> Iterator[Place]:
        """A place in the line, until `Place.leave` or the end of the block."""
        place = Place(self._waiting, (model, mode))
        try:
            yield place
        finally:
            place.leave()


class Place:
    def __init__(self, waiting: Counter[tuple[str, Mode]], where: tuple[str, Mode]) -> None:
        self._waiting = waiting
        self._where = where
        self._stands = True
        waiting[where] += 1

    def leave(self) -> None:
        """Twice is once."""
        if self._stands:
            self._waiting[self._where] -= 1
            self._waiting += Counter()  # forgets what stands at 0
        self._stands = False
