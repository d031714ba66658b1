"""Which settings make this machine fastest: candidates tried against the default, side by side, within a time budget.

Lives here: what is tried, how a trial is judged, the order of trials. Must not know: which engine, where results are
kept, settings files. Engines come in as a function that opens one.

A machine is noisy, so every figure of a candidate has one of the default beside it, taken in the same seconds, in
turn; of the ratios of these pairs the median counts. The default stays unless a candidate is better by 5 %, and by
three standard errors as the default's own spread gives them, and is not slower than it for a lone stream. Who wins is
tried once more before it counts: the best of several is the luckiest of them, too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final

from inference.measuring import goodput
from market.errors import OctoError
from market.ports import Engine
from market.values import value

BETTER: Final = 1.05
NOT_WORSE: Final = 0.95
PAIRS: Final = 3
HOPELESS: Final = 0.85
"""Of the first pair: who is so far behind is not tried again."""
CROWD: Final = 32
"""Requests at once, twice the slots of the default: more slots can show what they are good for."""
_TOKENS: Final = 16
_TO_SIGMA: Final = 1.4826
_ERRORS: Final = 3.0


@value
class Setup:
    """`workers` processes of `threads` threads, each with `slots` tasks at once; `model` is a manifest's CID."""

    model: str
    workers: int
    threads: int
    slots: int


@value
class Rates:
    """Tokens per second of a lone stream, and of a crowd."""

    alone: float
    crowd: float

    @property
    def score(self) -> float:
        """The geometric mean: twice as fast for one weighs as much as twice as fast for many."""
        return math.sqrt(max(self.alone, 1e-9) * max(self.crowd, 1e-9))


@value
class Trial:
    """`pairs` are (default, candidate); `failed` says why it cannot be the best whatever they say."""

    setup: Setup
    pairs: tuple[tuple[Rates, Rates], ...] = ()
    failed: str = ""

    @property
    def ratio(self) -> float:
        """Of the scores, candidate to default; 0 for one that failed."""
        if not self.pairs:
            return 0.0
        return statistics.median(mine.score / base.score for base, mine in self.pairs)

    @property
    def alone_ratio(self) -> float:
        return statistics.median(mine.alone / base.alone for base, mine in self.pairs) if self.pairs else 0.0


@value
class Tuning:
    """`best` is the default's setup if nothing was clearly better. `untried` is what the budget had no time for."""

    best: Setup
    gain: float
    needed: float
    trials: tuple[Trial, ...]
    untried: tuple[Setup, ...]


OpenEngine = Callable[[Setup], AbstractAsyncContextManager[Engine]]
RatesOf = Callable[[Engine], Awaitable[Rates]]


async def measure_rates(engine: Engine) -> Rates:
    return Rates(alone=await goodput(engine, 1, 2 * _TOKENS), crowd=await goodput(engine, CROWD, _TOKENS))


