"""What jobs on one engine do to each other: prefixes, a long prompt beside a stream, a worker's death, a grammar, and
what guessing saves a lone one.

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

import llama_cpp
import numpy as np

from bench.rivals import MODEL
from bench.rows import Row, as_dicts, compared, measured
from inference.engines.batched import BatchedEngine
from inference.engines.llama_cpp import open_llama_engine
from inference.scheduler import CHUNK
from market.ports import Job
from market.task import Sampling, TaskId

RUNS = 5
LONG = 2_000
THREADS = min(2, len(os.sched_getaffinity(0)))
GREEDY = Sampling(seed=bytes(32), temperature_micro=0)
_PARAGRAPH = (
    "The harbour office opens at seven. Captains show the papers of their ship, the list of the crew and the weight of "
    "the cargo, and pay for the berth in advance. Who stays longer than three days pays for the fourth twice."
)
REPEATING = (
    f"<|im_start|>user\nRepeat this text twice, word for word:\n{_PARAGRAPH}<|im_end|>\n"
    f"<|im_start|>assistant\n{_PARAGRAPH}\n\nThe harbour office"
)
STORY = "<|im_start|>user\nWrite a short story about a ship.<|im_end|>\n<|im_start|>assistant\n"
SCHEMA = '{"properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]}'


def run() -> list[dict[str, Any]]:
    """Rows `prefix_ttft_400`, `stream_gap_while_2000_are_prefilled`, `worker_restart_s`, `grammar_ms_a_token`,
    `guessing_*`."""
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
    async with open_llama_engine(MODEL, workers=1, threads=THREADS, slots=4, context=LONG + 256) as engine:
        await _ttft(engine, _job(100, salt=99))
        for salt in range(RUNS):
            work = replace(_job(400, salt=salt), scope="bench")
            first.append(await _ttft(engine, work))
            second.append(await _ttft(engine, work))
        for salt in range(RUNS):
            chunks.append(await _chunk_ms(engine, salt))
            gaps.append(await _added_gap_ms(engine, salt))
        for salt in range(RUNS):
            free.append(await _ms_a_token(engine, _job(30, salt=salt)))
            bound.append(await _ms_a_token(engine, replace(_job(30, salt=salt), grammar=SCHEMA)))
        restarts = [await _restart_s(engine) for _ in range(RUNS)]
    guessing = await _guessing()
    return as_dicts(
        [
            compared("prefix_ttft_400", "s", second, first, "the same prompt the first time", at_most=0.2),
            compared("stream_gap_while_2000_are_prefilled", "ms", gaps, chunks, "one chunk of 64 rows", at_most=1.1),
            measured("worker_restart_s", "s", restarts, at_most=3),
            compared("grammar_ms_a_token", "ms", bound, free, "the same without a grammar"),
            *guessing,
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


async def _chunk_ms(engine: BatchedEngine, salt: int) -> float:
    """Of the last three whole chunks of the long prompt: the more it has read, the longer a chunk takes. What is known
    of a prompt already is not read again, which tells three chunks from the whole."""
    long, whole = replace(_job(LONG, salt=salt), scope="chunks"), LONG // CHUNK * CHUNK
    await _ttft(engine, long)

    async def new(chunks: int) -> float:
        known = whole - chunks * CHUNK
        other = _job(LONG - known, salt=salt + 500 + chunks).prompt
        return await _ttft(engine, replace(long, prompt=(*long.prompt[:known], *other)))

    return 1000 * (await new(4) - await new(1)) / 3


async def _added_gap_ms(engine: BatchedEngine, salt: int) -> float:
    """What a long prompt that is prefilled beside a running stream adds to the time between two of its tokens: the 90th
    percentile, since a busy machine adds its own."""
    times: list[float] = []
    async with aclosing(_arrivals(engine, _job(20, salt=salt, max_tokens=1_000))) as stream:
        alone = [await anext(stream) for _ in range(40)]
        beside = asyncio.create_task(_ttft(engine, _job(LONG, salt=salt + 1_000)))
        while not beside.done():
            times.append(await anext(stream))
    return float(1000 * (np.quantile(np.diff(times), 0.9) - np.median(np.diff(alone))))


async def _guessing() -> list[Row]:
    """A lone stream that repeats a text, and one that tells a story, with and without guesses."""
    rows: list[Row] = []
    async with (
        open_llama_engine(MODEL, workers=1, threads=THREADS, slots=1, context=1024) as guesses,
        open_llama_engine(MODEL, workers=1, threads=THREADS, slots=1, context=1024, draft=False) as plain,
    ):
        for name, text in (("repeating", REPEATING), ("story", STORY)):
            prompt = await asyncio.to_thread(_tokens_of, text)
            speeds: dict[bool, list[float]] = {True: [], False: []}
            for engine in (guesses, plain) * (RUNS + 1):
                work = replace(_job(1, salt=0, max_tokens=160), prompt=prompt, sampling=GREEDY)
                speeds[engine is guesses].append(1000 / await _ms_a_token(engine, work))
            mine, theirs = speeds[True][1:], speeds[False][1:]
            rows.append(
                compared(f"guessing_{name}", "tokens/s", mine, theirs, "the same engine without guesses", at_least=0.97)
            )
    return rows


def _tokens_of(text: str) -> tuple[int, ...]:
    """By llama.cpp itself, from the model file's vocabulary."""
    llama = llama_cpp.Llama(str(MODEL), vocab_only=True, verbose=False)
    return tuple(llama.tokenize(text.encode(), add_bos=False, special=True))


async def _ms_a_token(engine: BatchedEngine, work: Job) -> float:
    started = time.perf_counter()
    count = sum([len(item.tokens) async for item in engine.generate(work)])
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
