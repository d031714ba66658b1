"""Our engine against llama-cpp-python's own server: tokens per second at 1, 4, 8 and 16 requests at once.

Same model file, prompts, greedy, 48 tokens an answer; both are up all the time and take turns in every run.
The rival runs as its authors ship it (one request at a time; its default number of threads, which is also its
fastest here), and is asked without streaming, which costs it least. Prompt processing counts for both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from bench.rows import as_dicts, compared
from inference.engines.llama_cpp import LlamaEngine, open_llama_engine
from market.ports import Job
from market.task import Sampling, TaskId

MODEL = Path(__file__).resolve().parents[1] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
CONCURRENCY = (1, 4, 8, 16)
MAX_TOKENS = 48
RUNS = 3
RIVAL = "llama-cpp-python's own server"
SUBJECTS = "dog cat ship river robot king tree star city book horse moon train garden bridge clock"
PROMPTS = [
    f"<|im_start|>user\nWrite a short story about a {subject}.<|im_end|>\n<|im_start|>assistant\n"
    for subject in SUBJECTS.split()
]
END_TOKENS = frozenset({2})


def run(*, workers: int = 0, threads: int = 1) -> list[dict[str, Any]]:
    """Rows `engine_tokens_per_s_<n>` and `engine_scaling_16_over_1`. `workers` 0: one a core."""
    return asyncio.run(_run(workers or len(os.sched_getaffinity(0)), threads))


async def _run(workers: int, threads: int) -> list[dict[str, Any]]:
    if not MODEL.is_file():
        raise FileNotFoundError(f"{MODEL.name} is missing: run make model")
    slots = -(-max(CONCURRENCY) // workers)
    ours: dict[int, list[float]] = {count: [] for count in CONCURRENCY}
    rival: dict[int, list[float]] = {count: [] for count in CONCURRENCY}
    async with (
        open_rival() as base,
        _session() as session,
        open_llama_engine(MODEL, workers=workers, threads=threads, slots=slots, context=512) as engine,
    ):
        prompts = [await _tokenise(session, base, text) for text in PROMPTS]
        await _ask_rival(session, base, PROMPTS[0])
        for _ in range(RUNS):
            for count in CONCURRENCY:
                ours[count].append(await _speed([_ask_us(engine, prompt) for prompt in prompts[:count]]))
                rival[count].append(await _speed([_ask_rival(session, base, text) for text in PROMPTS[:count]]))
    rows = [
        compared(
            f"engine_tokens_per_s_{count}",
            "tokens/s",
            ours[count],
            rival[count],
            RIVAL,
            at_least=3.0 if count == 16 else None,
        )
        for count in CONCURRENCY
    ]
    rows.append(
        compared("engine_scaling_16_over_1", "tokens/s", ours[16], ours[1], "our own engine at 1", at_least=2.3)
    )
    return as_dicts(rows)


async def _speed(answers: list[Any]) -> float:
    """Tokens per second of all answers together, from the first request to the last token."""
    started = time.perf_counter()
    counts = await asyncio.gather(*answers)
    return float(sum(counts) / (time.perf_counter() - started))


async def _ask_us(engine: LlamaEngine, prompt: tuple[int, ...]) -> int:
    job = Job(
        task=TaskId(os.urandom(32)),
        prompt=prompt,
        sampling=Sampling(seed=bytes(32), temperature_micro=0),
        max_tokens=MAX_TOKENS,
        end_tokens=END_TOKENS,
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


@contextlib.asynccontextmanager
async def open_rival() -> AsyncIterator[str]:
    """The server on a free loopback port; its base URL once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(MODEL), "--n_ctx", "512"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--verbose", "False"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        base = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{base}/v1/models") as response:
                        if response.status == 200:
                            break
                if process.poll() is not None:
                    raise RuntimeError("llama_cpp.server ended: are its extras installed? (pip install '.[dev]')")
                await asyncio.sleep(0.1)
        yield base
    finally:
        process.terminate()
        process.wait(10)


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main(["engine"]))
