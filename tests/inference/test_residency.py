"""Who must go so that another model fits: the rule, by example and by property."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.residency import PATIENCE_S, Resident, Step, Wish, load_first, next_step

GB = 10**9


def resident(model: str, size: int, **facts) -> Resident:
    return Resident(model=model, size_bytes=size * GB, **facts)


def wish(model: str, size: int, *, priority: int = 0, since: float = 0.0) -> Wish:
    return Wish(model=model, size_bytes=size * GB, priority=priority, since=since)


def step(residents: list[Resident], wishes: list[Wish], *, budget: int = 10, now: float = 0.0) -> Step:
    return next_step(residents, wishes, budget_bytes=budget * GB, now=now)


def test_what_fits_is_loaded_and_nobody_goes() -> None:
    assert step([resident("a", 4)], [wish("b", 6)]) == Step(load=("b",))


def test_the_least_recently_used_goes_first() -> None:
    here = [resident("new", 5, used_at=9.0), resident("old", 5, used_at=1.0)]
    assert step(here, [wish("c", 5)]) == Step(unload=("old",))


def test_nobody_goes_whose_going_is_not_needed() -> None:
    here = [resident("small", 1, used_at=1.0), resident("large", 6, used_at=2.0), resident("last", 3, used_at=3.0)]
    assert step(here, [wish("c", 6)]) == Step(unload=("large",))


def test_a_model_that_works_or_is_pinned_does_not_go() -> None:
    here = [resident("busy", 5, users=1), resident("pinned", 5, pinned=True)]
    assert step(here, [wish("c", 5)]) == Step(again_s=PATIENCE_S)


def test_a_model_that_is_never_idle_goes_once_patience_is_over() -> None:
    here = [resident("busy", 5, users=3, used_at=1.0), resident("busier", 5, users=9, used_at=2.0)]
    assert step(here, [wish("c", 5)], now=PATIENCE_S) == Step(drain=("busy",))


def test_idle_ones_go_before_busy_ones() -> None:
    here = [resident("busy", 5, users=1, used_at=1.0), resident("idle", 5, used_at=8.0)]
    assert step(here, [wish("c", 8)], now=PATIENCE_S) == Step(unload=("idle",), drain=("busy",))


def test_who_waits_for_busy_models_lets_those_pass_that_fit() -> None:
    here = [resident("busy", 7, users=1)]
    assert step(here, [wish("large", 9), wish("small", 3, since=1.0)]).load == ("small",)


def test_nobody_takes_the_room_that_is_being_made_for_another() -> None:
    here = [resident("leaving", 5, leaving=True), resident("busy", 3, users=1)]
    assert step(here, [wish("first", 7), wish("later", 2, since=1.0)]) == Step()


def test_a_realtime_task_s_model_is_loaded_before_a_patient_one_s() -> None:
    assert step([], [wish("patient", 6, priority=4), wish("urgent", 6, since=5.0)]).load == ("urgent",)


def test_what_can_never_fit_is_refused_with_the_most_there_is() -> None:
    assert step([resident("pinned", 4, pinned=True)], [wish("c", 7)]) == Step(refuse=(("c", 6 * GB),))


def test_nothing_is_refused_while_a_load_makes_the_budget_uncertain() -> None:
    assert step([resident("coming", 4, arriving=True)], [wish("c", 11)]) == Step()


def test_what_has_grown_over_the_budget_costs_the_idle_their_place_but_never_the_last_one_used() -> None:
    here = [
        resident("old", 3, used_at=1.0),
        resident("busy", 3, users=1, used_at=2.0),
        resident("last", 6, used_at=3.0),
    ]
    assert step(here, []) == Step(unload=("old",))
    assert step([resident("alone", 12)], []) == Step()


def test_at_start_each_model_is_loaded_that_still_fits_beside_those_named_before() -> None:
    assert load_first([("a", 4), ("b", 8), ("c", 5)], 10) == ("a", "c")


sizes = st.integers(min_value=0, max_value=12)
residents_ = st.lists(
    st.builds(
        lambda size, users, used, pinned, leaving: Resident(
            model="", size_bytes=size, users=users, used_at=used, pinned=pinned, leaving=leaving and not pinned
        ),
        sizes, st.integers(0, 2), st.floats(0, 100), st.booleans(), st.booleans(),
    ),
    max_size=6,
)  # fmt: skip


@given(residents_, st.lists(st.tuples(sizes, st.integers(0, 3), st.floats(0, 100)), max_size=4), st.integers(0, 40))
def test_memory_is_never_promised_twice_and_nobody_goes_for_nothing(found, asked, budget) -> None:
    here = [Resident(**{**_facts(one), "model": f"r{at}"}) for at, one in enumerate(found)]
    wishes = [
        Wish(model=f"w{at}", size_bytes=size, priority=priority, since=since)
        for at, (size, priority, since) in enumerate(asked)
    ]
    step = next_step(here, wishes, budget_bytes=budget, now=100.0)
    by_name = {one.model: one for one in (*here, *wishes)}
    used = sum(one.size_bytes for one in here)
    loaded = sum(by_name[model].size_bytes for model in step.load)
    assert not step.load or used + loaded <= max(budget, used)
    for model in (*step.unload, *step.drain):
        assert not by_name[model].pinned and not by_name[model].leaving
    assert all(by_name[model].users == 0 for model in step.unload)
    going = [by_name[model] for model in (*step.unload, *step.drain)]
    if going and used <= budget:
        freed = sum(one.size_bytes for one in (*going, *(one for one in here if one.leaving)))
        head = min(
            (one for one in wishes if one.model not in step.load and one.model not in dict(step.refuse)),
            key=lambda one: (one.priority, one.since),
        )
        assert used + loaded - freed + head.size_bytes <= budget or len(wishes) > 1
        assert used + loaded + min(one.size_bytes for one in wishes) - freed <= budget


def _facts(one: Resident) -> dict:
    return {name: getattr(one, name) for name in one.__slots__}
