"""The line through readings: a leak is found beneath noise and jumps, and noise alone is none."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from gauges import more, settled, slope


def readings(each: float, *, seed: int, count: int = 150) -> list[tuple[float, float]]:
    """Over 3,000 tasks: a megabyte of noise, and now and then a jump up and down again."""
    chance = random.Random(seed)
    points = []
    for at in range(count):
        tasks = at * 20
        jump = 30e6 if chance.random() < 0.1 else 0.0
        points.append((tasks, 200e6 + each * tasks + chance.uniform(-0.5e6, 0.5e6) + jump))
    return points


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_is_found_beneath_noise_and_noise_alone_is_none(seed):
    assert slope(settled(readings(4096, seed=seed))) == pytest.approx(4096, rel=0.1)
    assert abs(slope(settled(readings(0, seed=seed)))) < 200


def test_what_grows_only_at_first_is_no_leak():
    points = [(at, 1000.0 * min(at, 40)) for at in range(150)]
    assert slope(settled(points)) == 0
    assert slope(points) == 0  # and neither moves the median
    assert slope([(1, 1.0)]) == 0


def test_more_names_what_there_is_more_of():
    assert more(Counter(a=5, b=2, c=1), Counter(a=1, b=2)) == {"a": 4, "c": 1}
    assert more(Counter(a=5, c=1), Counter(a=1), by=1) == {"a": 4}
