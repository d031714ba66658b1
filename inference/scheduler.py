"""Who decodes next: the pure half of continuous batching.

Lives here: slots, turns, pausing, the shape of a decode call. Decides from numbers alone and touches
nothing; `inference.batch` acts. Must not know: llama.cpp, tokens' values, time, who waits for a slot.

Canonical chunks. A prompt is prefilled 64 rows at a time counted from position 0, each chunk in a call
of its own; rows that decode share calls of their own. Measured: then a job's logits are the same to the
bit whatever else runs; a chunk of 64 mixed with other rows agreed in 0 of 60 steps. Calls of at most 63 rows of a
sequence equal single steps to the bit; 64 do not. So a job that is resumed has its own tokens fed again in such calls,
and the last row of a prompt's tail (what is left beyond whole chunks) goes with the rows that decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CHUNK: Final = 64
REPLAY: Final = 63
"""Rows of generated tokens that llama.cpp takes in one call when a job is resumed."""
SLOTS_LIMIT: Final = 60
"""A call of 64 or more rows takes another attention path, and 3 rows may be padding."""


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

    While tokens flow, at most one chunk's worth of rows is prefilled between two decode calls (35 ms for the
    default model on two cores), of one prompt or of several short ones. Prompts take turns chunk by chunk, those of
    a lower priority number first: a short prompt never waits for all of a long one. A prompt that is more
    urgent than everything that decodes does not wait for decode calls.
    """

    def __init__(self, *, slots: int, window: int, replay: int = REPLAY) -> None:
        """`replay`: rows of generated tokens in one call when a job is resumed."""
        self._window = window
        self._replay = replay
        self._free = set(range(slots))
        self._seats: dict[int, Seat] = {}
        self._turn = 0
        self._prefilled = 0
        """Rows since the last decode call."""

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

    def skip(self, step: Prefill, filled: int) -> None:
        """`step`, just given, is not taken, since `filled` rows are there from elsewhere; its job keeps its turn."""
        self._prefilled -= step.stop - step.start
        seat = self._seats[step.job]
        seat.filled, seat.turn = filled, 0

    def acknowledge(self, job: int, read: int) -> None:
        """The consumer has taken `read` tokens in all. Old and unknown news changes nothing."""
        seat = self._seats.get(job)
        if seat is not None:
            seat.read = min(max(seat.read, read), seat.emitted)

    def room(self, job: int) -> int:
        """How many tokens its consumer still has room for."""
        seat = self._seats[job]
        return self._window - (seat.emitted - seat.read)

    def next_step(self) -> Prefill | Decode | None:
        """None when nothing can run: no jobs, or every consumer is a whole window behind."""
        pending = min(filter(self._pends, self._seats.values()), key=_urgency, default=None)
        flowing = [seat for seat in self._seats.values() if self._flows(seat)]
        if pending is None or self._yields(pending, flowing):
            self._prefilled = 0
            for seat in flowing:
                seat.filled = seat.total
            return Decode(tuple(seat.job for seat in sorted(flowing, key=_slot))) if flowing else None
        pending.turn = self._next_turn()
        return self._chunk(pending)

    def can_step(self) -> bool:
        return any(seat.filled < seat.total - self._steps(seat) or self._flows(seat) for seat in self._seats.values())

    def _yields(self, pending: Seat, flowing: Sequence[Seat]) -> bool:
        """Whether who decodes goes before `pending`."""
        if not any(seat.priority <= pending.priority for seat in flowing):
            return False
        return self._prefilled > 0 and self._prefilled + self._chunk_end(pending) - pending.filled > CHUNK

    def _chunk(self, seat: Seat) -> Prefill:
        start, stop = seat.filled, self._chunk_end(seat)
        seat.filled = stop
        self._prefilled += stop - start
        return Prefill(seat.job, seat.slot, start, stop, last=stop == seat.total)

    def _chunk_end(self, seat: Seat) -> int:
        start = seat.filled
        return min(start + CHUNK, seat.prompt) if start < seat.prompt else min(start + self._replay, seat.total)

    def _pends(self, seat: Seat) -> bool:
        ahead = self._seats.get(seat.leader)
        return seat.filled < seat.total - self._steps(seat) and (ahead is None or ahead.filled >= seat.behind)

    def _flows(self, seat: Seat) -> bool:
        return seat.filled >= seat.total - self._steps(seat) and self.room(seat.job) > 0

    def _steps(self, seat: Seat) -> int:
        """How many of a job's rows, at its end, decode calls feed: the last one, if its bits are those of a step."""
        return int(self._replay > 1 and seat.total > seat.prompt // CHUNK * CHUNK)

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
    whose key and value are dropped afterwards. Its kernels want multiples of four, and few rows go faster
    one by one, which a falling order brings about (one thread computes those, see `inference.llama`).
    Measured on the default model, ms a call, with one thread and with two:

        rows      1    2     3     4     7     8    12    15    16    24
        one     5.2  11.8  16.0  15.4  30.3  22.0  28.6  43.0  28.6  42.7
        two     5.2   7.8   9.9   9.7  17.4  13.0  16.6  24.3  16.8  24.6

    All of these shapes were compared and give the same bits.
    """
    low, high = active[0], active[-1]
    rows = high - low + 1
    if len(active) <= _worth(rows, threads):
        return tuple(reversed(active))
    rows = 2 if rows == 2 else -(-rows // 4) * 4
    stop = min(low + rows, slots)
    start = min(low, max(0, stop - rows))
    return tuple(range(start, stop))


def lone(slots: Sequence[int]) -> bool:
    """Whether rows of these slots, in this order, are computed one by one."""
    return len(slots) == 1 or slots[0] > slots[-1]


def _worth(rows: int, threads: int) -> float:
    """How many lone rows cost as much as one call of `rows`, fitted to the figures above."""
    fours = -(-rows // 4) * 4
    return 2.2 + 0.3 * fours if threads == 1 else 1.2 + 0.155 * fours
