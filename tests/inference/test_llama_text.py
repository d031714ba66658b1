"""GGUF models that embed and rerank: vectors that depend on the text alone, and models that are not what they say."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from inference.engines.llama_cpp import open_llama_engine
from inference.engines.llama_text import llama_text_kind, llama_text_meter, open_llama_text_engine
from inference.models.manifest import Format, Role
from inference.models.plain_encoder import load_plain_encoder
from inference.work.engine import SupervisedEngine
from inference.work.meters import SCORE, EmbedMeter, RerankMeter
from market.errors import EngineFailed, ModelFileInvalid, NodeMisconfigured, RequestInvalid
from market.ports import Made, WorkJob
from market.task import TaskId
from market.testing_work import check_work_engine
from market.work import EmbedRequest, RerankRequest, WorkRequest
from tests.inference import bert_kit as kit
from tests.inference.models.model_kit import a_file, a_manifest
from tests.inference.onnx_kit import WORDS

MEAN, CLS, LAST, RANK = 1, 2, 3, 4
TEXTS = ["red", "red green", "a b c d e f", "octo node " * 9, "unheard of", "blue " * 70, "j", "[SEP] [CLS] octo", ""]


def encoder(folder: Path, limit: int = kit.CONTEXT):
    return load_plain_encoder(folder / "tokenizer.json", limit=limit)


def opened(folder: Path, *, kind: str = "embed", context: int = kit.CONTEXT, **changes: object):
    cut = encoder(folder, context)
    meter = EmbedMeter(cut) if kind == "embed" else RerankMeter(cut)
    settings = {"kind": kind, "model": "model.gguf", "meter": meter, "context": context}
    return open_llama_text_engine(folder, **{**settings, **changes})  # type: ignore[arg-type]


async def made_by(engine: SupervisedEngine, request: WorkRequest, units: int = 10_000) -> list[Made]:
    job = WorkJob(task=TaskId(bytes(32)), request=request, blob=b"", max_units=units)
    return [item async for item in engine.make(job)]


async def embedded(engine: SupervisedEngine, *inputs: str | tuple[int, ...], dimensions: int = 0) -> list[bytes]:
    items = await made_by(engine, EmbedRequest(inputs=inputs, dimensions=dimensions))
    return [piece for item in items for piece in item.pieces]


def vector(hidden: np.ndarray) -> np.ndarray:
    return np.asarray(hidden / np.linalg.norm(hidden))


def near(piece: bytes, wanted: np.ndarray) -> bool:
    return float(np.frombuffer(piece, "<f4") @ vector(wanted)) > 0.9999


# ---- embeddings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", [MEAN, CLS, LAST, None])
async def test_an_embedder_keeps_the_rules_of_its_port_and_pools_as_its_file_says(tmp_path, pooling):
    folder, weights = kit.model_folder(tmp_path, pooling=pooling), kit.bert_weights()
    async with opened(folder) as engine:
        request = EmbedRequest(inputs=("red", "octo node", "a b c"))
        wrong = RerankRequest(query="q", documents=("d",))
        pieces = await check_work_engine(engine, EmbedMeter(encoder(folder)), request, wrong=wrong)
        for text, piece in zip(request.inputs, pieces, strict=True):
            hidden = kit.hidden_states(weights, encoder(folder).encode(text).ids)
            pooled = {CLS: hidden[0], LAST: hidden[-1]}
            assert near(piece, pooled.get(pooling or 0, hidden.mean(axis=0)))
        assert engine.info.name.startswith("llama.cpp/0.") and engine.info.name.endswith("/f32")
        assert engine.info.context == kit.CONTEXT and "rlimits" in engine.isolation


@pytest.mark.parametrize("pooling", [MEAN, CLS])
async def test_a_texts_bytes_do_not_depend_on_what_it_is_batched_with(tmp_path, pooling):
    async with opened(kit.model_folder(tmp_path, pooling=pooling)) as engine:
        alone = [(await embedded(engine, text))[0] for text in TEXTS]
        assert await embedded(engine, *TEXTS) == alone
        crowd = await asyncio.gather(*(embedded(engine, text) for text in TEXTS * 8))
        assert [vectors[0] for vectors in crowd] == alone * 8


_TRIED = """
import sys
from pathlib import Path
from inference.work.llama_text import open_llama_texts
folder = Path(sys.argv[1])
made = open_llama_texts(folder / "model.gguf", folder / "tokenizer.json", kind="embed", context=128, threads=1)
print(made.together)
"""


def test_a_model_is_tried_when_it_is_loaded_and_rows_share_calls_if_nothing_comes_of_it(tmp_path):
    kit.model_folder(tmp_path)
    said = subprocess.run([sys.executable, "-c", _TRIED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert said.stdout == "True\n"


async def test_a_decoder_that_was_made_to_embed_remembers_nothing_of_who_came_before(tmp_path):
    folder = kit.model_folder(tmp_path)
    kit.write_decoder(folder / "model.gguf", pooling=LAST)
    async with opened(folder) as engine:
        alone = [(await embedded(engine, text))[0] for text in TEXTS]
        assert await embedded(engine, *TEXTS) == alone and len(set(alone)) == len(alone)
        assert [(await embedded(engine, text))[0] for text in reversed(TEXTS)] == alone[::-1]


async def test_more_share_a_call_where_the_owner_says_that_rounding_may_show(tmp_path):
    async with opened(kit.model_folder(tmp_path)) as strict:
        exact = await embedded(strict, *TEXTS)
    async with opened(kit.model_folder(tmp_path), loose=True) as engine:
        assert engine.info.name.endswith("/loose")
        for piece, other in zip(await embedded(engine, *TEXTS), exact, strict=True):
            assert near(piece, np.frombuffer(other, "<f4"))


async def test_token_ids_are_read_as_they_are_a_single_one_too(tmp_path):
    folder = kit.model_folder(tmp_path)
    async with opened(folder) as engine:
        assert await embedded(engine, encoder(folder).encode("red green").ids) == await embedded(engine, "red green")
        [piece] = await embedded(engine, (4,))
        assert near(piece, kit.hidden_states(kit.bert_weights(), (4,))[0])
        assert await embedded(engine, "red", (4,), "blue") == [
            *await embedded(engine, "red"), piece, *await embedded(engine, "blue"),
        ]  # fmt: skip
        with pytest.raises(RequestInvalid, match="vocabulary"):
            await embedded(engine, (10**6,))


async def test_dimensions_are_the_first_normalised_anew(tmp_path):
    async with opened(kit.model_folder(tmp_path)) as engine:
        [whole], [short] = await embedded(engine, "red"), await embedded(engine, "red", dimensions=3)
        assert near(short, np.frombuffer(whole, "<f4")[:3])
        with pytest.raises(RequestInvalid, match="32 numbers"):
            await embedded(engine, "red", dimensions=33)


async def test_numbers_that_are_none_cost_the_task_that_made_them_alone(tmp_path):
    async with opened(kit.model_folder(tmp_path)) as engine:
        [alone] = await embedded(engine, "red")
        ends = await asyncio.gather(
            *(embedded(engine, text) for text in ("red", "poison", "red")), return_exceptions=True
        )
        assert isinstance(ends[1], EngineFailed) and "poison" not in str(ends[1])
        assert ends[0] == ends[2] == [alone]


async def test_what_is_too_long_or_half_is_refused_before_it_costs_anything(tmp_path):
    async with opened(kit.model_folder(tmp_path)) as engine:
        for text, words in (
            ("red " * 127, "129 tokens"),
            ("\ud800", "surrogate"),
            ("x" * 16 * kit.CONTEXT + "x", "characters"),
        ):
            with pytest.raises(RequestInvalid, match=words):
                await embedded(engine, "red", text)
        assert len(await embedded(engine, "red " * 126)) == 1


async def test_thousands_of_tiny_requests_all_end(tmp_path):
    async with opened(kit.model_folder(tmp_path), workers=2) as engine:
        made = await asyncio.gather(*(embedded(engine, TEXTS[at % 8]) for at in range(2000)))
        assert len({tuple(vectors) for vectors in made}) == 8
        assert engine.load().running == engine.load().waiting == 0


async def test_2048_inputs_in_one_request_come_in_order_and_no_more_than_agreed(tmp_path):
    async with opened(kit.model_folder(tmp_path)) as engine:
        texts = tuple(TEXTS[at % 4] for at in range(2048))
        made = await embedded(engine, *texts)
        assert len(made) == 2048 and made[:4] * 512 == made
        items = await made_by(engine, EmbedRequest(inputs=texts), units=3)
        assert [piece for item in items for piece in item.pieces] == made[:3] and items[-1].finish == "length"


async def test_a_text_that_takes_longer_than_a_hang_is_none_and_whoever_leaves_it_stops_it(tmp_path):
    folder = kit.model_folder(tmp_path, kit.bert_weights(context=8192, layers=8))
    async with opened(folder, context=8192, hang_s=2.0) as engine:
        [pid] = engine.worker_pids
        began = time.monotonic()
        assert len(await embedded(engine, "red " * 8000)) == 1
        took_s = time.monotonic() - began
        jobs = [asyncio.create_task(embedded(engine, "red " * 8000)) for _ in range(20)]
        async with asyncio.timeout(60):
            while engine.load().running < 20:
                await asyncio.sleep(0.005)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        async with asyncio.timeout(max(10.0, 10 * took_s)):  # half of what the twenty would take
            assert len(await embedded(engine, "red")) == 1
        assert engine.worker_pids == (pid,)


async def test_kill_9_with_eight_jobs_in_flight_changes_no_answer(tmp_path):
    async with opened(kit.model_folder(tmp_path)) as engine:
        [pid] = engine.worker_pids
        alone = [await embedded(engine, text) for text in TEXTS[:8]]
        os.kill(pid, signal.SIGSTOP)  # else the first could be done before the last is there
        jobs = [asyncio.create_task(embedded(engine, text)) for text in TEXTS[:8]]
        async with asyncio.timeout(60):
            while engine.load().running < 8:
                await asyncio.sleep(0.005)
            os.kill(pid, signal.SIGKILL)
            assert await asyncio.gather(*jobs) == alone
        assert engine.worker_pids != (pid,)


# ---- reranking -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2])
async def test_a_reranker_keeps_the_rules_of_its_port(tmp_path, classes):
    weights = kit.bert_weights(classes=classes)
    folder = kit.model_folder(tmp_path, weights, pooling=RANK, labels=classes)
    async with opened(folder, kind="rerank") as engine:
        request = RerankRequest(query="red", documents=("a", "a b c d e", "[SEP]"))
        meter = RerankMeter(encoder(folder))
        pieces = await check_work_engine(engine, meter, request, wrong=EmbedRequest(inputs=("a",)))
        for at, piece in enumerate(pieces):
            logits = kit.scores_of(weights, encoder(folder).encode("red", request.documents[at]).ids)
            logit = logits[0] if classes == 1 else logits[1] - logits[0]
            index, score = SCORE.unpack(piece)
            assert index == at and abs(score - 1 / (1 + np.exp(-logit))) < 2e-3


# ---- models that are not what they say -----------------------------------------------------------------


def corrupt(folder: Path, how: str) -> None:
    path = folder / "model.gguf"
    data = path.read_bytes()
    changed = {
        "nonsense": b"no model",
        "torn": data[: len(data) // 2],
        "torn in its head": data[:200],
        "of an architecture that nobody knows": data.replace(b"bert", b"tbre"),
        "without a layer": data.replace(b"blk.1.attn_q.weight", b"blk.9.attn_q.weight"),
    }
    path.write_bytes(changed[how])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("nonsense", "not a GGUF"),
        ("torn", "llama.cpp cannot load"),
        ("torn in its head", "llama.cpp cannot load"),
        ("of an architecture that nobody knows", "llama.cpp cannot load"),
        ("without a layer", "llama.cpp cannot load"),
    ],
)
async def test_a_damaged_file_is_refused_when_it_is_opened(tmp_path, how, words):
    folder = kit.model_folder(tmp_path)
    corrupt(folder, how)
    with pytest.raises(ModelFileInvalid, match=words):
        async with opened(folder):
            pass


async def test_weights_that_are_no_numbers_are_refused(tmp_path):
    weights = kit.bert_weights()
    weights["blk.1.ffn_up.weight"][:] = np.nan
    with pytest.raises(ModelFileInvalid, match="no numbers"):
        async with opened(kit.model_folder(tmp_path, weights)):
            pass


async def test_a_chat_model_asked_for_embeddings_is_refused_with_what_it_is(tmp_path):
    folder = kit.model_folder(tmp_path)
    kit.write_decoder(folder / "model.gguf")
    with pytest.raises(ModelFileInvalid, match="writes text"):
        async with opened(folder):
            pass


async def test_an_embedding_model_asked_for_chats_is_refused_with_what_it_is(tmp_path):
    folder = kit.model_folder(tmp_path)
    with pytest.raises(ModelFileInvalid, match="not a model that generates text") as refused:
        async with open_llama_engine(folder / "model.gguf", workers=1, context=kit.CONTEXT):
            pass
    assert "embedding" in refused.value.next_step


@pytest.mark.parametrize(
    ("kind", "pooling", "types", "words"),
    [
        ("rerank", MEAN, 1, "makes no scores"),
        ("embed", RANK, 1, "no vectors"),
        ("rerank", RANK, 2, "token types"),
    ],
)
async def test_rerankers_and_embedders_are_not_taken_for_one_another(tmp_path, kind, pooling, types, words):
    folder = kit.model_folder(tmp_path, kit.bert_weights(classes=1, types=types), pooling=pooling, types=types)
    with pytest.raises(ModelFileInvalid, match=words):
        async with opened(folder, kind=kind):
            pass


async def test_a_tokenizer_or_a_context_beyond_the_model_is_refused(tmp_path):
    folder = kit.model_folder(tmp_path)
    with pytest.raises(ModelFileInvalid, match="trained for"):
        async with opened(folder, context=kit.CONTEXT + 1):
            pass
    more = json.loads((folder / "tokenizer.json").read_text())
    more["model"]["vocab"] |= {f"more{at}": len(WORDS) + at for at in range(40)}
    (folder / "tokenizer.json").write_text(json.dumps(more))
    with pytest.raises(ModelFileInvalid, match="two models"):
        async with opened(folder):
            pass


async def test_settings_that_cannot_be_are_refused_and_memory_is_bounded(tmp_path):
    folder = kit.model_folder(tmp_path)
    for changes in ({"threads": 0}, {"workers": 1000}, {"context": 1 << 20}):
        with pytest.raises(NodeMisconfigured, match="possible"):
            async with opened(folder, **changes):
                pass
    with pytest.raises(NodeMisconfigured, match="too little memory"):
        async with opened(folder, memory_bytes=1 << 20):
            pass


# ---- what a manifest says ------------------------------------------------------------------------------


def test_a_buyer_counts_with_the_tokenizer_alone(tmp_path):
    path = kit.model_folder(tmp_path) / "tokenizer.json"
    manifest = a_manifest(modality="embedding", context=kit.CONTEXT, files=(a_file(),))
    assert llama_text_kind(manifest) == "embed"
    meter = llama_text_meter(manifest, {Role.TOKENIZER: path})
    assert meter.units_in(EmbedRequest(inputs=("red green", "red")), b"") == 4 + 3
    with pytest.raises(ModelFileInvalid, match="no tokenizer"):
        llama_text_meter(manifest, {})
    for changes in ({"modality": "text"}, {"modality": "embedding", "format": Format.ONNX}):
        with pytest.raises(ModelFileInvalid, match="does not embed"):
            llama_text_kind(a_manifest(**changes))
