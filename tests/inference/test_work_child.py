"""Children that work: what they say, what they give up, how they end, and what the node makes of a rogue one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from inference.isolation import landlock_abi
from inference.work.engine import SupervisedEngine, open_work_engine
from inference.work.runner import Task
from market.errors import EngineFailed, ModelFileInvalid, RequestInvalid
from market.ports import Made, WorkJob
from market.task import TaskId
from market.testing_work import ByteMeter, check_work_engine
from market.work import BLOB_LIMIT_BYTES, EmbedRequest, RerankRequest, Work, WorkRequest
from tests.inference.engine_kit import runs

TOY = "tests.inference.toy_runner"
RERANK = RerankRequest(query="q", documents=("d",))


class ToyMeter(ByteMeter):
    """Takes a blob too: the toy hands its first 32 bytes back."""

    def units_in(self, request: WorkRequest, blob: bytes) -> int:
        return super().units_in(request, b"")


def opened(folder: Path, **changes: object):
    settings = {"works": frozenset((Work.EMBED,)), "meter": ToyMeter(), "memory_bytes": 1 << 30, "hang_s": 20.0}
    return open_work_engine(TOY, folder, **{**settings, **changes})  # type: ignore[arg-type]


def job(*texts: str, blob: bytes = b"", units: int = 100, **changes: object) -> WorkJob:
    request = EmbedRequest(inputs=texts or ("a",))
    return WorkJob(task=TaskId(bytes(32)), request=request, blob=blob, max_units=units, **changes)  # type: ignore[arg-type]


async def made_by(engine: SupervisedEngine, wanted: WorkJob) -> list[Made]:
    return [item async for item in engine.make(wanted)]


async def pieces_of(engine: SupervisedEngine, *texts: str, **changes: object) -> list[bytes]:
    return [piece for item in await made_by(engine, job(*texts, **changes)) for piece in item.pieces]  # type: ignore[arg-type]


async def until(happens) -> None:
    async with asyncio.timeout(60):
        while not happens():
            await asyncio.sleep(0.005)


def test_a_task_is_known_by_itself_not_by_its_contents():
    request = EmbedRequest(inputs=("a",))
    assert Task(1, request, b"", 1) != Task(1, request, b"", 1)


# ---- the real process ----------------------------------------------------------------------------------


async def test_the_engine_keeps_the_rules_of_its_port(tmp_path):
    async with opened(tmp_path) as engine:
        pieces = await check_work_engine(engine, ToyMeter(), EmbedRequest(inputs=("a", "b")), wrong=RERANK)
        assert pieces == [bytes(32)] * 2
        assert engine.info.name == "toy/1" and engine.info.context == 1000 and engine.info.slots == 8
        assert engine.isolation == ("landlock+rlimits" if landlock_abi() else "rlimits")


async def test_a_blob_of_32_mib_arrives_whole(tmp_path):
    blob = bytes(range(32)) + os.urandom(BLOB_LIMIT_BYTES - 32)
    async with opened(tmp_path) as engine:
        assert await pieces_of(engine, "a", blob=blob) == [bytes(range(32))]
        with pytest.raises(RequestInvalid, match="limits"):
            await pieces_of(engine, "a", blob=blob + b"!")


async def test_a_child_reads_its_model_and_nothing_else(tmp_path):
    (tmp_path / "model.onnx").write_text("x")
    async with opened(tmp_path) as engine:
        assert await pieces_of(engine, "break") == [bytes(32)]
        [pid] = engine.worker_pids
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"HOME=" not in environment and b"PATH=" not in environment.replace(b"PYTHONPATH=", b"")
        assert not list(tmp_path.glob("new"))


async def test_what_the_model_trips_over_costs_its_task_alone_and_is_not_quoted(tmp_path):
    async with opened(tmp_path) as engine:
        [pid] = engine.worker_pids
        with pytest.raises(EngineFailed) as failed:
            await pieces_of(engine, "raise password")
        assert "ValueError" in str(failed.value) and "password" not in str(failed.value)
        with pytest.raises(RequestInvalid) as refused:
            await pieces_of(engine, "refuse")
        assert str(refused.value) == "not that Send this."
        assert await pieces_of(engine, "a") == [bytes(32)] and engine.worker_pids == (pid,)


@pytest.mark.parametrize("word", ["die", "eat", "torn", "hang"])
async def test_a_child_that_crashes_leaks_lies_or_hangs_is_replaced(tmp_path, word):
    async with opened(tmp_path, hang_s=1.5) as engine:
        [pid] = engine.worker_pids
        with pytest.raises(EngineFailed, match="worker") as failed:
            await pieces_of(engine, word)
        assert "restarted" in failed.value.next_step
        assert await pieces_of(engine, "a") == [bytes(32)]
        assert engine.worker_pids != (pid,) and not psutil.pid_exists(pid)


async def test_slow_work_that_beats_is_no_hang(tmp_path):
    async with opened(tmp_path, hang_s=1.5) as engine:
        assert len(await pieces_of(engine, "slow 300")) == 1


async def test_closing_the_stream_cancels_the_job_and_frees_its_slot(tmp_path):
    async with opened(tmp_path, slots=1) as engine:
        async with aclosing(engine.make(job("a", "slow 20000"))) as stream:
            assert (await anext(stream)).pieces
        assert engine.load().running == 0
        async with asyncio.timeout(60):  # the child is free too, long before the 200 s that the job would take
            assert await pieces_of(engine, "b") == [bytes(32)]


async def test_no_more_comes_than_was_agreed(tmp_path):
    async with opened(tmp_path) as engine:
        items = await made_by(engine, job("a", "b", "c", units=2))
        assert sum(len(item.pieces) for item in items) == 2 and items[-1].finish == "length"
        assert items[-1].progress == 100


async def test_an_urgent_job_and_a_new_client_do_not_wait_for_all_that_came_before(tmp_path):
    ended: list[str] = []

    async def one(name: str, **changes: object) -> None:
        await made_by(engine, job("slow 2", **changes))  # type: ignore[arg-type]
        ended.append(name)

    async with opened(tmp_path, slots=1) as engine, asyncio.TaskGroup() as tasks:
        [pid] = engine.worker_pids
        os.kill(pid, signal.SIGSTOP)  # nothing ends before all have come
        for _ in range(6):
            tasks.create_task(one("greedy", client="greedy"))
        await until(lambda: engine.load().waiting == 5)
        tasks.create_task(one("other", client="other"))
        await until(lambda: engine.load().waiting == 6)
        tasks.create_task(one("urgent", priority=-1))
        await until(lambda: engine.load().waiting == 7)
        os.kill(pid, signal.SIGCONT)
    assert ended.index("urgent") < 3 and ended.index("other") < 4


async def test_a_job_waits_no_longer_than_its_deadline(tmp_path):
    async with opened(tmp_path, slots=1) as engine:
        running = asyncio.create_task(pieces_of(engine, "slow 3000"))
        await until(lambda: engine.load().running == 1)
        with pytest.raises(EngineFailed, match="deadline"):
            await pieces_of(engine, "a", deadline_s=0.05)
        assert engine.load().waiting == 0
        running.cancel()


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("invalid", ModelFileInvalid, "this is no model"),
        ("raise", ModelFileInvalid, "ValueError: bad file the model/model.onnx"),
        ("die", ModelFileInvalid, "SIGABRT"),
    ],
)
async def test_a_model_that_does_not_load_is_said_at_once(tmp_path, how, error, words):
    with pytest.raises(error, match=words):
        async with opened(tmp_path, options={"fail": how}):
            pass


async def test_children_are_gone_when_the_engine_is_closed(tmp_path):
    async with opened(tmp_path, workers=2) as engine:
        pids = engine.worker_pids
        running = asyncio.create_task(pieces_of(engine, "hang"))
        await until(lambda: engine.load().running == 1)
    assert len(pids) == 2 and not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(EngineFailed):
        async with asyncio.timeout(60):
            await running


@pytest.mark.processes
async def test_a_child_ends_with_its_parent(tmp_path):
    script = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from tests.inference.test_work_child import opened, pieces_of\n"
        "async def main():\n"
        f"    async with opened(Path({str(tmp_path)!r})) as engine:\n"
        "        asyncio.ensure_future(pieces_of(engine, 'hang'))\n"
        "        await asyncio.sleep(0.2)\n"
        "        print('pid', *engine.worker_pids, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(next(line for line in parent.stdout if line.startswith("pid")).split()[1])
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    await until(lambda: not runs(pid))
