"""The autotuner against machines whose speed is known: it finds what is better, and leaves alone what is not."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager

import pytest

from inference.tuning import (
    PAIRS,
    Rates,
    Setup,
    Trial,
    best_of,
    formats,
    needed_ratio,
    shapes,
    slot_counts,
    spread_of,
    tune,
)
from market.errors import NodeMisconfigured

DEFAULT = Setup(model="m", workers=4, threads=1, slots=4)


class Machine:
    """Runs setups at known speeds, a trial a second; `noise` is the largest share by which a figure is off, and all of
    the machine slows down to `slowing` as time goes on."""

    def __init__(self, speeds, *, noise=0.0, slowing=1.0, seed=3):
        self.now = 0.0
        self.opened = []
        self.running = 0
        self._speeds = speeds
        self._noise = noise
        self._slowing = slowing
        self._random = random.Random(seed)

    @asynccontextmanager
    async def open(self, setup):
        speed = self._speeds(setup)
        if isinstance(speed, Exception):
            raise speed
        self.opened.append(setup)
        self.running += 1
        self.now += 1
        try:
            yield speed
        finally:
            self.running -= 1

    async def rates(self, engine):
        self.now += 1
        share = self._slowing ** (self.now / 100)
        alone, crowd = engine if isinstance(engine, tuple) else (engine, engine)
        off = [share * (1 + self._random.uniform(-self._noise, self._noise)) for _ in range(2)]
        return Rates(alone=alone * off[0], crowd=crowd * off[1])

    def clock(self):
        return self.now

    async def tuned(self, **changes):
        told = {"cores": 4, "clock": self.clock, "rates_of": self.rates, "budget_s": 1000.0, **changes}
        found = await tune(DEFAULT, self.open, **told)
        assert self.running == 0
        return found


async def test_the_fastest_shape_is_found_and_then_its_slots():
    def speeds(setup):
        return 100.0 * (1.4 if setup.threads == 2 else 1.0) * (1.3 if setup.slots == 16 else 1.0)

    found = await Machine(speeds).tuned()
    assert found.best == Setup(model="m", workers=2, threads=2, slots=16)
    assert found.gain == pytest.approx(1.82)
    assert not found.untried


async def test_the_default_stays_if_nothing_is_better_by_five_percent():
    found = await Machine(lambda setup: 104.0 if setup != DEFAULT else 100.0).tuned()
    assert found.best == DEFAULT
    assert found.gain == 1
    assert len(found.trials) >= 4


@pytest.mark.parametrize("noise", [0.05, 0.15, 0.3])
async def test_noise_alone_changes_nothing_even_where_it_is_loud(noise):
    changed = [(await Machine(lambda _: 100.0, noise=noise, seed=seed).tuned()).best != DEFAULT for seed in range(100)]
    assert sum(changed) <= 2


async def test_a_machine_that_slows_down_meanwhile_slows_both_of_a_pair():
    """Figures of the default from the beginning would make every later candidate look slow."""
    found = await Machine(lambda setup: 130.0 if setup.threads == 2 else 100.0, slowing=0.5).tuned()
    assert (found.best.workers, found.best.threads) == (2, 2)


async def test_many_streams_do_not_pay_for_a_slower_lone_one():
    found = await Machine(lambda setup: (100.0, 100.0) if setup == DEFAULT else (90.0, 300.0)).tuned()
    assert found.best == DEFAULT


async def test_what_does_not_start_is_passed_over_and_said():
    def speeds(setup):
        return 100.0 if setup == DEFAULT else NodeMisconfigured("too little memory.")

    found = await Machine(speeds).tuned()
    assert found.best == DEFAULT
    assert {trial.failed for trial in found.trials} == {"too little memory."}


async def test_a_default_that_does_not_start_is_an_error():
    with pytest.raises(NodeMisconfigured):
        await Machine(lambda _: NodeMisconfigured("no room.")).tuned()


async def test_the_budget_is_kept_and_what_had_no_time_is_named():
    machine = Machine(lambda _: 100.0)
    found = await machine.tuned(budget_s=12.0)
    assert machine.now <= 12 + 2 + 2 * PAIRS
    assert found.trials
    assert found.untried
    assert not (await Machine(lambda _: 100.0).tuned(budget_s=0.5)).trials


async def test_the_hopeless_are_measured_once():
    found = await Machine(lambda setup: 100.0 if setup.threads == 1 else 40.0).tuned()
    assert {len(trial.pairs) for trial in found.trials if trial.setup.threads > 1} == {1}


async def test_another_format_is_tried_last_on_the_best_shape():
    machine = Machine(lambda setup: (200.0 if setup.model == "q4" else 100.0) * (1.5 if setup.threads == 4 else 1))
    found = await machine.tuned(models=("m", "q4", "f16"))
    assert found.best == Setup(model="q4", workers=1, threads=4, slots=16)
    assert [setup.model for setup in machine.opened[-3:]] == ["q4", "f16", "q4"]


def test_shapes_use_the_cores_and_keep_the_slots():
    found = shapes(DEFAULT, 4)
    assert {(setup.workers, setup.threads) for setup in found} == {(2, 2), (1, 4), (3, 1)}
    assert all(16 <= setup.workers * setup.slots <= 18 for setup in found)
    assert shapes(Setup(model="m", workers=1, threads=1, slots=8), 1) == []
    assert {setup.threads for setup in shapes(DEFAULT, 6)} == {1, 2, 4, 6}
    assert [setup.slots for setup in slot_counts(DEFAULT)] == [8, 2]
    assert slot_counts(Setup(model="m", workers=1, threads=1, slots=60))[0].slots == 30
    assert formats(DEFAULT, ["m"]) == []


def trial(*scores, mine=112.0):
    pairs = tuple((Rates(alone=score, crowd=score), Rates(alone=mine, crowd=mine)) for score in scores)
    return Trial(setup=Setup(model="m", workers=1, threads=1, slots=1), pairs=pairs)


def test_a_restless_default_asks_for_more():
    calm, restless = trial(100, 100, 101), trial(90, 100, 110)
    assert spread_of([calm]) == 0
    assert spread_of([restless]) == pytest.approx(0.148, abs=0.001)
    assert needed_ratio(0, 3) == 1.05
    assert needed_ratio(0.148, 3) == pytest.approx(1.453, abs=0.001)
    assert needed_ratio(0.148, 12) < 1.24
    assert best_of(DEFAULT, [calm]) == calm.setup
    assert best_of(DEFAULT, [restless]) == DEFAULT
    assert best_of(DEFAULT, [trial(100, 100)]) == DEFAULT  # too few pairs to say


async def test_the_winner_must_win_twice():
    """Lucky in its first three pairs, ordinary ever after."""
    lucky = []

    def speeds(setup):
        lucky.append(setup)
        return 130.0 if setup.threads == 2 and lucky.count(setup) == 1 else 100.0

    found = await Machine(speeds).tuned()
    assert found.best == DEFAULT
    assert next(len(trial.pairs) for trial in found.trials if trial.setup.threads == 2) > PAIRS
