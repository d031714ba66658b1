"""The whole engine with real weights: right answers under any load, and no damage from any death."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing

import psutil
import pytest

from inference.engines.llama_cpp import open_llama_engine
from inference.speed import measure_speed
from market.errors import EngineFailed, ModelFileInvalid, NodeMisconfigured, PromptTooLong, RequestInvalid
from market.ports import Generated, Job
from market.task import LogitBias, Sampling, TaskId
from market.testing_engine import check_engine
from tests.inference.engine_kit import (
    GREEDY,
    SEEDED,
    answer,
    job,
    own_children,
    plain_decode,
    prompt_of,
    until,
)

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
async def engine(default_model):
    async with open_llama_engine(default_model, workers=1, threads=2, slots=8, context=1024) as opened:
        yield opened


# ---- right answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [5, 64, 65, 150])
async def test_greedy_equals_a_plain_reference_decode(engine, default_model, length):
    assert await answer(engine, job(length, 24)) == plain_decode(default_model, prompt_of(length), 24)


async def test_a_job_draws_the_same_tokens_alone_and_in_any_company(engine):
    """Company that joins late, leaves early, pauses, and leaves gaps; the context is long enough to show a slip."""
    work = job(330, 60, sampling=SEEDED)
    alone = await answer(engine, work)

    async def paused() -> None:
        async with aclosing(engine.generate(job(20, 500, salt=9))) as stream:
            async for _ in stream:
                await asyncio.sleep(60)

    async def cancelled() -> None:
        async with aclosing(engine.generate(job(70, 500, salt=8))) as stream:
            async for item in stream:
                if item.tokens:
                    await asyncio.sleep(0.3)
                    return

    idle = asyncio.create_task(paused())
    company = [
        asyncio.create_task(cancelled()),
        *(asyncio.create_task(answer(engine, job(n, 10 + n // 4, salt=n, sampling=SEEDED))) for n in (3, 64, 129)),
    ]
    await asyncio.sleep(0.2)
    ours = asyncio.create_task(answer(engine, work))
    await asyncio.sleep(0.5)
    late = asyncio.create_task(answer(engine, job(200, 30, salt=1)))
    assert await ours == alone
    await asyncio.gather(*company, late)
    idle.cancel()
    await asyncio.gather(idle, return_exceptions=True)


async def test_one_thread_draws_what_two_draw(engine, default_model):
    works = [job(length, 20, sampling=SEEDED, scope="a") for length in (65, 385)]
    two = [await answer(engine, work) for work in works]
    async with open_llama_engine(default_model, workers=1, threads=1, slots=2, context=1024) as other:
        assert [await answer(other, work) for work in works] == two
        assert await asyncio.gather(*(answer(other, work) for work in works)) == two
        assert other.prefix_facts.cached_tokens == 64 + 64 + 384


async def test_end_tokens_stop_and_max_tokens_and_context_are_lengths(engine):
    free = await answer(engine, job(10, 12))
    stopped = Job(
        task=TaskId(bytes(32)),
        prompt=prompt_of(10),
        sampling=GREEDY,
        max_tokens=12,
        end_tokens=frozenset({free[7]}),
    )
    assert await answer(engine, stopped) == free[: free.index(free[7])]
    items = [item async for item in engine.generate(job(1020, 50))]
    assert sum(len(item.tokens) for item in items) == 4 and items[-1].finish == "length"


async def test_it_passes_the_kit_that_every_engine_passes(engine):
    await check_engine(engine, prompt_of(12))


async def test_its_speed_and_its_name_can_be_published(engine):
    speed = await measure_speed(engine)
    assert speed.tokens_per_s > 1 and speed.first_token_ms > 0
    assert engine.info.name.startswith("llama.cpp/") and engine.info.name.endswith("/q4_0")
    assert (engine.info.context, engine.info.slots) == (1024, 8)
    assert "rlimits" in engine.isolation


# ---- sharing -------------------------------------------------------------------------------------


async def test_a_late_short_request_ends_before_an_early_long_one(engine):
    ended = []

    async def go(name: str, work: Job) -> None:
        await answer(engine, work)
        ended.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(go("long", job(600, 150)))
        await until(lambda: engine.load().running == 1)
        group.create_task(go("short", job(10, 5, salt=1)))
    assert ended == ["short", "long"]


async def test_the_first_token_comes_at_once_and_alone(default_model):
    """However late its reader looks: with a window of one, there is no second before the first was read."""
    async with (
        open_llama_engine(default_model, workers=1, threads=2, slots=1, context=256, window=1) as engine,
        aclosing(engine.generate(job(10, 20))) as stream,
    ):
        assert len((await anext(stream)).tokens) == 1
        assert len([token async for item in stream for token in item.tokens]) == 19


async def test_waiting_jobs_go_by_priority_and_closing_one_frees_its_slot(default_model):
    async with open_llama_engine(default_model, workers=1, slots=1, context=512) as engine:
        order = []

        async def go(name: str, priority: int) -> None:
            await answer(engine, job(5, 3, priority=priority))
            order.append(name)

        stream = engine.generate(job(5, 500))
        await anext(stream)
        async with asyncio.TaskGroup() as group:
            for name, priority in (("c", 2), ("a", 1), ("b", 1)):
                group.create_task(go(name, priority))
            given_up = asyncio.create_task(go("never", 0))
            await asyncio.sleep(0.05)
            assert (engine.load().running, engine.load().waiting) == (1, 4)
            given_up.cancel()
            await asyncio.gather(given_up, return_exceptions=True)
            assert order == [] and engine.load().waiting == 3
            await stream.aclose()  # else it would keep its slot for ever: nobody reads it
        assert order == ["a", "b", "c"]
        assert (engine.load().running, engine.load().waiting) == (0, 0)


async def test_a_slow_reader_is_waited_for(default_model):
    async with open_llama_engine(default_model, workers=1, slots=2, context=512, window=16) as engine:
        async with aclosing(engine.generate(job(5, 200))) as stream:
            got = list((await anext(stream)).tokens)
            worker = psutil.Process(engine.worker_pids[0])
            async with asyncio.timeout(60):
                spent_s = -1.0
                while sum(worker.cpu_times()[:2]) - spent_s >= 0.1:  # until it sleeps
                    spent_s = sum(worker.cpu_times()[:2])
                    await asyncio.sleep(0.5)
            ahead = await anext(stream)
            assert 1 < len(got) + len(ahead.tokens) <= 17
            got += ahead.tokens
            assert await answer(engine, job(5, 4, salt=1)), "others are served meanwhile"
            async for item in stream:
                got += item.tokens
        assert got == await answer(engine, job(5, 200))


# ---- what is refused -----------------------------------------------------------------------------


async def test_jobs_that_can_never_run_are_refused(engine):
    with pytest.raises(PromptTooLong, match="1024"):
        await answer(engine, job(1024, 1))
    base = job(5, 5)
    for bad in (
        Job(task=base.task, prompt=(), sampling=GREEDY, max_tokens=5, end_tokens=frozenset()),
        Job(task=base.task, prompt=(1, 49152), sampling=GREEDY, max_tokens=5, end_tokens=frozenset()),
        Job(task=base.task, prompt=(-1,), sampling=GREEDY, max_tokens=5, end_tokens=frozenset()),
        Job(task=base.task, prompt=(1,), sampling=GREEDY, max_tokens=0, end_tokens=frozenset()),
        Job(
            task=base.task,
            prompt=(1,),
            sampling=Sampling(seed=bytes(32), logit_bias=(LogitBias(token=49152, bias_micro=1),)),
            max_tokens=5,
            end_tokens=frozenset(),
        ),
    ):
        with pytest.raises(RequestInvalid):
            await answer(engine, bad)
    assert engine.load().running == engine.load().waiting == 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "not within the file bounds|corrupt|incomplete|load"),
        (lambda data: data[:100], "load"),
        (lambda data: data[:8] + b"\xff" * 4096 + data[4104:200_000], "load"),
        (lambda data: b"\0" * 4 + data[4:1000], "not a GGUF"),
        (lambda data: b"", "not a GGUF"),
    ],
)
async def test_a_damaged_model_file_is_named_and_nothing_stays_running(default_model, tmp_path, damage, reason):
    before = own_children()
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damage(default_model.read_bytes()))
    with pytest.raises(ModelFileInvalid, match=reason) as caught:
        async with open_llama_engine(path, workers=2, slots=1, context=256):
            pass
    assert "damaged.gguf" in str(caught.value) or "worker ended" in str(caught.value)
    assert own_children() == before


async def test_absurd_settings_and_missing_files_are_named(default_model, tmp_path):
    for bad in ({"workers": 0}, {"workers": 1, "slots": 61}, {"workers": 1, "context": 0}, {"workers": 1, "window": 0}):
        with pytest.raises(NodeMisconfigured, match=list(bad)[-1]):
            async with open_llama_engine(default_model, **bad):
                pass
    with pytest.raises(NodeMisconfigured, match="cannot read"):
        async with open_llama_engine(tmp_path / "none.gguf", workers=1):
            pass


# ---- deaths --------------------------------------------------------------------------------------


async def test_killing_a_worker_changes_no_answer_and_it_comes_back(default_model):
    """Its jobs go on with the other worker, or the next one, where they were."""
    async with open_llama_engine(default_model, workers=2, slots=2, context=512) as engine:
        works = [job(20, 60, sampling=SEEDED), job(90, 60, sampling=SEEDED, salt=1)]
        whole = [await answer(engine, work) for work in works]
        streams = [engine.generate(work) for work in works]
        got = [list((await anext(stream)).tokens) for stream in streams]
        first = engine.worker_pids
        os.kill(first[0], signal.SIGKILL)
        for at, stream in enumerate(streams):
            async with asyncio.timeout(60):
                async for item in stream:
                    got[at] += item.tokens
        assert got == whole
        await until(lambda: len(engine.worker_pids) == 2)
        assert first[0] not in engine.worker_pids and first[1] in engine.worker_pids


async def test_a_worker_with_eight_streams_killed_twice_ends_each_with_a_clear_error(default_model):
    async with open_llama_engine(default_model, workers=1, slots=8, context=512) as engine:
        streams = [engine.generate(job(20, 400, salt=salt)) for salt in range(8)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        for _ in range(2):
            await until(lambda: engine.load().running == 8)  # all are with a worker, the first or the next
            os.kill(engine.worker_pids[0], signal.SIGKILL)
            await until(lambda: not engine.worker_pids)

        async def rest(stream) -> str:
            with pytest.raises(EngineFailed) as caught:
                async for _ in stream:
                    pass
            return str(caught.value)

        async with asyncio.timeout(60):
            reasons = await asyncio.gather(*(rest(stream) for stream in streams))
        assert all("SIGKILL" in reason and "restarted" in reason for reason in reasons)
        assert len(await answer(engine, job(20, 5))) == 5


async def test_a_stopped_worker_is_noticed_and_replaced(default_model):
    async with open_llama_engine(default_model, workers=1, slots=1, context=512, hang_s=3.0) as engine:
        whole = await answer(engine, job(20, 60))
        stream = engine.generate(job(20, 60))
        got = list((await anext(stream)).tokens)
        waiting = asyncio.create_task(answer(engine, job(10, 5)))
        [pid] = engine.worker_pids
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            async for item in stream:
                got += item.tokens
        assert got == whole, "the next worker went on with it"
        assert len(await waiting) == 5
        assert not psutil.pid_exists(pid)


async def test_when_no_worker_can_come_back_jobs_fail_instead_of_waiting(default_model, tmp_path):
    path = tmp_path / "model.gguf"
    path.symlink_to(default_model)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    async with open_llama_engine(copy, workers=1, slots=1, context=256) as engine:
        copy.unlink()
        os.kill(engine.worker_pids[0], signal.SIGKILL)
        await until(lambda: not engine.worker_pids)
        with pytest.raises(EngineFailed):
            async with asyncio.timeout(60):
                await answer(engine, job(5, 5))
        copy.write_bytes(default_model.read_bytes())
        await until(lambda: engine.worker_pids)
        assert len(await answer(engine, job(5, 5))) == 5


async def test_no_process_is_left_behind_however_the_engine_is_left(default_model):
    before = own_children()
    with pytest.raises(ZeroDivisionError):
        async with open_llama_engine(default_model, workers=2, slots=1, context=256) as engine:
            stream = engine.generate(job(5, 100))
            assert isinstance(await anext(stream), Generated)
            assert len(own_children()) == len(before) + 2
            raise ZeroDivisionError
    await stream.aclose()
    assert own_children() == before

    async def opening() -> None:
        async with open_llama_engine(default_model, workers=2, slots=1, context=256):
            await asyncio.sleep(60)

    for delay_s in (0.0, 0.001, 0.005, 0.01, 0.02, 0.2):
        task = asyncio.create_task(opening())
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert own_children() == before
