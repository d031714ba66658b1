"""Jobs whose worker dies: begun again by the next one, once, unless their reader has seen some of the result."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import astuple
from pathlib import Path

import pytest

from inference.work.engine import SupervisedEngine
from market.errors import EngineFailed
from tests.inference.test_work_child import job, made_by, opened, pieces_of, until

PIECE = bytes(32)


async def stopped(engine: SupervisedEngine, at: int = 0) -> int:
    """A worker that takes jobs and does nothing with them, so that they are in flight for as long as a test wants."""
    pid = engine.worker_pids[at]
    os.kill(pid, signal.SIGSTOP)
    return pid


async def in_flight(engine: SupervisedEngine, texts: Sequence[str]) -> list[asyncio.Task[list[bytes]]]:
    """In this order."""
    before = engine.load().running
    jobs = [asyncio.create_task(pieces_of(engine, text)) for text in texts]
    await until(lambda: engine.load().running == before + len(texts))
    return jobs


async def test_kill_9_with_eight_jobs_in_flight_loses_none(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        pid = await stopped(engine)
        jobs = await in_flight(engine, ["a"] * 8)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            assert await asyncio.gather(*jobs) == [[PIECE]] * 8
        assert engine.load().running == engine.load().waiting == 0
        assert engine.worker_pids != (pid,)


async def test_they_go_to_the_worker_that_is_there_in_the_order_they_came(tmp_path: Path) -> None:
    ended: list[int] = []

    async def one(number: int) -> None:
        await pieces_of(engine, "a")
        ended.append(number)

    async with opened(tmp_path, workers=2, slots=4) as engine:
        for at in range(2):
            await stopped(engine, at)
        jobs = [asyncio.create_task(one(at)) for at in range(8)]
        await until(lambda: engine.load().running == 8)
        newcomer = asyncio.create_task(one(9))
        await until(lambda: engine.load().waiting == 1)
        first, second = engine.worker_pids
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(60):
            await until(lambda: len(ended) == 5)
            assert sorted(ended[:4]) == ended[:4] and ended[4] == 9, "first in line again, before who had no slot yet"
            os.kill(second, signal.SIGCONT)
            await asyncio.gather(*jobs, newcomer)
        assert engine.load().running == engine.load().waiting == 0


async def test_a_second_death_ends_the_job_that_was_under_it_and_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        pid = await stopped(engine)
        jobs = await in_flight(engine, ["slow 3000", *["a"] * 7])
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engine.load().running == 1)
        os.kill(engine.worker_pids[0], signal.SIGKILL)
        async with asyncio.timeout(60):
            ends = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(ends[0], EngineFailed) and "SIGKILL" in str(ends[0]) and "restarted" in ends[0].next_step
        assert ends[1:] == [[PIECE]] * 7


@pytest.mark.parametrize("at", [0, 3, 7])
async def test_a_job_that_ends_its_worker_each_time_fails_and_those_beside_it_are_answered(
    tmp_path: Path, at: int
) -> None:
    async with opened(tmp_path) as engine:
        pid = await stopped(engine)
        texts = ["slow 5"] * 8
        texts[at] = "die"
        jobs = await in_flight(engine, texts)
        os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(60):
            ends = await asyncio.gather(*jobs, return_exceptions=True)
        died = ends.pop(at)
        assert isinstance(died, EngineFailed) and "SIGABRT" in str(died)
        assert ends == [[PIECE]] * 7
        assert await pieces_of(engine, "a") == [PIECE]


async def test_a_newcomer_does_not_run_beside_a_job_that_is_begun_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        pid = await stopped(engine)
        [again] = await in_flight(engine, ["slow 3000"])
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engine.worker_pids not in ((), (pid,)))
        newcomer = asyncio.create_task(pieces_of(engine, "a"))
        await until(lambda: sum(astuple(engine.load())) == 2)
        assert engine.load().running == engine.load().waiting == 1
        again.cancel()
        assert await newcomer == [PIECE]


async def test_a_job_that_is_begun_again_does_not_join_those_of_another_worker(tmp_path: Path) -> None:
    async with opened(tmp_path, workers=2) as engine:
        pid = await stopped(engine)
        again, other = await in_flight(engine, ["a", "slow 3000"])
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engine.load().waiting == 1)
        assert await again == [PIECE]
        other.cancel()


async def test_a_job_whose_reader_has_seen_a_piece_ends_with_the_error(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        async with aclosing(engine.make(job("a", "slow 3000"))) as stream:
            assert (await anext(stream)).pieces == (PIECE,)
            os.kill(engine.worker_pids[0], signal.SIGKILL)
            with pytest.raises(EngineFailed, match="SIGKILL") as failed:
                await anext(stream)
        assert "restarted" in failed.value.next_step
        assert await pieces_of(engine, "a") == [PIECE] and engine.load().waiting == 0


async def test_a_worker_that_hangs_costs_no_job_either(tmp_path: Path) -> None:
    async with opened(tmp_path, hang_s=1.0) as engine:
        pid = await stopped(engine)
        async with asyncio.timeout(60):
            assert await pieces_of(engine, "a") == [PIECE]
        assert engine.worker_pids != (pid,)


async def test_a_job_that_is_cancelled_while_it_waits_again_leaves_nothing_behind(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        pid = await stopped(engine)
        jobs = await in_flight(engine, ["a"] * 3)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engine.load().waiting == 3)
        for one in jobs:
            one.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        assert engine.load().running == engine.load().waiting == 0 and engine._waiting_bytes == 0
        assert await pieces_of(engine, "a") == [PIECE]
        assert engine._waiting_bytes == 0


async def test_an_engine_that_is_closed_ends_the_jobs_that_wait_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        pid = await stopped(engine)
        jobs = await in_flight(engine, ["a"] * 3)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engine.load().waiting == 3)
    ends = await asyncio.gather(*jobs, return_exceptions=True)
    assert all(isinstance(end, EngineFailed) and "closed" in str(end) for end in ends)
    assert engine.load().running == engine.load().waiting == 0 and engine._waiting_bytes == 0


async def test_a_job_waits_again_until_its_deadline_and_no_longer(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        pid = await stopped(engine)
        late = asyncio.create_task(made_by(engine, job("a", deadline_s=2.0)))
        urgent = asyncio.create_task(made_by(engine, job("slow 3000", priority=-1)))  # the next worker is for this one
        await until(lambda: engine.load().running == 2)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineFailed, match="deadline"):
            await late
        assert engine.load().waiting == 0 and engine._waiting_bytes == 0
        urgent.cancel()


async def test_a_job_does_not_wait_again_when_its_deadline_has_passed_while_it_ran(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        pid = await stopped(engine)
        late = asyncio.create_task(made_by(engine, job("a", deadline_s=0.1)))
        await asyncio.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineFailed, match="SIGKILL"):
            await late
        assert engine.load().waiting == 0 and engine._waiting_bytes == 0
