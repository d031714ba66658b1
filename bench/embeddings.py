"""Dynamic batching of embeddings: texts a second at 32 requests at once against one by one, in the same run.

A real model (MiniLM), one text a request, as the engine runs on this machine by default: one worker a core. A round
embeds the same texts both ways, and counts how many vectors are equal to the bit: all, or the row says so.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from typing import Any

from bench.minilm import minilm_folder
from bench.rows import as_dicts, compared, measured
from inference.engines.onnx import open_onnx_engine
from inference.models.plain_encoder import load_plain_encoder
from inference.work.engine import SupervisedEngine
from inference.work.meters import EmbedMeter
from market.ports import WorkJob
from market.task import TaskId
from market.work import EmbedRequest

TOGETHER = 32
TEXTS = 256
RUNS = 3
WORDS = "the quick brown fox jumps over lazy dog near river bank while it rains and nobody seems to care"


def run(*, workers: int = 0) -> list[dict[str, Any]]:
    """Rows `embeddings_per_s_32` (one worker a core), `embeddings_per_s_32_one_worker`, `embeddings_equal`."""
    return asyncio.run(_run(workers or len(os.sched_getaffinity(0))))


async def _run(workers: int) -> list[dict[str, Any]]:
    draw, words = random.Random(5), WORDS.split()
    texts = [" ".join(draw.choices(words, k=draw.randint(4, 20))) for _ in range(TEXTS)]
    rows, shares = [], []
    for name, count, goal in (("", workers, 2.0), ("_one_worker", 1, None)):
        together, alone, equal = await _measured(texts, count)
        rows.append(
            compared(f"embeddings_per_s_{TOGETHER}{name}", "texts/s", together, alone, "one by one", at_least=goal)
        )
        shares += equal
    rows.append(measured("embeddings_equal", "of 1", shares, at_least=1.0))
    return as_dicts(rows)


async def _measured(texts: Sequence[str], workers: int) -> tuple[list[float], list[float], list[float]]:
    folder = minilm_folder()
    meter = EmbedMeter(load_plain_encoder(folder / "tokenizer.json", limit=512))
    together, alone, equal = [], [], []
    async with open_onnx_engine(folder, kind="embed", models=["model.onnx"], meter=meter, workers=workers) as engine:
        await asyncio.gather(*(_embed(engine, text) for text in texts[:TOGETHER]))
        for _ in range(RUNS):
            speed, one_by_one = await _round(engine, texts, 1)
            alone.append(speed)
            speed, at_once = await _round(engine, texts, TOGETHER)
            together.append(speed)
            same = sum(mine == yours for mine, yours in zip(one_by_one, at_once, strict=True))
            equal.append(same / len(texts))
    return together, alone, equal


async def _round(engine: SupervisedEngine, texts: Sequence[str], at_once: int) -> tuple[float, list[bytes]]:
    """Texts a second with so many askers, each of whom asks again as soon as it is answered; and the vectors."""
    made: dict[int, bytes] = {}
    left = iter(enumerate(texts))

    async def ask() -> None:
        for at, text in left:
            made[at] = await _embed(engine, text)

    started = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(at_once)))
    return len(texts) / (time.perf_counter() - started), [made[at] for at in range(len(texts))]


async def _embed(engine: SupervisedEngine, text: str) -> bytes:
    request = EmbedRequest(inputs=(text,))
    job = WorkJob(task=TaskId(os.urandom(32)), request=request, blob=b"", max_units=1)
    return b"".join([piece async for item in engine.make(job) for piece in item.pieces])
