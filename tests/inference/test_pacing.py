"""How many threads a call has, on machines that are free, shared, and overrun."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from inference.pacing import Pace

COST_S = {"small": 0.01, "large": 0.03}


def counts(
    pace: Pace,
    speed_of: Callable[[int], float],
    *,
    seconds: float,
    begun: float = 0.0,
    shapes: Sequence[str] = ("large", "small", "large"),
) -> list[int]:
    """The threads of each call, on a machine where so many of them do so much of one's work in a second."""
    now, used = begun, []
    while now < begun + seconds:
        shape = shapes[len(used) % len(shapes)]
        threads = pace.threads_for(shape)
        used.append(threads)
        wall_s = COST_S[shape] / speed_of(threads)
        # What spins while it waits runs, too: with several threads the time that one ran says nothing.
        pace.heard(shape, threads, began=now, wall_s=wall_s, ran_s=COST_S[shape] if threads == 1 else wall_s)
        now += wall_s
    return used


def free(threads: int) -> float:
    return 0.98 if threads == 1 else 1.6


def overrun(threads: int) -> float:
    return 0.25 if threads == 1 else 0.05


def test_on_free_cores_every_call_has_all_threads_but_the_first_of_its_shape():
    used = counts(Pace(2), free, seconds=20)
    assert used[:2] == [1, 1] and set(used[2:]) == {2}


def test_one_thread_stays_one():
    assert set(counts(Pace(1), overrun, seconds=5)) == {1}


def test_where_threads_wait_for_one_another_one_goes_alone_and_tries_seldom():
    used = counts(Pace(2), overrun, seconds=120)
    assert used[2] == 2 and 1 in used[3:6]
    assert 3 < sum(threads == 2 for threads in used[10:]) < 30, "it goes on trying"


def test_all_threads_come_back_when_the_others_have_gone():
    pace = Pace(2)
    counts(pace, overrun, seconds=60)
    used = counts(pace, free, seconds=30, begun=60)
    back = used.index(2)
    assert sum(COST_S["large"] for _ in used[:back]) < 15
    assert set(used[back:]) == {2}


@pytest.mark.parametrize(("one", "two", "better"), [(0.6, 0.8, 2), (0.8, 0.6, 1)])
def test_on_shared_cores_the_better_of_both_is_used_but_for_a_look_now_and_then(one, two, better):
    used = counts(Pace(2), lambda threads: one if threads == 1 else two, seconds=120)
    assert sum(threads == better for threads in used[20:]) > 0.95 * len(used[20:])
    assert len(set(used[20:])) == 2


def test_after_a_hiccup_all_threads_are_back_within_a_second():
    pace = Pace(2)
    counts(pace, free, seconds=1)
    pace.heard("large", 2, began=1.0, wall_s=1.0, ran_s=0.01)
    used = counts(pace, free, seconds=20, begun=2.0)
    assert sum(COST_S["large"] for _ in used[: used.index(2)]) < 1.5
    assert set(used[used.index(2) :]) == {2}


def test_a_call_that_took_no_time_says_nothing():
    pace = Pace(2)
    pace.heard("large", 1, began=0.0, wall_s=0.0, ran_s=0.0)
    assert pace.threads_for("large") == 1
