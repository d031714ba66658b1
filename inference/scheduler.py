"""Who decodes next: the pure half of continuous batching.

Lives here: slots, turns, pausing, the order of waiting jobs, the shape of a decode call. Decides from
numbers alone and touches nothing; `inference.batch` acts. Must not know: llama.cpp, tokens' values, time.

Canonical chunks. A prompt is prefilled 64 rows at a time counted from position 0, each chunk in a call
of its own; rows that decode share calls of their own. Measured: then a job's logits are the same to the
bit whatever else runs; a chunk of 64 mixed with other rows agreed in 0 of 60 steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

CHUNK: Final = 64
SLOTS_LIMIT: Final = 60
"""A call of 64 or more rows takes another attention path, and 4 rows may be padding."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompt rows [start, stop) of `job`; `last` if its first token comes of it."""

    job: int
    slot: int
    start: int
    stop: int
    last: bool


@dataclass(frozen=True, slots=True)
class Decode:
    """One token each for these jobs, by slot."""

    jobs: tuple[int, ...]


@dataclass(slots=True)
class Seat:
    """A job's place in the batch. `read` is how many tokens its consumer has taken."""

    job: int
    slot: int
    prompt: int
    priority: int
    turn: int
    prefilled: int = 0
    emitted: int = 0
    read: int = 0


class Schedule:
    """Which of the jobs in the batch does what next.

    While tokens flow, prefill and decode alternate, so a newcomer costs a running stream at most one
    chunk (76 ms for the default model) between two tokens. Prompts take turns chunk by chunk, those of
    a lower priority number first: a short prompt never waits for all of a long one.
    """

    def __init__(self, *, slots: int, window: int) -> None:
        self._window = window
        self._free = list(range(slots))
        self._seats: dict[int, Seat] = {}
        self._turn = 0
        self._prefilled_last = False

    def __len__(self) -> int:
        return len(self._seats)

    def __contains__(self, job: int) -> bool:
        return job in self._seats

    def seat(self, job: int) -> Seat:
        return self._seats[job]

    def join(self, job: int, *, prompt: int, priority: int = 0) -> Seat:
        """Take the lowest free slot (neighbours decode cheapest); the caller knows there is one."""
        slot = heapq.heappop(self._free)
        self._seats[job] = Seat(job, slot, prompt, priority, self._next_turn())
        return self._seats[job]

    def leave(self, job: int) -> Seat:
        seat = self._seats.pop(job)
        heapq.heappush(self._free, seat.slot)
        return seat

    def acknowledge(self, job: int, read: int) -> None:
        """The consumer has taken `read` tokens in all. Old and unknown news changes nothing."""
        seat = self._seats.get(job)
        if seat is not None:
            seat.read = min(max(seat.read, read), seat.emitted)

    def next_step(self) -> Prefill | Decode | None:
        """None when nothing can run: no jobs, or every consumer is a whole window behind."""
        decode = self._decode()
        prefill = None if decode and self._prefilled_last else self._prefill()
        self._prefilled_last = prefill is not None
        return prefill or decode

    def can_step(self) -> bool:
        return any(seat.prefilled < seat.prompt or self._flows(seat) for seat in self._seats.values())

    def _prefill(self) -> Prefill | None:
        pending = [seat for seat in self._seats.values() if seat.prefilled < seat.prompt]
        if not pending:
            return None
        seat = min(pending, key=lambda seat: (seat.priority, seat.turn))
        seat.turn = self._next_turn()
        start, stop = seat.prefilled, min(seat.prefilled + CHUNK, seat.prompt)
        seat.prefilled = stop
        return Prefill(seat.job, seat.slot, start, stop, last=stop == seat.prompt)

    def _decode(self) -> Decode | None:
        ready = [seat for seat in self._seats.values() if self._flows(seat)]
        if not ready:
            return None
        return Decode(tuple(seat.job for seat in sorted(ready, key=lambda seat: seat.slot)))

    def _flows(self, seat: Seat) -> bool:
        return seat.prefilled == seat.prompt and seat.emitted - seat.read < self._window

    def _next_turn(self) -> int:
        self._turn += 1
        return self._turn


class Waiting(Generic[T]):
    """Jobs that found no slot: lower priority number first, then first come, first served."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, T]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, item: T, *, priority: int) -> None:
        self._count += 1
        heapq.heappush(self._heap, (priority, self._count, item))

    def pop(self) -> T:
        return heapq.heappop(self._heap)[2]

    def discard(self, item: T) -> None:
        self._heap = [entry for entry in self._heap if entry[2] is not item]
        heapq.heapify(self._heap)

    def drain(self) -> Iterable[T]:
        while self._heap:
            yield self.pop()


def layout(active: Sequence[int], *, slots: int, threads: int) -> tuple[int, ...]:
    """The slots of one decode call, in row order: `active` (sorted) and, between and beside them, padding.

    llama.cpp computes rows together only while their sequence numbers rise by one; a gap splits the call
    in two, each of which reads all weights. So gaps are filled with rows whose result nobody reads and
    whose key and value are dropped afterwards. Measured on the default model, one thread, ms a call:
    1 row 3.9, 2 10.0, 3 13.9, 4 12.8, 7 24.7, 8 18.9, 15 38.5, 16 24.3: its kernels want multiples of
    four, and few rows go faster one by one (which a falling order brings about).
    With several threads a lone row takes a path that splits the context over threads and gives other
    bits (1 of 51 equal at 400 tokens), so there at least two rows go together. All of these shapes
    were compared and give the same bits.
    """
    low, high = active[0], active[-1]
    rows = high - low + 1
    if threads == 1 and len(active) <= _worth(rows):
        return tuple(reversed(active))
    rows = max(rows, 2) if rows <= 2 else -(-rows // 4) * 4
    stop = min(low + rows, slots)
    start = min(low, max(0, stop - rows))
    return tuple(range(start, stop))


def _worth(rows: int) -> float:
    """How many lone rows cost as much as one call of `rows`, fitted to the figures above."""
    return 2.2 + 0.3 * (-(-rows // 4) * 4)
