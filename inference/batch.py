"""The running batch: carries out what the schedule decides, one decode call at a time.

Lives here: the jobs' tokens, samplers, grammars and ends. Must not know: frames, processes, time; llama.cpp
only through `Context` and `Grammars`, which fakes can stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from inference.drafting import Drafter
from inference.prefix import COPY_WORTH, NO_SCOPE, Prefixes
from inference.sampler import Logits, Sampler, logprobs_of
from inference.scheduler import Prefill, Schedule, Seat, layout
from market.errors import OctoError, RequestInvalid
from market.task import Sampling

_SIZE_WORTH_A_TOKEN: Final = 256
"""A sequence is copied whole: for every so many tokens that it can hold, one more must be saved."""


class Row(NamedTuple):
    """One token to feed to a sequence at a position; `wanted` if its logits are."""

    slot: int
    token: int
    position: int
    wanted: bool


class Context(Protocol):
    @property
    def threads(self) -> int:
        """That compute a call of several rows, now."""

    @property
    def replay(self) -> int:
        """How many tokens of one sequence a call may feed so that their bits are those of single steps."""

    size: int
    """Tokens a sequence can hold."""

    def decode(self, rows: Sequence[Row]) -> list[Logits]:
        """Logits of the wanted rows, in order, valid until the next call. Raises EngineFailed."""

    def forget(self, slot: int, start: int) -> None:
        """Drop what the sequence holds from position `start` on."""

    def copy(self, source: int, slot: int) -> None:
        """Make `slot` hold exactly what `source` holds."""


class Grammar(Protocol):
    """One job's grammar and how far its text has come."""

    def permits(self, tokens: NDArray[np.int64], /) -> NDArray[np.bool_]:
        """Which of these tokens may come next. Raises EngineFailed if that takes too long to say."""

    def ends(self, token: int) -> bool:
        """Whether the token means the end of the text."""

    def accept(self, token: int) -> None:
        """The token is settled. Raises EngineFailed if it may not come next."""

    def close(self) -> None: ...


class Grammars(Protocol):
    def open(self, text: str, end_tokens: frozenset[int]) -> Grammar:
        """Compile GBNF. Raises RequestInvalid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a job asks of the batch. `generated` are tokens drawn in an earlier life, of which `read` were taken;
    `scope` says who may share the prompt's blocks, `logprobs` how many alternatives to report, -1 none at all."""

    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int
    end_tokens: frozenset[int] = frozenset()
    priority: int = 0
    generated: Sequence[int] = ()
    read: int = 0
    scope: bytes = NO_SCOPE
    logprobs: int = -1
    grammar: str = ""


class Emission(NamedTuple):
    """`token` is -1 when the job ends without one; `error` is set when it failed, by its own fault if it is "refused".
    `cached` is how many prompt tokens
    came from other jobs' work; `logprobs` as `inference.sampler.logprobs_of` packs them."""

    job: int
    token: int
    finish: Literal["", "stop", "length", "error", "refused"]
    error: str = ""
    cached: int = 0
    logprobs: bytes = b""


@dataclass(slots=True)
class _Running:
    work: Work
    rows: Sequence[int]
    """All that is fed before the first new token."""
    sampler: Sampler
    limit: int
    grammar: Grammar | None
    cached: int
    drawn: list[int] = field(default_factory=list)
    """In this life."""
    drafter: Drafter | None = None
    settled: bool = False
    """Whether we have looked, at its first step, for a lane that holds more of its prompt."""
    last: int = -1
    """The token that the next step feeds: at first the last of `rows`."""


