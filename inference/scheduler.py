"""Who decodes next: the pure half of continuous batching.

Lives here: slots, turns, pausing, the shape of a decode call. Decides from numbers alone and touches
nothing; `inference.batch` acts. Must not know: llama.cpp, tokens' values, time, who waits for a slot.

Canonical chunks. A prompt is prefilled 64 rows at a time counted from position 0, each chunk in a call
of its own; rows that decode share calls of their own. Measured: then a job's logits are the same to the
bit whatever else runs; a chunk of 64 mixed with other rows agreed in 0 of 60 steps. A job that is resumed
has its own tokens fed again in calls of at most 63 rows, which equal single steps to the bit; 64 do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CHUNK: Final = 64
REPLAY: Final = 63
"""Rows of generated tokens in one call when a job is resumed."""
SLOTS_LIMIT: Final = 60
"""A call of 64 or more rows takes another attention path, and 4 rows may be padding."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Rows [start, stop) of `job`'s prompt, or of what it generated before; `last` if its next token comes of it."""

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
    """A job's place in the batch. `total` rows must be fed before it decodes: the prompt, and what it generated in
    an earlier life. `read` is how many tokens its consumer has taken. It waits until `leader` has filled `behind`
    rows, if that job is still there: the rows are the same, and need not be computed twice."""

    job: int
    slot: int
    prompt: int
    total: int
    priority: int
    turn: int
    filled: int = 0
    emitted: int = 0
    read: int = 0
    leader: int = -1
    behind: int = 0


class Schedule:
    """Which of the jobs in the batch does what next.

    While tokens flow, prefill and decode alternate, so a newcomer costs a running stream at most one
    chunk (76 ms for the default model) between two tokens. Prompts take turns chunk by chunk, those of
    a lower priority number first: a short prompt never waits for all of a long one. A prompt that is more
    urgent than everything that decodes does not alternate.
    """

    def __init__(self, *, slots: int, window: int) -> None:
        self._window = window
        self._free = set(range(slots))
        self._seats: dict[int, Seat] = {}
        self._turn = 0
        self._prefilled_last = False

    def __len__(self) -> int:
        return len(self._seats)

    def __contains__(self, job: int) -> bool:
        return job in self._seats

    @property
    def free(self) -> list[int]:
        """Slots nobody sits in, lowest first."""
        return sorted(self._free)

    def seat(self, job: int) -> Seat:
        return self._seats[job]

    def join(
        self, job: int, *, prompt: int, slot: int = -1, generated: int = 0, filled: int = 0, priority: int = 0
    ) -> Seat:
        """Take a slot, the lowest free one if none is named; the caller knows there is one. `filled` rows of the
        prompt are there already; `generated` tokens were drawn in an earlier life."""
        slot = min(self._free) if slot < 0 else slot
        self._free.remove(slot)
        seat = Seat(job, slot, prompt, prompt + generated, priority, self._next_turn(), filled, generated)
        self._seats[job] = seat
        return seat

    def leave(self, job: int) -> Seat:
        seat = self._seats.pop(job)
        self._free.add(seat.slot)
        return seat

    def follow(self, job: int, leader: int, rows: int) -> None:
        """`job` waits until `leader`, which is at least as urgent and came before it, has filled `rows`."""
        seat, ahead = self._seats[job], self._seats[leader]
        if ahead.priority <= seat.priority:
            seat.leader, seat.behind = leader, rows

    def skip(self, job: int, filled: int) -> Prefill:
        """The prefill step instead of the one just given, now that `filled` rows are there from elsewhere."""
        seat = self._seats[job]
        seat.filled = filled
        return self._chunk(seat)

    def acknowledge(self, job: int, read: int) -> None:
        """The consumer has taken `read` tokens in all. Old and unknown news changes nothing."""
        seat = self._seats.get(job)
        if seat is not None:
            seat.read = min(max(seat.read, read), seat.emitted)

    def next_step(self) -> Prefill | Decode | None:
        """None when nothing can run: no jobs, or every consumer is a whole window behind."""
        pending = min(filter(self._pends, self._seats.values()), key=_urgency, default=None)
        flowing = [seat for seat in self._seats.values() if self._flows(seat)]
        yields = self._prefilled_last and (pending is None or any(s.priority <= pending.priority for s in flowing))
        if pending is None or (flowing and yields):
            self._prefilled_last = False
            return Decode(tuple(seat.job for seat in sorted(flowing, key=_slot))) if flowing else None
        self._prefilled_last = True
        pending.turn = self._next_turn()
        return self._chunk(pending)

    def can_step(self) -> bool:
        return any(seat.filled < seat.total or self._flows(seat) for seat in self._seats.values())

    def _chunk(self, seat: Seat) -> Prefill:
        start = seat.filled
        stop = min(start + CHUNK, seat.prompt) if start < seat.prompt else min(start + REPLAY, seat.total)
        seat.filled = stop
        return Prefill(seat.job, seat.slot, start, stop, last=stop == seat.total)

    def _pends(self, seat: Seat) -> bool:
        ahead = self._seats.get(seat.leader)
        return seat.filled < seat.total and (ahead is None or ahead.filled >= seat.behind)

    def _flows(self, seat: Seat) -> bool:
        return seat.filled == seat.total and seat.emitted - seat.read < self._window

    def _next_turn(self) -> int:
        self._turn += 1
        return self._turn


def _urgency(seat: Seat) -> tuple[int, int]:
    return seat.priority, seat.turn


def _slot(seat: Seat) -> int:
    return seat.slot


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
