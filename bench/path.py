"""A streamed answer through gateway, mesh, engine and back, against the engine alone.

A devnet of separate processes (one provider with one worker, one gateway) and a second engine in this
process, the same file and prompts, greedy; they take turns, so both meet the same noise. No prompt is asked twice; what
the chat template puts before them both know. First token: from the request to the first text. Tokens per second: from
the first to the last token.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from typing import Any

import aiohttp

from bench.ours import open_ours
from bench.prompts import KINDS
from bench.rivals import MODEL
from bench.rows import as_dicts, compared
from inference.engines.batched import BatchedEngine
from inference.models.gguf_tokenizer import read_gguf_tokenizer
from inference.models.tokenizer import ModelTokenizer
from market.ports import Job
from market.task import ChatMessage, Sampling, TaskId
from node.devnet import Devnet, Plan, open_devnet

TEXTS = [f"{kind.capitalize()}: write a short story about a dog who finds a lighthouse." for kind in KINDS]
MAX_TOKENS = 192
RUNS = 15
FIRST_TOKEN_MS = 15.0


def run() -> list[dict[str, Any]]:
    """Rows `path_first_token_ms` and `path_tokens_per_s`."""
    return asyncio.run(_run())


async def _run() -> list[dict[str, Any]]:
    inside = read_gguf_tokenizer(MODEL)
    tokenizer = ModelTokenizer(inside.tokenizer_json, inside.chat_template, inside.tokens)
    ours: list[tuple[float, float]] = []
    alone: list[tuple[float, float]] = []
    plan = Plan(prices=(("0.1", "0.3"),), workers=1)
    async with (
        open_devnet(plan, tell=lambda _: None) as devnet,
        open_ours(MODEL, workers=1, streams=16, context=2048) as engine,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session,
    ):
        for text in TEXTS[: RUNS + 1]:
            ours.append(await stream_through(session, devnet, text))
            alone.append(await _alone(engine, tokenizer, text))
    del ours[0], alone[0]  # they warmed up
    rival = "our engine alone"
    first = compared("path_first_token_ms", "ms", [a for a, _ in ours], [a for a, _ in alone], rival)
    added_ms = statistics.median(mine - theirs for (mine, _), (theirs, _) in zip(ours, alone, strict=True))
    first = first.against(f"rival + {FIRST_TOKEN_MS:g} ms (added: {added_ms:.1f})", met=added_ms <= FIRST_TOKEN_MS)
    rate = compared("path_tokens_per_s", "tokens/s", [b for _, b in ours], [b for _, b in alone], rival, at_least=0.95)
    return as_dicts([first, rate])


async def stream_through(session: aiohttp.ClientSession, devnet: Devnet, text: str) -> tuple[float, float]:
    """(milliseconds to the first text, tokens per second after it), as a client of the gateway sees them."""
    body = {
        "model": devnet.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first = last = 0.0
    tokens = 0
    started = time.perf_counter()
    headers = {"Authorization": f"Bearer {devnet.api_key}"}
    async with session.post(f"{devnet.client.url}/v1/chat/completions", json=body, headers=headers) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                last = time.perf_counter()
                first = first or last
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    return (first - started) * 1000, (tokens - 1) / (last - first)


async def _alone(engine: BatchedEngine, tokenizer: ModelTokenizer, text: str) -> tuple[float, float]:
    first = last = 0.0
    tokens = 0
    job = Job(
        task=TaskId(bytes(32)),
        prompt=tokenizer.render([ChatMessage(role="user", content=text)]),
        sampling=Sampling(seed=bytes(32), temperature_micro=0),
        max_tokens=MAX_TOKENS,
        end_tokens=tokenizer.end_tokens,
        scope="bench",
    )
    started = time.perf_counter()
    async for generated in engine.generate(job):
        if generated.tokens:
            last = time.perf_counter()
            first = first or last
            tokens += len(generated.tokens)
    return (first - started) * 1000, (tokens - 1) / (last - first)


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main(["path"]))
