"""vLLM behind our engine against vLLM alone, and our own engine against it: tokens per second at 1 and 16 requests.

The default model's weights as bfloat16 (vLLM reads no Q4_0 on processors), the same prompts, greedy, 48 tokens an
answer. All are up all the time and take turns in every run. vLLM alone is its own server on loopback, as its
documentation starts it, with the same limits, asked for the very same: the request that our engine sends, token ids and
all, streamed, by the cheapest client there is. (Text would not do: sixteen answers took vLLM 3.4 s when it was asked
with text and 2.1 s with ids, whichever of the two servers was asked.) It has no prefix cache, as ours has none: the
prompts come again. Runs only where `make vllm-tools` has been.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from bench.engine import END_TOKENS, MAX_TOKENS
from bench.ours import open_ours
from bench.prompts import fresh_prompts
from bench.rows import as_dicts, compared
from inference.engines.openai_dialect import Tokens
from inference.engines.vllm import open_vllm_engine
from inference.engines.vllm_command import VllmSetup
from inference.models.gguf_tokenizer import read_gguf_tokenizer
from market.ports import Engine, Job
from market.task import Sampling, TaskId
from tests.inference.vllm_kit import write_folder

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".cache" / "vllm" / "bin" / "python"
MODELS = ROOT / ".cache" / "models"
CONCURRENCY = (1, 16)
RUNS = 6
"""Each way comes first, second and last equally often."""
VOCABULARY = 49152
CONTEXT = 512
RIVAL = "vLLM's own server"
_START_S = 300

_REST_S = 1.0
"""vLLM's threads spin on for a while after their turn: who came next had 430 tokens/s where it had 710 a turn later."""


def run() -> list[dict[str, Any]]:
    """Rows `vllm_tokens_per_s_<n>` and `engine_tokens_per_s_<n>_vllm`; none without vLLM."""
    if not PYTHON.exists():
        print("bench: vllm is left out: run make vllm-tools", file=sys.stderr)
        return []
    return asyncio.run(_run())


async def _run() -> list[dict[str, Any]]:
    found: dict[str, dict[int, list[float]]] = {
        name: {count: [] for count in CONCURRENCY} for name in ("through", "own", "alone")
    }
    most = max(CONCURRENCY)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gguf = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"
        await asyncio.to_thread(write_folder, gguf, folder / "model")
        fresh = fresh_prompts()
        base = await stack.enter_async_context(_open_alone(folder, most))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        through = await stack.enter_async_context(
            open_vllm_engine(
                folder / "model",
                log=folder / "log",
                python=PYTHON,
                setup=VllmSetup(slots=most, context=CONTEXT),
            )
        )
        own = await stack.enter_async_context(
            open_ours(MODELS / "SmolLM2-135M-Instruct.Q4_0.gguf", streams=most, context=CONTEXT)
        )
        ways: list[tuple[str, Callable[[tuple[int, ...]], Awaitable[int]]]] = [
            ("through", lambda prompt: _ask(through, prompt)),
            ("alone", lambda prompt: _ask_alone(session, base, prompt)),
            ("own", lambda prompt: _ask(own, prompt)),
        ]
        for number in range(RUNS + 1):
            for count in CONCURRENCY:
                prompts = [_encode(gguf, text) for text in next(fresh)[:count]]
                for name, ask in ways[number % 3 :] + ways[: number % 3]:
                    await asyncio.sleep(_REST_S)
                    speed = await _speed([ask(prompt) for prompt in prompts])
                    found[name][count] += [speed] if number else []  # the first run warms up
    goals = {1: 1.0, 16: 1.5}
    rows = [
        compared(f"vllm_tokens_per_s_{n}", "tokens/s", found["through"][n], found["alone"][n], RIVAL, at_least=0.95)
        for n in CONCURRENCY
    ]
    rows += [
        compared(
            f"engine_tokens_per_s_{n}_vllm", "tokens/s", found["own"][n], found["alone"][n], RIVAL, at_least=goals[n]
        )
        for n in CONCURRENCY
    ]
    return as_dicts(rows)


async def _speed(answers: list[Any]) -> float:
    """Tokens per second of all answers together, from the first request to the last token."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    counts = await asyncio.gather(*answers)
    return float(sum(counts) / (loop.time() - started))


def _job(prompt: tuple[int, ...]) -> Job:
    return Job(
        task=TaskId(os.urandom(32)),
        prompt=prompt,
        sampling=Sampling(seed=bytes(32), temperature_micro=0),
        max_tokens=MAX_TOKENS,
        end_tokens=END_TOKENS,
        scope="bench",
    )


async def _ask(engine: Engine, prompt: tuple[int, ...]) -> int:
    return sum([len(item.tokens) async for item in engine.generate(_job(prompt))])


async def _ask_alone(session: aiohttp.ClientSession, base: str, prompt: tuple[int, ...]) -> int:
    """The last event tells how many tokens there were, the end's own among them, which we do not count."""
    body = Tokens("m", VOCABULARY).body(_job(prompt)) | {"stream_options": {"include_usage": True}}
    async with session.post(f"{base}/v1/completions", json=body) as response:
        response.raise_for_status()
        *_, last, usage, _done = (await response.read()).split(b"data: ")
    stopped = json.loads(last)["choices"][0]["finish_reason"] == "stop"
    return int(json.loads(usage)["usage"]["completion_tokens"]) - int(stopped)


def _encode(gguf: Path, text: str) -> tuple[int, ...]:
    """Control tokens in the text are control tokens, as vLLM reads them."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(read_gguf_tokenizer(gguf).tokenizer_json)
    return tuple(encoder.encode(text, add_special_tokens=False).ids)


@contextlib.asynccontextmanager
async def _open_alone(folder: Path, slots: int) -> AsyncIterator[str]:
    """As its documentation starts it, with the same limits as ours."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model")]
    command += ["--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    command += ["--max-model-len", str(CONTEXT), "--max-num-seqs", str(slots), "--no-enable-prefix-caching"]
    command += ["--enforce-eager", "--disable-uvicorn-access-log", "--disable-log-stats"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # as ours has it: without, the two would hold each other up
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        base = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as session, asyncio.timeout(_START_S):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{base}/v1/models") as response:
                        if response.status == 200:
                            break
                if process.poll() is not None:
                    raise RuntimeError("vLLM's server ended")
                await asyncio.sleep(0.5)
        yield base
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        await asyncio.to_thread(process.wait, 30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main(["vllm"]))
