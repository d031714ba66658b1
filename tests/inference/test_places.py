"""A bounded number of jobs at a time: who waits, who leaves, and that no place is ever lost."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from inference.engines.places import WAITING_LIMIT, Places
from market.errors import EngineFailed
from market.ports import EngineLoad, Job
from market.task import Sampling, TaskId


def job(*, client: str = "", priority: int = 0, deadline_s: float = 0.0) -> Job:
    return Job(
        task=TaskId(bytes(32)),
        prompt=(1,),
        sampling=Sampling(seed=bytes(32)),
        max_tokens=1,
        end_tokens=frozenset(),
        client=client,
        priority=priority,
        deadline_s=deadline_s,
    )


class Crowd:
    """Jobs that take a place and keep it until told."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.order: list[str] = []
        self.leave = asyncio.Event()

    async def one(self, name: str, work: Job) -> None:
        async with self.places.place(work):
            self.order.append(name)
            await self.leave.wait()

    def start(self, name: str, **more: object) -> asyncio.Task[None]:
        return asyncio.create_task(self.one(name, job(**more)))  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_no_more_than_the_places_run_and_the_rest_take_turns_by_priority_and_client():
    crowd = Crowd(Places(2))
    tasks = [crowd.start(f"greedy {n}", client="greedy", priority=1) for n in range(4)]
    await settle()
    tasks += [crowd.start("modest", client="modest", priority=1), crowd.start("urgent", priority=0)]
    await settle()
    assert crowd.places.load() == EngineLoad(running=2, waiting=4)
    crowd.leave.set()
    await asyncio.gather(*tasks)
    assert crowd.order[:3] == ["greedy 0", "greedy 1", "urgent"]
    assert crowd.order.index("modest") < crowd.order.index("greedy 3")
    assert crowd.places.load() == EngineLoad(running=0, waiting=0)


async def test_one_that_waits_past_its_deadline_is_told_so_and_leaves_the_queue():
    crowd = Crowd(Places(1))
    first = crowd.start("first")
    await settle()
    with pytest.raises(EngineFailed, match="deadline"):
        await crowd.start("late", deadline_s=0.02)
    assert crowd.places.load() == EngineLoad(running=1, waiting=0)
    crowd.leave.set()
    await first


async def test_a_cancelled_waiter_gives_its_turn_to_the_next():
    crowd = Crowd(Places(1))
    first = crowd.start("first")
    await settle()
    second, third, fourth = (crowd.start(name) for name in ("second", "third", "fourth"))
    await settle()
    third.cancel()
    first.cancel()
    await asyncio.sleep(0)  # the second has been given the place, and may not have noticed
    second.cancel()
    crowd.leave.set()
    await fourth
    await asyncio.gather(first, second, third, return_exceptions=True)
    assert crowd.order[-1] == "fourth"
    assert crowd.places.load() == EngineLoad(running=0, waiting=0)


async def test_when_too_many_wait_the_newest_of_whoever_asks_for_most_goes():
    places = Places(1)
    crowd = Crowd(places)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(places.place(job()))
        many = [crowd.start(f"{n}", client="greedy") for n in range(WAITING_LIMIT)]
        await settle()
        with pytest.raises(EngineFailed, match="waiting already"):
            await crowd.start("one more", client="greedy")
        modest = crowd.start("modest", client="modest")
        await settle()
        assert places.load().waiting == WAITING_LIMIT
        with pytest.raises(EngineFailed, match="waiting already"):
            await many[-1]
    crowd.leave.set()
    await asyncio.gather(modest, *many, return_exceptions=True)
    assert places.load() == EngineLoad(running=0, waiting=0)
