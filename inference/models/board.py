"""Which leaves are to be fetched next, by whom: runs of neighbours, cut to the speed of whoever takes them.

Lives here: the leaves that wait, the segments that are under way, and taking over from the slow. Pure: time and speeds
arrive as arguments. Knows no bytes and no source.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence

from inference.models.unixfs import Leaf

SHORTEST_BYTES = 4 * 1024 * 1024
LONGEST_BYTES = 64 * 1024 * 1024
_SEGMENT_S = 1.0
"""A request for what its source brings in a second: a round trip of 0.1 s costs a tenth, and little waits behind it."""
_STILL_S = 2.0
_WORTH_S = 0.5
_RIVALS = 2


class Segment:
    """Neighbouring leaves that one request brings, by number. `since` is when it last moved; `flying` are leaves that
    were asked for one by one; `rivals` counts those who fetch the same because this one stands still."""

    def __init__(self, owner: Hashable, numbers: Iterable[int], since: float) -> None:
        self.owner = owner
        self.numbers = deque(numbers)
        self.flying: set[int] = set()
        self.since = since
        self.rivals = 0


class Board:
    """`done` has a byte for each leaf, which others set while we look on. `streams`: how many segments one owner has
    under way."""

    def __init__(self, leaves: Sequence[Leaf], done: Sequence[int], *, streams: int = 1) -> None:
        self.streams = streams
        self._leaves = leaves
        self._done = done
        self._waiting = deque(number for number, here in enumerate(done) if not here)
        self._left = self._bytes(self._waiting)
        self._active: list[Segment] = []

    def take(self, owner: Hashable, speed: float, now: float, *, speeds: Mapping[Hashable, float]) -> Segment | None:
        """The next segment for `owner`, who brings `speed` bytes per second in all (0: nobody knows yet).

        If nothing waits, a part of what another will take long for, or all that stands still. None: come back later.
        """
        numbers = self._next(speed)
        if not numbers:
            numbers = self._taken_over(owner, speed, now, speeds)
        if not numbers:
            return None
        segment = Segment(owner, numbers, now)
        self._active.append(segment)
        return segment

    def end(self, segment: Segment) -> None:
        """A request is over; what it did not bring, and nobody else is bringing, waits again, before all else."""
        self._active.remove(segment)
        back = {number for number in (*segment.flying, *segment.numbers) if not self._done[number]}
        if back:
            back -= {number for other in self._active for number in (*other.flying, *other.numbers)}
        self._waiting.extendleft(sorted(back, reverse=True))
        self._left += self._bytes(back)

    def _next(self, speed: float) -> list[int]:
        """A second's worth; less towards the end, so that all finish together."""
        streams = max(len(self._active), self.streams)
        limit = max(SHORTEST_BYTES, min(LONGEST_BYTES, speed / self.streams * _SEGMENT_S, self._left / (2 * streams)))
        numbers: list[int] = []
        held = 0
        while self._waiting:
            number = self._waiting[0]
            length = self._leaves[number].length
            if not self._done[number]:
                if numbers and (number != numbers[-1] + 1 or held + length > limit):
                    break
                numbers.append(number)
                held += length
            self._waiting.popleft()
            self._left -= length
        return numbers

    def _taken_over(self, owner: Hashable, speed: float, now: float, speeds: Mapping[Hashable, float]) -> list[int]:
        slowest: tuple[float, float, Segment] | None = None
        for segment in self._active:
            if segment.owner is owner:
                continue
            if now - segment.since > _STILL_S:
                if segment.rivals < _RIVALS and (segment.flying or segment.numbers):
                    # It may still deliver: both go on, for two slow sources that stole from each other would
                    # never finish a leaf.
                    segment.rivals += 1
                    return sorted({*segment.flying, *segment.numbers})
                continue
            own = speeds.get(segment.owner, 0.0) / self.streams
            left_s = self._bytes(segment.numbers) / own if own > 0 and len(segment.numbers) > 1 else 0.0
            if left_s > _WORTH_S and (slowest is None or left_s > slowest[0]):
                slowest = left_s, own, segment
        if slowest is None:
            return []
        _, own, segment = slowest
        mine = speed / self.streams or own
        count = min(len(segment.numbers) - 1, int(len(segment.numbers) * mine / (mine + own)))
        return list(reversed([segment.numbers.pop() for _ in range(count)]))

    def _bytes(self, numbers: Iterable[int]) -> int:
        return sum(self._leaves[number].length for number in numbers)
