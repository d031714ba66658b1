"""The ONNX engine on texts: vectors and scores that depend on the text alone, and models that are not what they say."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from inference.engines.onnx import onnx_kind, onnx_meter, onnx_models, open_onnx_engine
from inference.engines.texts import text_context
from inference.models.manifest import Format, Role
from inference.models.plain_encoder import load_plain_encoder
from inference.work.engine import SupervisedEngine
from inference.work.meters import SCORE, EmbedMeter, RerankMeter
from inference.work.onnx_session import Session
from inference.work.onnx_text import open_onnx_texts
from inference.work.runner import Task
from market.errors import EngineFailed, ModelFileInvalid, NodeMisconfigured, OctoError, RequestInvalid
from market.ports import WorkJob
from market.task import TaskId
from market.testing_work import check_work_engine
from market.work import EmbedRequest, RerankRequest, WorkRequest
from tests.inference import onnx_kit as kit
from tests.inference.models.model_kit import a_file, a_manifest

LIMIT = 64
TEXTS = ["red", "red green", "a b c d e f", "octo node " * 9, "unheard of", "blue " * 30, "j", "[SEP] [CLS] octo"]


def embed_folder(folder: Path, graph: bytes, **files: bytes | str) -> Path:
    return kit.write_model(folder, model_onnx=graph, tokenizer_json=kit.tokenizer_json(), **files)


def opened(folder: Path, *, kind: str = "embed", **changes: object):
    encoder = load_plain_encoder(folder / "tokenizer.json", limit=LIMIT)
    meter = EmbedMeter(encoder) if kind == "embed" else RerankMeter(encoder)
    settings = {"kind": kind, "models": ["model.onnx"], "meter": meter, "context": LIMIT}
    return open_onnx_engine(folder, **{**settings, **changes})  # type: ignore[arg-type]


async def pieces_of(engine: SupervisedEngine, request: WorkRequest, units: int = 10_000) -> list[bytes]:
    job = WorkJob(task=TaskId(bytes(32)), request=request, blob=b"", max_units=units)
    return [piece async for item in engine.make(job) for piece in item.pieces]


async def embedded(engine: SupervisedEngine, *texts: str, dimensions: int = 0) -> list[bytes]:
    return await pieces_of(engine, EmbedRequest(inputs=texts, dimensions=dimensions))


def vector(text: str) -> np.ndarray:
    """What `kit.embedder` with mean pooling is to make of a text, said another way."""
    words = [word if word in kit.WORDS else "[UNK]" for word in text.lower().split()]
    mean = kit.table()[[kit.WORDS.index(word) for word in ("[CLS]", *words, "[SEP]")]].astype(np.float64).mean(axis=0)
    return (mean / np.linalg.norm(mean)).astype("<f4")


# ---- embeddings ----------------------------------------------------------------------------------------


async def test_an_embedder_keeps_the_rules_of_its_port(tmp_path):
    folder = embed_folder(tmp_path, kit.embedder())
    async with opened(folder) as engine:
        encoder = load_plain_encoder(folder / "tokenizer.json", limit=LIMIT)
        wrong = RerankRequest(query="q", documents=("d",))
        request = EmbedRequest(inputs=("red", "octo node", "a b c"))
        pieces = await check_work_engine(engine, EmbedMeter(encoder), request, wrong=wrong)
        for text, piece in zip(request.inputs, pieces, strict=True):
            assert np.allclose(np.frombuffer(piece, "<f4"), vector(text), atol=1e-6)
        assert engine.info.name.startswith("onnxruntime/1.") and "/cpu-" in engine.info.name
        assert engine.info.name.endswith("/f32") and engine.info.context == LIMIT


@pytest.mark.parametrize("graph", [kit.embedder, kit.pooling_embedder, kit.sociable_embedder])
async def test_a_texts_bytes_do_not_depend_on_what_it_is_batched_with(tmp_path, graph):
    async with opened(embed_folder(tmp_path, graph())) as engine:
        alone = [(await embedded(engine, text))[0] for text in TEXTS]
        assert await embedded(engine, *TEXTS) == alone
        crowd = await asyncio.gather(*(embedded(engine, text) for text in TEXTS * 8))
        assert [vectors[0] for vectors in crowd] == alone * 8


async def test_a_model_that_minds_company_shares_calls_only_where_its_owner_says_so(tmp_path):
    async with opened(embed_folder(tmp_path, kit.sociable_embedder()), loose=True) as engine:
        assert engine.info.name.endswith("/loose")
        assert await embedded(engine, "red", "blue") != [
            *await embedded(engine, "red"),
            *await embedded(engine, "blue"),
        ]


class ListDesk:
    """Hands out the tasks that it was given, all at once, and notes what is made."""

    def __init__(self, *tasks: Task) -> None:
        self._tasks = list(tasks)
        self.pieces: list[bytes] = []
        self.finishes: list[str] = []

    def take(self, limit: int, wait_s: float = 0.0) -> list[Task]:
        taken, self._tasks = self._tasks, []
        return taken

    def made(self, task: Task, pieces=(), *, progress: int = 0, finish: str = "") -> None:
        self.pieces += pieces
        self.finishes += [finish] if finish else []

    def refuse(self, task: Task, error: OctoError) -> None:
        raise error

    def beat(self) -> None: ...


@pytest.mark.parametrize(
    ("graph", "together"), [(kit.embedder, True), (kit.pooling_embedder, True), (kit.sociable_embedder, False)]
)
def test_a_graph_is_tried_when_it_is_loaded_and_rows_share_calls_if_nothing_comes_of_it(tmp_path, graph, together):
    folder = embed_folder(tmp_path, graph())
    session = Session(folder / "model.onnx", threads=1)
    encoder = load_plain_encoder(folder / "tokenizer.json", limit=LIMIT)
    runner = open_onnx_texts(folder, session, encoder, kind="embed")
    assert runner.together is together
    desk = ListDesk(Task(1, EmbedRequest(inputs=("red", "blue", "a")), b"", 2))
    runner.run(desk)
    assert len(desk.pieces) == 2 and desk.finishes == ["length"]


async def test_dimensions_are_the_first_normalised_anew(tmp_path):
    async with opened(embed_folder(tmp_path, kit.embedder())) as engine:
        [whole], [short] = await embedded(engine, "red"), await embedded(engine, "red", dimensions=3)
        first = np.frombuffer(whole, "<f4")[:3]
        assert np.allclose(np.frombuffer(short, "<f4"), first / np.linalg.norm(first), atol=1e-6)
        with pytest.raises(RequestInvalid, match="8 numbers"):
            await embedded(engine, "red", dimensions=9)


@pytest.mark.parametrize(("mode", "at"), [("pooling_mode_cls_token", "[CLS]"), ("pooling_mode_lasttoken", "[SEP]")])
async def test_pooling_is_what_the_model_says(tmp_path, mode, at):
    folder = embed_folder(tmp_path, kit.embedder())
    kit.write_model(folder / "1_Pooling", config_json=json.dumps({mode: True, "pooling_mode_mean_tokens": False}))
    async with opened(folder) as engine:
        row = kit.table()[kit.WORDS.index(at)]
        [piece] = await embedded(engine, "red")
        assert np.allclose(np.frombuffer(piece, "<f4"), row / np.linalg.norm(row), atol=1e-6)


async def test_numbers_that_are_none_cost_the_task_that_made_them_alone(tmp_path):
    async with opened(embed_folder(tmp_path, kit.embedder())) as engine:
        ends = await asyncio.gather(
            *(embedded(engine, text) for text in ("red", "poison", "blue")), return_exceptions=True
        )
        assert isinstance(ends[1], EngineFailed) and "poison" not in str(ends[1])
        assert [len(end) for end in (ends[0], ends[2])] == [1, 1]


async def test_what_is_too_long_empty_or_half_is_refused_before_it_costs_anything(tmp_path):
    async with opened(embed_folder(tmp_path, kit.embedder())) as engine:
        for text, words in (
            ("red " * 63, "65 tokens"),
            ("\ud800", "surrogate"),
            ("x" * 16 * LIMIT + "x", "characters"),
        ):
            with pytest.raises(RequestInvalid, match=words):
                await embedded(engine, "red", text)
        assert len(await embedded(engine, "red " * 62)) == 1


async def test_thousands_of_tiny_requests_all_end(tmp_path):
    async with opened(embed_folder(tmp_path, kit.embedder()), workers=2) as engine:
        made = await asyncio.gather(*(embedded(engine, TEXTS[at % 8]) for at in range(3000)))
        assert len({tuple(vectors) for vectors in made}) == 8
        assert engine.load().running == engine.load().waiting == 0


async def test_2048_inputs_in_one_request_come_in_order(tmp_path):
    async with opened(embed_folder(tmp_path, kit.embedder())) as engine:
        texts = tuple(TEXTS[at % 7] for at in range(2048))
        made = await embedded(engine, *texts)
        assert len(made) == 2048 and made[:7] * 292 == made[: 7 * 292]


async def test_kill_9_with_eight_jobs_in_flight_changes_no_answer(tmp_path):
    async with opened(embed_folder(tmp_path, kit.embedder())) as engine:
        [pid] = engine.worker_pids
        alone = [await embedded(engine, text) for text in TEXTS]
        os.kill(pid, signal.SIGSTOP)  # else the first could be done before the last is there
        jobs = [asyncio.create_task(embedded(engine, text)) for text in TEXTS]
        async with asyncio.timeout(60):
            while engine.load().running < 8:
                await asyncio.sleep(0.005)
            os.kill(pid, signal.SIGKILL)
            assert await asyncio.gather(*jobs) == alone
        assert engine.worker_pids != (pid,)


# ---- reranking -----------------------------------------------------------------------------------------


async def test_a_reranker_keeps_the_rules_of_its_port(tmp_path):
    folder = embed_folder(tmp_path, kit.reranker())
    async with opened(folder, kind="rerank") as engine:
        meter = RerankMeter(load_plain_encoder(folder / "tokenizer.json", limit=LIMIT))
        request = RerankRequest(query="red", documents=("a", "a b c d e", "[SEP]"))
        pieces = await check_work_engine(engine, meter, request, wrong=EmbedRequest(inputs=("a",)))
        scores = [SCORE.unpack(piece) for piece in pieces]
        assert [at for at, _ in scores] == [0, 1, 2] and all(0 < score < 1 for _, score in scores)
        assert await pieces_of(engine, request, units=2) == pieces[:2]


# ---- models that are not what they say -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model_onnx": b"no model"}, "no ONNX model"),
        ({"model_onnx": kit.embedder()[:-200]}, "no ONNX model"),
        ({"model_onnx": kit.colour_classifier()}, "input 'x'"),
        ({"model_onnx": kit.embedder().replace(b"input_ids", b"input_idx")}, "input_idx"),
        ({"tokenizer_json": "{}"}, "tokenizer"),
        ({"modules_json": json.dumps([{"type": "sentence_transformers.models.Dense"}])}, "behind its pooling"),
    ],
    ids=["nonsense", "torn", "sees", "other inputs", "no tokenizer", "a layer more"],
)
async def test_a_model_of_another_kind_is_refused_when_it_is_opened(tmp_path, files, words):
    folder = embed_folder(tmp_path, kit.embedder())
    meter = EmbedMeter(load_plain_encoder(folder / "tokenizer.json", limit=LIMIT))
    kit.write_model(folder, **files)
    with pytest.raises(ModelFileInvalid, match=words):
        async with open_onnx_engine(folder, kind="embed", models=["model.onnx"], meter=meter, context=LIMIT):
            pass


async def test_a_tokenizer_with_more_words_than_the_model_is_refused(tmp_path):
    more = json.loads(kit.tokenizer_json())
    more["model"]["vocab"] |= {f"more{at}": len(kit.WORDS) + at for at in range(4000)}
    folder = embed_folder(tmp_path, kit.embedder())
    (folder / "tokenizer.json").write_text(json.dumps(more))
    with pytest.raises(ModelFileInvalid, match="does not run"):
        async with opened(folder):
            pass


async def test_a_provider_that_is_not_installed_is_said(tmp_path):
    folder = embed_folder(tmp_path, kit.embedder())
    for provider, words in (("cuda", "onnxruntime-gpu"), ("abacus", "Choose among")):
        with pytest.raises(NodeMisconfigured, match=words):
            async with opened(folder, providers=[provider]):
                pass


async def test_settings_that_cannot_be_are_refused(tmp_path):
    folder = embed_folder(tmp_path, kit.embedder())
    for changes in ({"threads": 0}, {"workers": 1000}, {"context": 1 << 20}):
        with pytest.raises(NodeMisconfigured, match="possible"):
            async with opened(folder, **changes):
                pass
    with pytest.raises(ModelFileInvalid, match="cannot be read"):
        async with opened(folder, models=["other.onnx"]):
            pass


# ---- what a manifest says ------------------------------------------------------------------------------


def test_a_manifest_says_what_the_engine_is_to_do(tmp_path):
    weights = (a_file(name="rec.onnx"), a_file(name="det.onnx"))
    ocr = a_manifest(format=Format.ONNX, modality="OCR", context=0, files=weights)
    assert onnx_kind(ocr) == "read" and onnx_models(ocr) == ("det.onnx", "rec.onnx") and text_context(ocr) == 512
    assert text_context(a_manifest(context=1 << 20)) == 8192
    for changes in ({"modality": "text"}, {"format": Format.GGUF, "modality": "embedding"}):
        with pytest.raises(ModelFileInvalid, match="does not run"):
            onnx_kind(a_manifest(**{"format": Format.ONNX, **changes}))


def test_a_buyer_counts_with_the_tokenizer_alone(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(kit.tokenizer_json())
    manifest = a_manifest(format=Format.ONNX, modality="embedding", context=LIMIT)
    meter = onnx_meter(manifest, {Role.TOKENIZER: path})
    assert meter.units_in(EmbedRequest(inputs=("red green", "red")), b"") == 4 + 3
    with pytest.raises(ModelFileInvalid, match="no tokenizer"):
        onnx_meter(manifest, {})
