"""Who gets a slot next, who gives one up, who is sent away: by numbers alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.admission import Holder, Waiting, victim


def popped(waiting: Waiting[str]) -> list[str]:
    return list(waiting.drain())


def test_waiting_is_by_priority_then_first_come():
    waiting: Waiting[str] = Waiting()
    for name, priority in (("a", 1), ("b", 0), ("c", 1), ("d", 0)):
        waiting.add(name, priority=priority)
    waiting.discard("d")
    assert len(waiting) == 3
    assert popped(waiting) == ["b", "a", "c"] and len(waiting) == 0


def test_a_client_that_asks_for_everything_delays_another_by_one_job():
    waiting: Waiting[str] = Waiting()
    for number in range(500):
        waiting.add(f"greedy {number}", priority=0, client="greedy", cost=10)
    assert waiting.pop() == "greedy 0"
    waiting.add("modest", priority=0, client="modest", cost=10)
    waiting.add("modest too", priority=0, client="modest", cost=10)
    assert popped(waiting)[:4] == ["modest", "greedy 1", "modest too", "greedy 2"]


def test_clients_share_by_work_and_weight_not_by_number_of_jobs():
    waiting: Waiting[str] = Waiting()
    for _ in range(60):
        waiting.add("short", priority=0, client="short", cost=10)
        waiting.add("long", priority=0, client="long", cost=30)
        waiting.add("paying", priority=0, client="paying", cost=30 / 3)
    first = [waiting.pop() for _ in range(35)]
    assert [first.count(name) for name in ("short", "long", "paying")] == [15, 5, 15]


def test_who_was_away_saves_nothing_up():
    waiting: Waiting[str] = Waiting()
    waiting.add("idle", priority=0, client="idle", cost=1)
    waiting.pop()
    for _ in range(100):
        waiting.add("busy", priority=0, client="busy", cost=10)
    for _ in range(50):
        waiting.pop()
    for _ in range(50):
        waiting.add("idle", priority=0, client="idle", cost=10)
    assert [waiting.pop() for _ in range(20)].count("idle") <= 11


def test_who_lost_a_slot_is_first_of_its_client_and_pays_once():
    waiting: Waiting[str] = Waiting()
    waiting.add("a1", priority=0, client="a", cost=10)
    assert waiting.pop() == "a1"
    waiting.add("a2", priority=0, client="a", cost=10)
    waiting.add("b1", priority=0, client="b", cost=10)
    waiting.add("a1", priority=0, client="a", cost=10, again=True)
    assert popped(waiting) == ["b1", "a1", "a2"]


def test_when_too_many_wait_the_greediest_and_least_urgent_lose_their_newest():
    waiting: Waiting[str] = Waiting()
    for number in range(10):
        waiting.add(f"greedy {number}", priority=0, client="greedy")
    waiting.add("modest", priority=0, client="modest")
    assert waiting.shed(0, "greedy") is None, "he goes himself"
    assert waiting.shed(0, "new") == "greedy 9"
    waiting.add("later", priority=5, client="batch")
    assert waiting.shed(0, "greedy") == "later"
    assert waiting.shed(5, "batch") is None
    assert len(waiting) == 10


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.integers(1, 50)), max_size=60), st.data())
def test_nothing_is_lost_and_nobody_overtakes_within_a_client(jobs, data):
    waiting: Waiting[tuple[int, str, int]] = Waiting()
    seen: list[tuple[int, str, int]] = []
    for added, (priority, client, cost) in enumerate(jobs):
        waiting.add((priority, client, added), priority=priority, client=client, cost=cost)
        if data.draw(st.booleans()):
            seen.append(waiting.pop())
    seen += waiting.drain()
    assert len(seen) == len(set(seen)) == len(jobs)
    for key in {item[:2] for item in seen}:
        numbers = [item[2] for item in seen if item[:2] == key]
        assert numbers == sorted(numbers)


# ---- who gives a slot up -------------------------------------------------------------------------


def test_the_least_urgent_job_with_least_to_repeat_gives_way():
    running = [Holder(0, "a", 1), Holder(1, "a", 50), Holder(2, "a", 90), Holder(2, "b", 7), Holder(2, "b", 7)]
    assert victim(0, "new", running) == 4
    assert victim(1, "new", running) == 4
    assert victim(2, "a", running) == -1, "among equals b holds only one more"


def test_among_equals_the_richest_client_gives_way_to_one_that_holds_two_fewer():
    rich = [Holder(0, "rich", done) for done in (30, 10, 20)]
    assert victim(0, "poor", rich) == 1
    assert victim(0, "poor", [*rich, Holder(0, "poor", 1)]) == 1
    assert victim(0, "poor", [*rich, Holder(0, "poor", 1), Holder(0, "poor", 1)]) == -1
    assert victim(0, "rich", rich) == -1
    assert victim(0, "", []) == -1
    assert victim(1, "poor", rich) == -1, "the more urgent keep theirs"


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.lists(st.sampled_from("abcd"), max_size=60))
def test_slots_never_go_back_and_forth(holders, newcomers):
    running = [Holder(0, client, at) for at, client in enumerate(holders)]
    moved = 0
    waiting = list(newcomers)
    while waiting:
        client = waiting.pop(0)
        at = victim(0, client, running)
        if at >= 0:
            waiting.append(running[at].client)
            running[at] = Holder(0, client, 0)
            moved += 1
            assert moved <= len(holders) * 4, "it settles"
