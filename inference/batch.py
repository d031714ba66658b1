"""The running batch: carries out what the schedule decides, one decode call at a time.

Lives here: the jobs' tokens, samplers and ends. Must not know: frames, processes, time; llama.cpp only
through the two methods of `Context`, which a fake can stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from inference.sampler import Logits, Sampler
from inference.scheduler import Prefill, Schedule, Seat, layout
from market.errors import EngineFailed
from market.task import Sampling


class Row(NamedTuple):
    """One token to feed to a sequence at a position; `wanted` if its logits are."""

    slot: int
    token: int
    position: int
    wanted: bool


class Context(Protocol):
    lanes: int
    """Sequences it has: the slots, and one more to pad with if there are several threads."""
    threads: int
    size: int
    """Tokens a sequence can hold."""

    def decode(self, rows: Sequence[Row]) -> list[Logits]:
        """Logits of the wanted rows, in order, valid until the next call. Raises EngineFailed."""

    def forget(self, slot: int, start: int) -> None:
        """Drop what the sequence holds from position `start` on."""


class Emission(NamedTuple):
    """`token` is -1 when the job ends without one; `error` is set when it failed."""

    job: int
    token: int
    finish: Literal["", "stop", "length", "error"]
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Work:
    prompt: Sequence[int]
    sampler: Sampler
    limit: int
    end_tokens: frozenset[int]


class Batch:
    def __init__(self, context: Context, *, slots: int, window: int) -> None:
        self._context = context
        self._schedule = Schedule(slots=slots, window=window)
        self._work: dict[int, _Work] = {}
        self._last: dict[int, int] = {}
        self._held = [0] * context.lanes
        """Positions filled in each sequence: where a padding row goes."""

    def __len__(self) -> int:
        return len(self._schedule)

    @property
    def can_step(self) -> bool:
        return self._schedule.can_step()

    def join(
        self,
        job: int,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        end_tokens: frozenset[int],
        priority: int = 0,
    ) -> None:
        """Start a job; there is a free slot and the prompt is shorter than the context."""
        limit = min(max_tokens, self._context.size - len(prompt))
        self._work[job] = _Work(prompt, Sampler(sampling), limit, end_tokens)
        self._schedule.join(job, prompt=len(prompt), priority=priority)

    def cancel(self, job: int) -> None:
        """Forget a job; one that has ended already is no news."""
        if job in self._schedule:
            self._end(job)

    def acknowledge(self, job: int, read: int) -> None:
        self._schedule.acknowledge(job, read)

    def step(self) -> list[Emission]:
        """One decode call and what came of it."""
        step = self._schedule.next_step()
        if step is None:
            return []
        return self._prefill(step) if isinstance(step, Prefill) else self._decode(step.jobs)

    def _prefill(self, step: Prefill) -> list[Emission]:
        prompt = self._work[step.job].prompt
        final = step.stop - 1 if step.last else -1
        rows = [Row(step.slot, prompt[at], at, at == final) for at in range(step.start, step.stop)]
        padded = []
        if len(rows) == 1 and self._context.threads > 1:  # a lone row: see `layout`
            padded = [step.slot + 1 if step.slot + 1 < self._context.lanes else step.slot - 1]
            rows = sorted([*rows, self._padding(padded[0])])
        logits = self._call(rows, padded)
        self._held[step.slot] = step.stop
        return [self._emit(self._schedule.seat(step.job), logits[0])] if step.last else []

    def _decode(self, jobs: Sequence[int]) -> list[Emission]:
        seats = {seat.slot: seat for seat in map(self._schedule.seat, jobs)}
        order = layout(list(seats), slots=self._context.lanes, threads=self._context.threads)
        rows = [
            Row(slot, self._last[seats[slot].job], self._held[slot], True) if slot in seats else self._padding(slot)
            for slot in order
        ]
        logits = self._call(rows, [slot for slot in order if slot not in seats])
        decoded = [seats[slot] for slot in order if slot in seats]
        for seat in decoded:
            self._held[seat.slot] += 1
        return [self._emit(seat, row) for seat, row in zip(decoded, logits, strict=True)]

    def _padding(self, slot: int) -> Row:
        return Row(slot, 0, self._held[slot], wanted=False)

    def _call(self, rows: Sequence[Row], padded: Sequence[int]) -> list[Logits]:
        logits = self._context.decode(rows)
        for slot in padded:
            self._context.forget(slot, self._held[slot])
        return logits

    def _emit(self, seat: Seat, logits: Logits) -> Emission:
        work = self._work[seat.job]
        try:
            token = work.sampler.draw(logits)
        except EngineFailed as error:
            self._end(seat.job)
            return Emission(seat.job, -1, "error", error.message)
        if token in work.end_tokens:
            self._end(seat.job)
            return Emission(seat.job, -1, "stop")
        work.sampler.accept(token)
        self._last[seat.job] = token
        seat.emitted += 1
        if seat.emitted == work.limit:
            self._end(seat.job)
            return Emission(seat.job, token, "length")
        return Emission(seat.job, token, "")

    def _end(self, job: int) -> None:
        seat = self._schedule.leave(job)
        del self._work[job]
        self._last.pop(job, None)
        self._held[seat.slot] = 0
        self._context.forget(seat.slot, 0)