class Batch:
    """`grammars` is None where the engine has none; a job that wants one then fails. `draft`: a lone stream's next
    tokens are guessed (see `inference.drafting`)."""

    def __init__(
        self, context: Context, *, slots: int, window: int, grammars: Grammars | None = None, draft: bool = False
    ) -> None:
        self._context = context
        self._draft = draft
        self._grammars = grammars
        self._schedule = Schedule(slots=slots, window=window, replay=context.replay)
        worth = max(COPY_WORTH, context.size // _SIZE_WORTH_A_TOKEN)
        self._prefixes = Prefixes(slots, tails=context.replay > 1, copy_worth=worth)
        self._slots = slots
        self._running: dict[int, _Running] = {}
        self._held = [0] * slots
        """Positions filled in each sequence: where a padding row goes."""

    def __len__(self) -> int:
        return len(self._schedule)

    @property
    def can_step(self) -> bool:
        return self._schedule.can_step()

    def join(self, job: int, work: Work) -> Emission | None:
        """Start a job: there is a free slot, and the rows are fewer than the context. An emission if it fails."""
        sampler = Sampler(work.sampling, work.generated)
        try:
            grammar = self._grammar(work)
        except OctoError as error:
            return _failure(job, error)
        slot, filled, moved = self._prefixes.place(self._schedule.free, work.scope, work.prompt)
        if moved >= 0:
            self._context.copy(slot, moved)
            self._held[moved] = self._held[slot]
        seat = self._schedule.join(
            job,
            slot=slot,
            prompt=len(work.prompt),
            generated=len(work.generated),
            filled=filled,
            priority=work.priority,
        )
        seat.read = work.read
        self._keep(slot, filled)
        self._prefixes.begin(slot, work.scope, work.prompt, filled)
        limit = min(work.max_tokens, self._context.size - len(work.prompt))
        rows = [*work.prompt, *work.generated]
        self._running[job] = _Running(work, rows, sampler, limit, grammar, cached=filled, last=rows[-1])
        leader, shared = self._prefixes.ahead(slot)
        if leader >= 0:
            self._schedule.follow(job, self._job_in(leader), shared)
        return None

    def cancel(self, job: int) -> None:
        """Forget a job; one that has ended already is no news."""
        if job in self._schedule:
            self._end(job)

    def acknowledge(self, job: int, read: int) -> None:
        self._schedule.acknowledge(job, read)

    def step(self) -> list[Emission]:
        """One decode call and what came of it."""
        step = self._schedule.next_step()
        while isinstance(step, Prefill) and self._settle(step):
            step = self._schedule.next_step()
        if step is None:
            return []
        if isinstance(step, Prefill):
            return self._prefill(step)
        drafted = self._drafted(step.jobs[0]) if self._draft and len(step.jobs) == 1 else []
        return self._speculate(step.jobs[0], drafted) if drafted else self._decode(step.jobs)

    def _settle(self, step: Prefill) -> bool:
        """Before a job's first row: copy what another lane holds of its prompt, if that is more. Whether it was."""
        running = self._running[step.job]
        if running.settled:
            return False
        running.settled = True
        source, tokens = self._prefixes.best(running.work.scope, running.work.prompt)
        if tokens <= step.start:
            return False
        self._context.copy(source, step.slot)
        self._keep(step.slot, tokens)
        self._prefixes.fill(step.slot, tokens)
        running.cached = tokens
        self._schedule.skip(step, tokens)
        return True

    def _prefill(self, step: Prefill) -> list[Emission]:
        tokens = self._running[step.job].rows
        final = step.stop - 1 if step.last else -1
        rows = [Row(step.slot, tokens[at], at, at == final) for at in range(step.start, step.stop)]
        logits = self._context.decode(rows)
        self._held[step.slot] = step.stop
        self._prefixes.fill(step.slot, step.stop)
        return [self._emit(self._schedule.seat(step.job), logits[0])] if step.last else []

    def _decode(self, jobs: Sequence[int]) -> list[Emission]:
        seats = {seat.slot: seat for seat in map(self._schedule.seat, jobs)}
        order = layout(list(seats), slots=self._slots, threads=self._context.threads)
        rows = [
            Row(slot, self._running[seats[slot].job].last, self._held[slot], True)
            if slot in seats
            else Row(slot, 0, self._held[slot], False)
            for slot in order
        ]
        logits = self._context.decode(rows)
        for slot in order:
            if slot not in seats:
                self._context.forget(slot, self._held[slot])
        decoded = [seats[slot] for slot in order if slot in seats]
        for seat in decoded:
            self._held[seat.slot] += 1
        return [self._emit(seat, row) for seat, row in zip(decoded, logits, strict=True)]

    def _drafted(self, job: int) -> list[int]:
        running, seat = self._running[job], self._schedule.seat(job)
        if running.drafter is None:
            running.drafter = Drafter(running.rows)
        running.drafter.extend(running.drawn[len(running.drafter) - len(running.rows) :])
        room = min(running.limit - seat.emitted, self._schedule.room(job)) - 1
        return running.drafter.draft(room, threads=self._context.threads)

    def _speculate(self, job: int, drafted: list[int]) -> list[Emission]:
        """The last token and the guesses in one call; what was drawn up to the first wrong guess is what single steps
        would have drawn."""
        seat, running = self._schedule.seat(job), self._running[job]
        start = self._held[seat.slot]
        rows = [Row(seat.slot, token, start + at, True) for at, token in enumerate([running.last, *drafted])]
        emissions: list[Emission] = []
        for at, logits in enumerate(self._context.decode(rows)):
            self._held[seat.slot] = start + at + 1
            emissions.append(self._emit(seat, logits))
            if emissions[-1].finish:
                return emissions
            if at == len(drafted) or emissions[-1].token != drafted[at]:
                break
        self._context.forget(seat.slot, self._held[seat.slot])
        assert running.drafter is not None
        running.drafter.heard(len(drafted), len(emissions) - 1)
        return emissions

    def _emit(self, seat: Seat, logits: Logits) -> Emission:
        running = self._running[seat.job]
        if not running.drawn:
            self._prefixes.fill(seat.slot, len(running.rows))
        cached, running.cached = running.cached, 0
        grammar = running.grammar
        try:
            token = running.sampler.draw(logits, grammar.permits if grammar else None)
            if token in running.work.end_tokens or (grammar is not None and grammar.ends(token)):
                self._end(seat.job)
                return Emission(seat.job, -1, "stop", cached=cached)
            if grammar is not None:
                grammar.accept(token)
            asked = running.work.logprobs
            logprobs = logprobs_of(logits, token, asked) if asked >= 0 else b""
        except OctoError as error:
            self._end(seat.job)
            return _failure(seat.job, error)
        running.sampler.accept(token)
        running.last = token
        running.drawn.append(token)
        seat.emitted += 1
        finish: Literal["", "length"] = "length" if seat.emitted >= running.limit else ""
        if finish:
            self._end(seat.job)
        return Emission(seat.job, token, finish, "", cached, logprobs)

    def _grammar(self, work: Work) -> Grammar | None:
        if not work.grammar:
            return None
        if self._grammars is None:
            raise RequestInvalid("this engine has no grammars.", param="response_format")
        grammar = self._grammars.open(work.grammar, work.end_tokens)
        try:
            for token in work.generated:
                grammar.accept(token)
        except OctoError:
            grammar.close()
            raise
        return grammar

    def _job_in(self, slot: int) -> int:
        return next(job for job in self._running if self._schedule.seat(job).slot == slot)

    def _end(self, job: int) -> None:
        seat = self._schedule.leave(job)
        grammar = self._running.pop(job).grammar
        if grammar is not None:
            grammar.close()
        self._keep(seat.slot, self._prefixes.end(seat.slot))

    def _keep(self, slot: int, rows: int) -> None:
        """A sequence holds its first `rows` rows and no more."""
        self._held[slot] = rows
        self._context.forget(slot, rows)


def _failure(job: int, error: OctoError) -> Emission:
    return Emission(job, -1, "refused" if isinstance(error, RequestInvalid) else "error", str(error))
