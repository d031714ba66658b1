"""What jobs on one engine do to each other: prefixes, a long prompt beside a stream, a worker's death, a grammar.

Each figure against the same engine without it, in the same run. One worker, so that all share it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np

from bench.rivals import MODEL
from bench.rows import as_dicts, compared, measured
from inference.engines.batched import BatchedEngine
from inference.engines.llama_cpp import open_llama_engine
from inference.scheduler import CHUNK
from market.ports import Job
from market.task import Sampling, TaskId

RUNS = 5
LONG = 2_000
SCHEMA = '{"properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]}'


def run() -> list[dict[str, Any]]:
    """Rows `prefix_ttft_400`, `stream_gap_while_2000_are_prefilled`, `worker_restart_s`, `grammar_ms_a_token`."""
    return asyncio.run(_run())


async def _run() -> list[dict[str, Any]]:
    if not MODEL.is_file():
        raise FileNotFoundError(f"{MODEL.name} is missing: run make model")
    first: list[float] = []
    second: list[float] = []
    gaps: list[float] = []
    chunks: list[float] = []
    bound: list[float] = []
    free: list[float] = []
    async with open_llama_engine(MODEL, workers=1, slots=4, context=LONG + 256) as engine:
        await _ttft(engine, _job(100, salt=99))
        for salt in range(RUNS):
            work = replace(_job(400, salt=salt), scope="bench")
            first.append(await _ttft(engine, work))
            second.append(await _ttft(engine, work))
        for salt in range(RUNS):
            chunks.append(1000 * await _ttft(engine, _job(LONG, salt=salt)) / -(-LONG // CHUNK))
            gaps.append(await _longest_gap_ms(engine, salt))
        for salt in range(RUNS):
            free.append(await _ms_a_token(engine, _job(30, salt=salt)))
            bound.append(await _ms_a_token(engine, replace(_job(30, salt=salt), grammar=SCHEMA)))
        restarts = [await _restart_s(engine) for _ in range(RUNS)]
    return as_dicts(
        [
            compared("prefix_ttft_400", "s", second, first, "the same prompt the first time", at_most=0.2),
            compared("stream_gap_while_2000_are_prefilled", "ms", gaps, chunks, "one chunk of 64 rows", at_most=1.5),
            measured("worker_restart_s", "s", restarts, at_most=3),
            compared("grammar_ms_a_token", "ms", bound, free, "the same without a grammar"),
        ]
    )


def _job(length: int, *, salt: int, max_tokens: int = 40) -> Job:
    prompt = tuple(int(token) for token in np.random.default_rng(salt).integers(100, 40_000, length))
    sampling = Sampling(seed=bytes(32), temperature_micro=800_000)
    return Job(task=TaskId(bytes(32)), prompt=prompt, sampling=sampling, max_tokens=max_tokens, end_tokens=frozenset())


async def _ttft(engine: BatchedEngine, work: Job) -> float:
    started = time.perf_counter()
    async with aclosing(engine.generate(replace(work, max_tokens=1))) as stream:
        await anext(stream)
    return time.perf_counter() - started


async def _arrivals(engine: BatchedEngine, work: Job) -> AsyncGenerator[float]:
    async with aclosing(engine.generate(work)) as stream:
        async for item in stream:
            if item.tokens:
                yield time.perf_counter()


async def _longest_gap_ms(engine: BatchedEngine, salt: int) -> float:
    """Between two tokens of a running stream while a long prompt is prefilled beside it: the 90th percentile, since a
    busy machine adds its own."""
    times: list[float] = []
    async with aclosing(_arrivals(engine, _job(20, salt=salt, max_tokens=1_000))) as stream:
        times.append(await anext(stream))
        beside = asyncio.create_task(_ttft(engine, _job(LONG, salt=salt + 1_000)))
        while not beside.done():
            times.append(await anext(stream))
    return float(1000 * np.quantile(np.diff(times), 0.9))


async def _ms_a_token(engine: BatchedEngine, work: Job) -> float:
    started = time.perf_counter()
    count = sum([1 async for _ in _arrivals(engine, work)])
    return 1000 * (time.perf_counter() - started) / count


async def _restart_s(engine: BatchedEngine) -> float:
    """From SIGKILL to the first token of a new request."""
    work = _job(10, salt=0)
    await _ttft(engine, work)
    started = time.perf_counter()
    os.kill(engine.worker_pids[0], signal.SIGKILL)
    while engine.worker_pids:
        await asyncio.sleep(0.001)
    await _ttft(engine, work)
    return time.perf_counter() - started
