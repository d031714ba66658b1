"""What each format of a model costs and gives, beside the same model in F16: size, speed, perplexity.

Lives here: the making, measuring and throwing away of one GGUF format after the other. Must not know: where the model
comes from, which text, who reads it. Speeds are pairs, taken in turn while both engines run: a machine is noisy.
Perplexity is exact (see `inference.perplexity`) and measured once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Final

from inference.engines.llama_cpp import open_llama_engine
from inference.measuring import throughput
from inference.models.inspection import inspect_file
from inference.perplexity import measure_perplexity
from inference.quantize import quantize
from market.ports import Engine
from market.values import value

WHOLE: Final = "F16"
TEXT: Final = Path(__file__).with_name("perplexity.txt")
"""Written for this, and nowhere else: no model has learnt it."""
FORMATS: Final = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0", "Q3_K_M", "Q2_K")
CONCURRENCY: Final = (1, 16)
RUNS: Final = 3
_CONTEXT: Final = 512

Heard = Callable[[str], None]


@value
class Compared:
    """`perplexity` and its standard error; `tokens_per_s` are (this format, F16), a pair a run, by streams at once."""

    word: str
    size_bytes: int
    perplexity: float
    error: float
    tokens_per_s: dict[int, tuple[tuple[float, float], ...]]


@value
class Whole:
    """The model in F16, which all others stand beside."""

    path: Path
    size_bytes: int
    perplexity: float
    error: float


def unheard(_what: str) -> None:
    """For callers that show nothing."""


async def make_whole(source: Path, tokens: Sequence[int], folder: Path, *, heard: Heard = unheard) -> Whole:
    """`source` itself if it is F16, else made from it in `folder`. Raises what `quantize` and the engine raise."""
    whole = source
    if (await asyncio.to_thread(inspect_file, source, source.name)).quantisation != WHOLE:
        whole = folder / f"{WHOLE}.gguf"
        heard(f"making {WHOLE}")
        await quantize(source, whole, WHOLE)
    heard(f"{WHOLE}: perplexity")
    found = await measure_perplexity(whole, tokens)
    size = (await asyncio.to_thread(whole.stat)).st_size
    return Whole(path=whole, size_bytes=size, perplexity=found.perplexity, error=found.error)


async def compare_formats(
    source: Path,
    formats: Sequence[str],
    whole: Whole,
    tokens: Sequence[int],
    folder: Path,
    *,
    runs: int = RUNS,
    heard: Heard = unheard,
) -> AsyncGenerator[Compared]:
    """Each format of the GGUF file `source` in turn; one is in `folder` at a time. Raises as `make_whole`."""
    for word in formats:
        made = folder / f"{word}.gguf"
        try:
            heard(f"making {word}")
            await quantize(source, made, word)
            heard(f"{word}: perplexity")
            found = await measure_perplexity(made, tokens)
            heard(f"{word}: speed")
            yield Compared(
                word=word,
                size_bytes=(await asyncio.to_thread(made.stat)).st_size,
                perplexity=found.perplexity,
                error=found.error,
                tokens_per_s=await _speeds(made, whole.path, runs),
            )
        finally:
            await asyncio.to_thread(made.unlink, missing_ok=True)


async def _speeds(made: Path, whole: Path, runs: int) -> dict[int, tuple[tuple[float, float], ...]]:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(_opened(path)) for path in (made, whole)]
        found = {}
        for count in CONCURRENCY:
            pairs = []
            for _ in range(runs):
                ours, base = [await throughput(engine, count) for engine in engines]
                pairs.append((ours, base))
            found[count] = tuple(pairs)
        return found


def _opened(path: Path) -> AbstractAsyncContextManager[Engine]:
    """All cores by twos, as a start that names nothing would have it."""
    cores = len(os.sched_getaffinity(0))
    threads = min(2, cores)
    workers = max(1, cores // threads)
    slots = -(-max(CONCURRENCY) // workers)
    return open_llama_engine(path, workers=workers, threads=threads, slots=slots, context=_CONTEXT)
