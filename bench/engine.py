"""Our engine against other servers of the same file: tokens per second at 1, 4, 8 and 16 requests at once.

Same model file, prompts, greedy, 48 tokens an answer; all are up all the time and take turns in every run. Every turn
has prompts that nobody was asked before, so that no cache saves prompt processing; at 16 the same are then asked again.
llama-cpp-python's server runs as its authors ship it (one request at a time; its default number of threads, which
is also its fastest here). xllamacpp's, which is llama.cpp's own with as many slots as requests, runs thrice, with one
thread, and with one a core that sleeps or spins like ours while it waits, and the fastest counts in every run.
Rivals are asked without streaming, which costs them least. An answer of fewer tokens counts as fewer.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from typing import Any

import aiohttp

from bench.ours import open_ours
from bench.prompts import MOST, fresh_prompts
from bench.rivals import MODEL, has_xllamacpp, open_llama_cpp_server, open_xllamacpp
from bench.rows import Row, as_dicts, compared
from inference.engines.batched import BatchedEngine
from market.ports import Job
from market.task import Sampling, TaskId

CONCURRENCY = (1, 4, 8, MOST)
MAX_TOKENS = 48
RUNS = 5
RIVAL = "llama-cpp-python's own server"
SLOTS_RIVAL = "xllamacpp's server"
END_TOKENS = frozenset({2})


def run() -> list[dict[str, Any]]:
    """Rows `engine_tokens_per_s_<n>` and `engine_scaling_16_over_1`; `engine_tokens_per_s_<n>_xllamacpp` if that is
    installed."""
    return asyncio.run(_run())


async def _run() -> list[dict[str, Any]]:
    if not MODEL.is_file():
        raise FileNotFoundError(f"{MODEL.name} is missing: run make model")
    cores = len(os.sched_getaffinity(0))
    ours, rival, slots = [defaultdict[str, list[float]](list) for _ in range(3)]
    fresh = fresh_prompts()
    async with AsyncExitStack() as stack:
        base = await stack.enter_async_context(open_llama_cpp_server())
        session = await stack.enter_async_context(_session())
        engine = await stack.enter_async_context(open_ours(MODEL, streams=MOST, context=512))
        slotted = []
        if has_xllamacpp():
            for threads, spin in dict.fromkeys(((1, 0), (cores, 0), (cores, 1000))):
                server = open_xllamacpp(threads=threads, spin=spin, slots=MOST, context=512)
                slotted.append(await stack.enter_async_context(server))
        for url, text in zip((base, *slotted), next(fresh), strict=False):
            await _ask_rival(session, url, text)
        for _ in range(RUNS):
            for count in CONCURRENCY:
                texts = next(fresh)[:count]
                prompts = [await _tokenise(session, base, text) for text in texts]
                for name in (f"{count}", f"{count}_again") if count == MOST else (f"{count}",):
                    ours[name].append(await _speed([_ask_us(engine, prompt) for prompt in prompts]))
                    rival[name].append(await _speed([_ask_rival(session, base, text) for text in texts]))
                    each = [await _speed([_ask_rival(session, url, text) for text in texts]) for url in slotted]
                    slots[name] += [max(each)] if each else []
    goals = {"1": 1.0, "16": 3.0}
    rows: list[Row] = [
        compared(f"engine_tokens_per_s_{n}", "tokens/s", ours[n], rival[n], RIVAL, at_least=goals.get(n)) for n in ours
    ]
    rows.append(
        compared("engine_scaling_16_over_1", "tokens/s", ours["16"], ours["1"], "our own engine at 1", at_least=2.3)
    )
    goals = {"1": 1.0, "16": 2.2}
    for n in slots:
        name = f"engine_tokens_per_s_{n}_xllamacpp"
        rows.append(compared(name, "tokens/s", ours[n], slots[n], SLOTS_RIVAL, at_least=goals.get(n)))
    return as_dicts(rows)


async def _speed(answers: list[Any]) -> float:
    """Tokens per second of all answers together, from the first request to the last token."""
    started = time.perf_counter()
    counts = await asyncio.gather(*answers)
    return float(sum(counts) / (time.perf_counter() - started))


async def _ask_us(engine: BatchedEngine, prompt: tuple[int, ...]) -> int:
    job = Job(
        task=TaskId(os.urandom(32)),
        prompt=prompt,
        sampling=Sampling(seed=bytes(32), temperature_micro=0),
        max_tokens=MAX_TOKENS,
        end_tokens=END_TOKENS,
        scope="bench",
    )
    return sum([len(item.tokens) async for item in engine.generate(job)])


async def _ask_rival(session: aiohttp.ClientSession, base: str, prompt: str) -> int:
    body = {"prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0}
    async with session.post(f"{base}/v1/completions", json=body) as response:
        response.raise_for_status()
        return int((await response.json())["usage"]["completion_tokens"])


async def _tokenise(session: aiohttp.ClientSession, base: str, prompt: str) -> tuple[int, ...]:
    """By the rival itself, so that both answer exactly the same prompts."""
    async with session.post(f"{base}/extras/tokenize", json={"input": prompt}) as response:
        response.raise_for_status()
        return tuple((await response.json())["tokens"])


def _session() -> aiohttp.ClientSession:
    """A connection a request: the server closes idle ones, which may cross with the next request."""
    connector = aiohttp.TCPConnector(force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300))


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main(["engine"]))
