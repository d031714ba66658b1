"""An engine that is loaded when it is used: it keeps the ports' promises, and its quote."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from inference.engines.on_demand import OnDemandEngine, OnDemandWork
from market.errors import EngineFailed, ModelFileInvalid
from market.ports import EngineInfo, EngineLoad, WorkJob
from market.task import TaskId
from market.testing import ScriptedEngine
from market.testing_engine import check_engine, job
from market.testing_work import ByteMeter, HashEmbedder, check_work_engine
from market.work import EmbedRequest, RerankRequest, Work


class Loader:
    """Gives its engine when it is let; remembers for whom it was kept."""

    def __init__(self, engine, *, failure: Exception | None = None) -> None:
        self.engine = engine
        self.may = asyncio.Event()
        self.priorities: list[int] = []
        self.users = 0
        self._failure = failure

    @asynccontextmanager
    async def use(self, priority: int):
        self.priorities.append(priority)
        await self.may.wait()
        if self._failure is not None:
            raise self._failure
        self.users += 1
        try:
            yield self.engine
        finally:
            self.users -= 1


def standing_for(loader: Loader, **facts) -> OnDemandEngine:
    return OnDemandEngine(loader.use, info=replace(loader.engine.info, **facts))


async def test_it_does_what_every_engine_must_do() -> None:
    loader = Loader(ScriptedEngine())
    loader.may.set()
    await check_engine(standing_for(loader), (1, 2, 3))
    assert loader.users == 0


async def test_an_engine_for_other_work_does_too() -> None:
    loader = Loader(HashEmbedder())
    loader.may.set()
    engine = OnDemandWork(loader.use, works=loader.engine.works, info=loader.engine.info)
    await check_work_engine(
        engine, ByteMeter(), EmbedRequest(inputs=("a", "b")), wrong=RerankRequest(query="a", documents=("b",))
    )
    assert loader.users == 0


async def test_a_task_waits_for_its_model_and_counts_as_waiting() -> None:
    loader = Loader(ScriptedEngine("hey"))
    engine = standing_for(loader)
    answer = asyncio.create_task(_tokens(engine, replace(job((1,)), priority=3)))
    await asyncio.sleep(0.02)
    assert engine.load() == EngineLoad(running=0, waiting=1) and not answer.done()
    loader.may.set()
    assert await answer == b"hey"
    assert engine.load() == EngineLoad(running=0, waiting=0) and loader.priorities == [3]


async def test_a_deadline_counts_from_before_the_load() -> None:
    engine = standing_for(Loader(ScriptedEngine()))
    with pytest.raises(EngineFailed, match=r"waited 0\.05 s for its model"):
        await _tokens(engine, replace(job((1,)), deadline_s=0.05))
    assert engine.load() == EngineLoad(running=0, waiting=0)


@pytest.mark.parametrize(("allowed", "least", "most"), [(5.0, 4.0, 4.97), (0.0, 0.0, 0.0)])
async def test_the_engine_is_told_what_is_left_of_a_deadline(allowed, least, most) -> None:
    heard: list[float] = []

    class Listening(ScriptedEngine):
        def generate(self, job):
            heard.append(job.deadline_s)
            return super().generate(job)

    loader = Loader(Listening())
    asyncio.get_running_loop().call_later(0.03, loader.may.set)
    await _tokens(standing_for(loader), replace(job((1,)), deadline_s=allowed))
    assert least <= heard[0] <= most


async def test_whatever_loading_raises_is_the_engine_s_failure_to_a_task() -> None:
    loader = Loader(ScriptedEngine(), failure=ModelFileInvalid("it is torn."))
    loader.may.set()
    with pytest.raises(EngineFailed, match="could not be loaded: it is torn") as failed:
        await _tokens(standing_for(loader), job((1,)))
    assert failed.value.retry, "another provider may have a whole one"


async def test_an_engine_of_another_class_than_was_quoted_answers_nothing() -> None:
    loader = Loader(ScriptedEngine())
    loader.may.set()
    engine = standing_for(loader, name="scripted/0")
    with pytest.raises(EngineFailed, match="another engine than was quoted"):
        await _tokens(engine, job((1,)))
    assert loader.users == 0 and loader.engine.generated == 0
    engine.know(loader.engine)
    assert await _tokens(engine, job((1,)))


async def test_what_is_known_of_an_engine_outlives_its_unloading() -> None:
    inner = ScriptedEngine(context=77)
    inner.isolation, inner.worker_pids = "strong", (7,)
    engine = OnDemandEngine(Loader(inner).use, info=EngineInfo(name="old", context=1, slots=1))
    assert engine.worker_pids == ()
    engine.know(inner)
    assert (engine.info.context, engine.isolation, engine.worker_pids) == (77, "strong", (7,))
    engine.know(None)
    assert (engine.info.context, engine.isolation, engine.worker_pids) == (77, "strong", ())


async def test_closing_a_stream_lets_the_model_go() -> None:
    loader = Loader(HashEmbedder())
    loader.may.set()
    engine = OnDemandWork(loader.use, works=frozenset((Work.EMBED,)), info=loader.engine.info)
    work = WorkJob(task=TaskId(bytes(32)), request=EmbedRequest(inputs=("a", "b", "c")), blob=b"", max_units=3)
    stream = engine.make(work)
    await anext(stream)
    assert loader.users == 1
    await stream.aclose()
    assert loader.users == 0


async def _tokens(engine, work) -> bytes:
    return bytes([token async for item in engine.generate(work) for token in item.tokens])
