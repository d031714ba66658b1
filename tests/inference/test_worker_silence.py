"""How long a busy worker may be silent: what it said of its own speed, which is not believed blindly."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import struct
import time
from pathlib import Path

import pytest

from inference.engines.llama_cpp import open_llama_engine
from inference.orders import CHUNK_LIMIT_S, WorkerFacts
from inference.restarting import silence_limit_s
from inference.supervisor import JobStream
from market.errors import EncodingInvalid, EngineFailed
from market.values import from_plain, to_plain
from tests.inference.engine_kit import answer, job, until
from tests.inference.test_worker import ROGUE, running, some_job

FACTS = {"engine": "e", "vocabulary": 1, "isolation": "i", "chunk_s": 0.1, "grammars": True}
BEATS = """
while True:
    line.sendall(pack(["alive"]))
    time.sleep(0.05)
"""


async def test_silence_while_busy_is_a_hang_and_silence_while_idle_is_not():
    async with running(f"{ROGUE}\ntime.sleep(60)", hang_s=0.4) as worker:
        await asyncio.sleep(1)
        first = worker.pid
        assert worker.ready
        stream = JobStream(1, some_job())
        worker.assign(stream)
        with pytest.raises(EngineFailed, match=r"silent for 0\.\d s"):  # since it had work
            async with asyncio.timeout(30):  # it sleeps for 60
                await stream.take()
        async with asyncio.timeout(60):
            while not worker.ready or worker.pid == first:
                await asyncio.sleep(0.02)


async def test_time_in_which_the_node_itself_stood_still_is_no_silence():
    async with running(f"{ROGUE}{BEATS}", hang_s=1.5) as worker:
        pid = worker.pid
        worker.assign(JobStream(1, some_job()))
        await asyncio.sleep(0.2)
        for _ in range(3):
            time.sleep(2.0)
            await asyncio.sleep(0.1)
        assert worker.pid == pid and len(worker.streams) == 1


@pytest.mark.model
async def test_a_stopped_worker_is_noticed_by_its_own_measure(default_model: Path) -> None:
    async with open_llama_engine(default_model, workers=1, slots=1, context=512) as engine:
        whole = await answer(engine, job(20, 20))
        [pid] = engine.worker_pids
        [worker] = engine._workers
        assert worker.facts is not None and 0 < worker.facts.chunk_s < 60
        limit_s = worker.silence_limit_s
        assert limit_s == silence_limit_s(worker.facts.chunk_s)
        os.kill(pid, signal.SIGSTOP)
        began_s = time.monotonic()
        again = asyncio.create_task(answer(engine, job(20, 20)))
        await until(lambda: engine.worker_pids != (pid,), limit_s=3 * limit_s)
        assert time.monotonic() - began_s >= limit_s
        assert await again == whole


@pytest.mark.parametrize(("chunk_s", "limit_s"), [(0.0, 8), (0, 8), (2.5, 75), (CHUNK_LIMIT_S, 300)])
async def test_a_limit_follows_the_workers_word(chunk_s, limit_s):
    async with running(ROGUE.replace('"chunk_s": 0.1', f'"chunk_s": {chunk_s}')) as worker:
        assert worker.silence_limit_s == limit_s
    async with running(ROGUE.replace('"chunk_s": 0.1', f'"chunk_s": {chunk_s}'), hang_s=7.5) as worker:
        assert worker.silence_limit_s == 7.5, "what was asked for goes before"


def test_facts_are_what_was_said():
    assert to_plain(WorkerFacts, from_plain(WorkerFacts, FACTS)) == FACTS


@pytest.mark.parametrize(
    "change",
    [
        {"vocabulary": "many"},
        *({"chunk_s": wrong} for wrong in (math.nan, math.inf, -math.inf, -0.001, CHUNK_LIMIT_S + 1, "1", None, [1.0])),
        *({"chunk_s": wrong} for wrong in (1e300, 10**18, True, b"1")),
    ],
    ids=repr,
)
def test_facts_that_cannot_be_are_refused(change):
    with pytest.raises(EncodingInvalid, match="malformed"):
        from_plain(WorkerFacts, FACTS | change)


@pytest.mark.parametrize("number", [math.nan, math.inf, -1.0, 1e300])
async def test_a_worker_whose_facts_cannot_be_does_not_come_up(number):
    """Packed by hand, in 8 bytes: our own encoder refuses some."""
    facts = "pack(['ready', {'engine': 'e', 'vocabulary': 100, 'isolation': 'none', 'chunk_s': 0.5}])"
    packed = f"{facts}.replace({struct.pack('>d', 0.5)!r}, {struct.pack('>d', number)!r})"
    script = ROGUE.replace("line.sendall(pack", f"line.sendall({packed})\nline.sendall(pack", 1)
    with pytest.raises(EngineFailed, match="makes no sense"):
        async with running(script):
            pass
