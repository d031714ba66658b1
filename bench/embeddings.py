"""Dynamic batching of embeddings: texts a second at 32 requests at once against one by one, in the same run.

A real model (MiniLM), one text a request, on one worker a core and on one worker: by ONNX Runtime, and by llama.cpp
from the same weights as GGUF (F16), which llama-cpp-python's own `Llama.embed` takes its turn with. A round embeds the
same texts in all ways, and counts how many vectors are equal to the bit: all, or the row says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.minilm import minilm_folder
from bench.minilm_gguf import minilm_gguf_folder
from bench.rows import Row, as_dicts, compared, measured
from inference.engines.llama_text import open_llama_text_engine
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

Open = Callable[[int], AbstractAsyncContextManager[SupervisedEngine]]
"""By how many workers."""


@dataclass(slots=True)
class Rounds:
    """Texts a second in each round; of the vectors, the share that was equal."""

    together: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    equal: list[float] = field(default_factory=list)


def run(*, workers: int = 0) -> list[dict[str, Any]]:
    """Rows `embeddings_per_s_32` (one worker a core), `…_one_worker`, `embeddings_equal`, and `embeddings_gguf_…`."""
    return asyncio.run(_run(workers or len(os.sched_getaffinity(0))))


async def _run(workers: int) -> list[dict[str, Any]]:
    texts = sentences()
    rows = await _rows("embeddings", _onnx, texts, workers)
    rows += await _rows("embeddings_gguf", _gguf, texts, workers)
    return as_dicts([*rows, await _beside_llama(texts)])


def sentences() -> list[str]:
    """Of four to twenty words, always the same."""
    draw, words = random.Random(5), WORDS.split()
    return [" ".join(draw.choices(words, k=draw.randint(4, 20))) for _ in range(TEXTS)]


def _onnx(workers: int) -> AbstractAsyncContextManager[SupervisedEngine]:
    folder = minilm_folder()
    return open_onnx_engine(folder, kind="embed", models=["model.onnx"], meter=_meter(folder), workers=workers)


def _gguf(workers: int) -> AbstractAsyncContextManager[SupervisedEngine]:
    folder = minilm_gguf_folder()
    return open_llama_text_engine(folder, kind="embed", model="model.gguf", meter=_meter(folder), workers=workers)


async def _rows(name: str, open_engine: Open, texts: Sequence[str], workers: int) -> list[Row]:
    rows, shares = [], []
    for suffix, count, goal in (("", workers, 2.0), ("_one_worker", 1, None)):
        found = await _measured(open_engine, texts, count)
        called = f"{name}_per_s_{TOGETHER}{suffix}"
        rows.append(compared(called, "texts/s", found.together, found.alone, "one by one", at_least=goal))
        shares += found.equal
    return [*rows, measured(f"{name}_equal", "of 1", shares, at_least=1.0)]


async def _measured(open_engine: Open, texts: Sequence[str], workers: int) -> Rounds:
    found = Rounds()
    async with open_engine(workers) as engine:
        await asyncio.gather(*(_embed(engine, text) for text in texts[:TOGETHER]))
        for _ in range(RUNS):
            speed, one_by_one = await embed_round(engine, texts, 1)
            found.alone.append(speed)
            speed, at_once = await embed_round(engine, texts, TOGETHER)
            found.together.append(speed)
            same = sum(mine == yours for mine, yours in zip(one_by_one, at_once, strict=True))
            found.equal.append(same / len(texts))
    return found


async def _beside_llama(texts: Sequence[str]) -> Row:
    """One worker of ours with 32 requests at once, beside a process that is given all texts in one list."""
    ours, theirs = [], []
    with _llama_embed(minilm_gguf_folder() / "model.gguf") as embed_all:
        embed_all(texts[:TOGETHER])
        async with _gguf(1) as engine:
            for _ in range(RUNS):
                ours.append((await embed_round(engine, texts, TOGETHER))[0])
                theirs.append(len(texts) / await asyncio.to_thread(embed_all, texts))
    return compared(f"embeddings_gguf_per_s_{TOGETHER}_beside_llama", "texts/s", ours, theirs, "Llama.embed of a list")


_LLAMA = """
import json, sys, time
from llama_cpp import Llama
model = Llama(sys.argv[1], embedding=True, n_ctx=512, n_batch=512, n_threads=1, n_threads_batch=1, verbose=False)
for line in sys.stdin:
    texts = json.loads(line)
    started = time.perf_counter()
    made = model.embed(texts, normalize=True)
    assert len(made) == len(texts)
    print(time.perf_counter() - started, flush=True)
"""


@contextmanager
def _llama_embed(model: Path) -> Iterator[Callable[[Sequence[str]], float]]:
    """What embeds texts with llama-cpp-python's own class on one thread, and says how many seconds that took."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LLAMA, str(model)],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def embed_all(texts: Sequence[str]) -> float:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(list(texts)) + "\n")
        process.stdin.flush()
        said = process.stdout.readline()
        if not said:
            raise RuntimeError("Llama.embed ended without an answer.")
        return float(said)

    try:
        yield embed_all
    finally:
        process.kill()
        process.communicate()


def _meter(folder: Path) -> EmbedMeter:
    return EmbedMeter(load_plain_encoder(folder / "tokenizer.json", limit=512))


async def embed_round(engine: SupervisedEngine, texts: Sequence[str], at_once: int) -> tuple[float, list[bytes]]:
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
