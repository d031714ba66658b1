"""Models come when they are asked for and go when another needs the room: with fake models that take real turns."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from inference.work.engine import open_work_engine
from market.errors import EngineFailed, NodeMisconfigured, OctoError
from market.testing_work import ByteMeter
from market.work import Work
from node.model_cache import ModelCache


class House:
    """Models of so many bytes each, opened one turn later; what the cache told, and who opened and closed them."""

    def __init__(self, budget: int = 10, **options) -> None:
        self.told: list[tuple] = []
        self.opened: list[str] = []
        self.tasks: dict[str, list] = {}
        self.failures: dict[str, list[Exception]] = {}
        self.using: Counter[str] = Counter()
        self.closed_in_use: list[str] = []
        self.when_loaded = lambda: None
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.takes: dict[str, int | None] = {}
        self.cache = ModelCache(budget=lambda _held: budget, weigh=self.weigh, listener=self, **options)

    def add(self, model: str, size: int, **facts) -> None:
        self.takes.setdefault(model, size)
        self.cache.add(model, lambda: self._open(model), size_bytes=size, **facts)

    @asynccontextmanager
    async def _open(self, model: str):
        self.tasks.setdefault(model, []).append(asyncio.current_task())
        await self.may_open.wait()
        if self.failures.get(model):
            raise self.failures[model].pop(0)
        self.opened.append(model)
        try:
            yield SimpleNamespace(name=model)
        finally:
            self.tasks[model].append(asyncio.current_task())
            if self.using[model]:
                self.closed_in_use.append(model)

    async def weigh(self, serving) -> int | None:
        await asyncio.sleep(0)
        return self.takes[serving.name]

    def loaded(self, model: str, serving, size_bytes: int) -> None:
        self.told.append(("loaded", model, size_bytes))
        self.when_loaded()

    def unloaded(self, model: str, size_bytes: int) -> None:
        self.told.append(("unloaded", model, size_bytes))

    def failed(self, model: str, error: OctoError) -> None:
        self.told.append(("failed", model, error.message))

    async def use(self, model: str, turns: int = 1, priority: int = 0) -> str:
        async with self.cache.use(model, priority) as serving:
            self.using[model] += 1
            try:
                for _ in range(turns):
                    await asyncio.sleep(0.001)
            finally:
                self.using[model] -= 1
            return serving.name

    @property
    def warm(self) -> set[str]:
        return {model for model in self.takes if self.cache.is_warm(model)}


@pytest.fixture
async def house():
    built = House(retry_first_s=0.02, patience_s=0.2)
    yield built
    assert built.closed_in_use == []
    await built.cache.aclose()


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_many_tasks_at_once_load_a_model_once(house) -> None:
    house.add("a", 4)
    assert await asyncio.gather(*(house.use("a") for _ in range(50))) == ["a"] * 50
    assert house.opened == ["a"]
    counts = house.cache.counts
    assert (counts.hits, counts.misses, counts.loads) == (0, 50, 1)
    await house.use("a")
    assert counts.hits == 1 and house.cache.size_bytes == 4


async def test_the_least_recently_used_makes_room(house) -> None:
    for model in "abc":
        house.add(model, 5)
    for model in "abac":
        await house.use(model)
    assert house.warm == {"a", "c"} and house.cache.counts.evictions == 1
    assert house.told[-2:] == [("unloaded", "b", 5), ("loaded", "c", 5)]


async def test_a_model_with_tasks_stays_until_they_are_done(house) -> None:
    house.add("a", 6)
    house.add("b", 6)
    running = asyncio.create_task(house.use("a", turns=50))
    await until(lambda: house.warm)
    waiting = asyncio.create_task(house.use("b"))
    await asyncio.sleep(0.02)
    assert house.warm == {"a"} and not running.done()
    assert await waiting == "b" and running.done()


async def test_a_pinned_model_never_goes(house) -> None:
    house.add("a", 6, pinned=True)
    house.add("b", 6)
    await house.use("a")
    with pytest.raises(NodeMisconfigured, match="needs 0 MB of memory"):
        await house.use("b")
    assert house.warm == {"a"}


async def test_a_model_that_is_never_idle_cannot_keep_another_out_for_ever(house) -> None:
    house.add("a", 6)
    house.add("b", 6)
    done: list[str] = []

    async def always() -> None:
        while True:
            done.append(await house.use("a", turns=5))

    crowd = [asyncio.create_task(always()) for _ in range(3)]
    try:
        await until(lambda: house.warm)
        assert await house.use("b") == "b"
        before = len(done)
        await until(lambda: len(done) > before + 3)  # and those who were held back have their turn again
    finally:
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)


async def test_a_task_that_comes_while_its_model_goes_has_it_loaded_again(house) -> None:
    for model in "ab":
        house.add(model, 6)
    await house.use("a")
    both = asyncio.gather(house.use("b"), house.use("a"))
    assert await both == ["b", "a"]
    assert house.opened == ["a", "b", "a"]


async def test_a_model_is_opened_and_closed_by_one_task(house) -> None:
    for model in "ab":
        house.add(model, 6)
    for model in "aba":
        await house.use(model)
    await house.cache.aclose()
    for opened, closed in zip(house.tasks["a"][::2], house.tasks["a"][1::2], strict=True):
        assert opened is closed


async def test_a_load_that_fails_ends_every_task_that_waits_and_is_tried_again_later(house) -> None:
    house.add("a", 4)
    house.add("b", 4)
    house.failures["a"] = [EngineFailed("no memory."), EngineFailed("still none.")]
    ends = await asyncio.gather(*(house.use("a") for _ in range(5)), return_exceptions=True)
    assert all(isinstance(end, EngineFailed) and "no memory" in str(end) for end in ends)
    assert len(set(map(id, ends))) == 5, "an error of its own for each"
    with pytest.raises(EngineFailed, match="no memory"):
        await house.use("a")  # at once: nobody waits for what failed a moment ago
    assert await house.use("b") == "b"
    await until(lambda: "a" in house.warm)
    assert [kind for kind, model, _ in house.told if model == "a"] == ["failed", "failed", "loaded"]
    assert house.cache.counts.failures == 2 and not house.cache.failing()
    assert await house.use("a") == "a"


async def test_a_fault_of_ours_while_loading_is_a_failure_too(house) -> None:
    house.add("a", 4)
    house.failures["a"] = [ZeroDivisionError("oh")]
    with pytest.raises(EngineFailed, match="ZeroDivisionError"):
        await house.use("a")


async def test_what_was_measured_counts_from_then_on(house) -> None:
    house.add("a", 9)
    house.add("b", 4)
    house.takes["a"] = 3
    await house.use("a")
    await house.use("b")
    assert house.warm == {"a", "b"} and house.cache.size_bytes == 7


async def test_what_took_more_than_expected_costs_the_others_their_place(house) -> None:
    house.add("a", 5)
    house.add("b", 5)
    house.takes["b"] = 7
    await house.use("a")
    await house.use("b")
    await until(lambda: house.warm == {"b"})


async def test_what_nobody_can_weigh_counts_as_expected(house) -> None:
    house.add("a", 9)
    house.takes["a"] = None
    await house.use("a")
    assert house.cache.size_bytes == 9


async def test_a_task_that_gives_up_leaves_no_trace(house) -> None:
    house.add("a", 6)
    house.add("b", 6)
    house.may_open.clear()
    early = asyncio.create_task(house.use("a"))
    await asyncio.sleep(0.01)
    early.cancel()
    late = asyncio.create_task(house.use("a"))
    # In the very turn in which it is given its place, and has not heard of it.
    house.when_loaded = lambda: asyncio.get_running_loop().call_soon(late.cancel)
    house.may_open.set()
    await asyncio.wait((early, late))
    assert early.cancelled() and late.cancelled()
    house.when_loaded = lambda: None
    async with asyncio.timeout(60):
        assert await house.use("b") == "b", "nobody is counted as using a"


async def test_realtime_is_loaded_before_what_can_wait(house) -> None:
    for model in "abc":
        house.add(model, 6)
    running = asyncio.create_task(house.use("a", turns=20))
    await until(lambda: house.warm)
    patient = asyncio.create_task(house.use("b", priority=4))
    await asyncio.sleep(0)
    urgent = asyncio.create_task(house.use("c", priority=0))
    await asyncio.gather(running, patient, urgent)
    assert house.opened == ["a", "c", "b"]


async def test_at_the_end_who_waits_is_told_and_everything_is_closed(house) -> None:
    house.add("a", 4)
    house.add("b", 4)
    await house.use("b")
    house.may_open.clear()
    waiting = asyncio.create_task(house.use("a"))
    await asyncio.sleep(0.01)
    await house.cache.aclose()
    async with asyncio.timeout(60):
        with pytest.raises(EngineFailed, match="stopping"):
            await waiting
    assert not house.warm
    with pytest.raises(EngineFailed, match="stopping"):
        await house.use("a")
    gc.collect()  # a future whose error nobody took would be reported here


@pytest.mark.parametrize("how", ["eat", "die"])
async def test_a_real_worker_that_runs_out_of_memory_while_loading_costs_its_model_alone(tmp_path, house, how) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")

    def opened(options: dict):
        @asynccontextmanager
        async def open_one():
            async with open_work_engine(
                "tests.inference.toy_runner",
                tmp_path,
                works=frozenset((Work.EMBED,)),
                meter=ByteMeter(),
                options=options,
                memory_bytes=512 << 20,
            ) as engine:
                yield SimpleNamespace(name="real", engine=engine)

        return open_one

    house.takes["real"] = 1
    house.cache.add("well", opened({}), size_bytes=1)
    house.cache.add("ill", opened({"fail": how}), size_bytes=1)
    with pytest.raises(EngineFailed, match=r"load|memory|Memory"):
        async with house.cache.use("ill"):
            pass
    async with house.cache.use("well") as serving:
        assert serving.engine.worker_pids