def shapes(default: Setup, cores: int) -> list[Setup]:
    """Other ways to put the cores to work, with as many slots in all: workers of more threads, one core left free."""
    slots = default.workers * default.slots
    ways = [(cores // threads, threads) for threads in _powers(cores)]
    ways += [(cores - 1, 1)] if cores > 2 else []
    made = (
        Setup(model=default.model, workers=workers, threads=threads, slots=-(-slots // workers))
        for workers, threads in ways
    )
    return [setup for setup in dict.fromkeys(made) if setup != default]


def slot_counts(best: Setup) -> list[Setup]:
    """Half and twice as many slots."""
    counts = [count for count in (best.slots * 2, best.slots // 2) if 1 <= count <= 60]
    return [Setup(model=best.model, workers=best.workers, threads=best.threads, slots=count) for count in counts]


def formats(best: Setup, models: Sequence[str]) -> list[Setup]:
    """The same model in its other formats."""
    others = [model for model in models if model != best.model]
    return [Setup(model=model, workers=best.workers, threads=best.threads, slots=best.slots) for model in others]


def spread_of(trials: Sequence[Trial]) -> float:
    """The standard deviation of one score of the default, as a share of it: from the median distance to the median,
    which a hiccup does not move."""
    scores = [base.score for trial in trials for base, _ in trial.pairs]
    if not scores:
        return 0.0
    middle = statistics.median(scores)
    return _TO_SIGMA * statistics.median(abs(score - middle) for score in scores) / middle


def needed_ratio(spread: float, pairs: int) -> float:
    """How much better than the default the median of so many pairs must be. A ratio has the spread of two scores, a
    median of n ratios 1.25 / sqrt(n) of that."""
    return max(BETTER, 1 + _ERRORS * 1.25 * math.sqrt(2 / max(1, pairs)) * spread)


def best_of(default: Setup, trials: Sequence[Trial]) -> Setup:
    """Pure. The best of those that were measured to the end and are clearly better; else the default."""
    spread = spread_of(trials)
    clear = [
        trial
        for trial in trials
        if len(trial.pairs) >= PAIRS
        and not trial.failed
        and trial.ratio >= needed_ratio(spread, len(trial.pairs))
        and trial.alone_ratio >= NOT_WORSE
    ]
    return max(clear, key=lambda trial: trial.ratio).setup if clear else default


async def tune(
    default: Setup,
    open_engine: OpenEngine,
    *,
    cores: int,
    clock: Callable[[], float],
    models: Sequence[str] = (),
    budget_s: float = 60.0,
    rates_of: RatesOf = measure_rates,
    heard: Callable[[Setup, float], None] = lambda _setup, _share: None,
) -> Tuning:
    """Try shapes, then slots of the best shape, then its other formats (`models`), as long as the budget lasts; a
    trial that has begun is finished, and the winner's second one comes on top.

    `clock` gives seconds; `heard` is told what is tried next, and which share of the budget is gone. A candidate that
    does not start is passed over; raises what opening the default raises.
    """
    begun = clock()
    trials: list[Trial] = []
    untried: list[Setup] = []
    stages: tuple[Callable[[], list[Setup]], ...] = (
        lambda: shapes(default, cores),
        lambda: slot_counts(best_of(default, trials)),
        lambda: formats(best_of(default, trials), models),
    )
    async with open_engine(default) as base:
        await rates_of(base)  # the first one is slower than all others
        for stage in stages:
            for setup in stage():
                spent = clock() - begun
                if spent + spent / (len(trials) + 1) > budget_s:  # what a trial took so far
                    untried.append(setup)
                    continue
                heard(setup, min(1.0, spent / budget_s))
                trials.append(await _try(setup, base, open_engine, rates_of))
        confirmed = {default}
        while (best := best_of(default, trials)) not in confirmed:
            heard(best, min(1.0, (clock() - begun) / budget_s))
            again = await _try(best, base, open_engine, rates_of)
            failed = again.failed or ("" if again.ratio >= BETTER else "it was not better a second time.")
            trials = [
                replace(trial, pairs=trial.pairs + again.pairs, failed=failed) if trial.setup == best else trial
                for trial in trials
            ]
            confirmed.add(best)
    won = next((trial for trial in trials if trial.setup == best), None)
    return Tuning(
        best=best,
        gain=won.ratio if won else 1.0,
        needed=needed_ratio(spread_of(trials), 2 * PAIRS),
        trials=tuple(trials),
        untried=tuple(untried),
    )


async def _try(setup: Setup, base: Engine, open_engine: OpenEngine, rates_of: RatesOf) -> Trial:
    pairs: list[tuple[Rates, Rates]] = []
    try:
        async with open_engine(setup) as engine:
            await rates_of(engine)
            for number in range(PAIRS):
                if number % 2:  # who comes first has it no better in the end
                    mine = await rates_of(engine)
                    pairs.append((await rates_of(base), mine))
                else:
                    first = await rates_of(base)
                    pairs.append((first, await rates_of(engine)))
                if pairs[0][1].score < HOPELESS * pairs[0][0].score:
                    break
    except OctoError as error:
        return Trial(setup=setup, failed=str(error))
    return Trial(setup=setup, pairs=tuple(pairs))


def _powers(cores: int) -> list[int]:
    """1, 2, 4 … up to all cores, and all of them."""
    found = [1 << bit for bit in range(cores.bit_length()) if 1 << bit <= cores]
    return found if found[-1] == cores else [*found, cores]
