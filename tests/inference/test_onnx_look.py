"""The ONNX engine on images: what it sees, and images that are not what they say."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from inference.engines.onnx import open_onnx_engine
from inference.work.engine import SupervisedEngine
from inference.work.meters import LookMeter
from market.errors import EngineFailed, ModelFileInvalid, RequestInvalid
from market.ports import WorkJob
from market.task import MICRO, TaskId
from market.testing_work import check_work_engine
from market.values import decode
from market.work import EmbedRequest, Finding, LookRequest
from tests.inference import onnx_kit as kit

Image = pytest.importorskip("PIL.Image", reason="Pillow decodes images; it comes with octo-node's dependencies")
CLASSES = json.dumps({"id2label": {"0": "red", "1": "green", "2": "blue"}})
PAPER = 255


def opened(folder: Path, kind: str = "classify", models: tuple[str, ...] = ("model.onnx",)):
    return open_onnx_engine(folder, kind=kind, models=models, meter=LookMeter())


def classifier_folder(folder: Path) -> Path:
    return kit.write_model(folder, model_onnx=kit.colour_classifier(), config_json=CLASSES)


def reader_folder(folder: Path) -> Path:
    return kit.write_model(folder, det_onnx=kit.ink_finder(), rec_onnx=kit.ink_reader())


def image(red: int, green: int, blue: int, *, width: int = 40, height: int = 20) -> np.ndarray:
    return np.broadcast_to(np.array([red, green, blue], np.uint8), (height, width, 3))


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "JPEG", **options)
    return out.getvalue()


def of_png(pixels: np.ndarray) -> bytes:
    return kit.png(pixels.shape[1], pixels.shape[0], pixels)


async def seen(engine: SupervisedEngine, blob: bytes, what: str = "classify", *, units: int = 1000) -> list[Finding]:
    request = LookRequest(what=what, threshold_micro=100_000)  # type: ignore[arg-type]
    job = WorkJob(task=TaskId(bytes(32)), request=request, blob=blob, max_units=units)
    return [decode(Finding, piece) async for item in engine.make(job) for piece in item.pieces]


async def test_a_classifier_keeps_the_rules_of_its_port(tmp_path):
    async with opened(classifier_folder(tmp_path)) as engine:
        blob = of_png(image(10, 10, 250))
        request = LookRequest(what="classify")
        [piece] = await check_work_engine(engine, LookMeter(), request, blob=blob, wrong=EmbedRequest(inputs=("a",)))
        assert decode(Finding, piece).label == "blue"
        assert (await seen(engine, jpeg(image(250, 10, 10))))[0].label == "red"
        assert len(await seen(engine, of_png(image(9, 9, 9)))) == 3
        assert len(await seen(engine, of_png(image(9, 9, 9)), units=2)) == 2


async def test_a_detector_gives_boxes_in_pixels_of_the_image_and_each_thing_once(tmp_path):
    folder = kit.write_model(tmp_path, model_onnx=kit.colour_detector())
    async with opened(folder, "detect") as engine:
        # 64 x 32 fits into 32 x 32 at a scale of one half: the box from (0, 0) to (16, 16) doubles.
        [found] = await seen(engine, of_png(image(0, 255, 0, width=64, height=32)), "detect")
        assert found.label == "green" and found.box == (0, 0, 32, 32) and found.score_micro > MICRO // 2


async def test_text_is_found_and_read_in_order(tmp_path):
    page = np.full((400, 800, 3), PAPER, np.uint8)
    page[50:150, 100:160] = page[50:150, 500:560] = page[250:350, 300:360] = 0
    async with opened(reader_folder(tmp_path), "read", ("det.onnx", "rec.onnx")) as engine:
        found = await seen(engine, of_png(page), "read")
        assert [finding.label for finding in found] == ["I"] * 3
        assert [
            finding.box[0] < corner < finding.box[2] for finding, corner in zip(found, (130, 530, 330), strict=True)
        ]
        assert found[0].box[1] < 50 and found[2].box[1] > 150
        assert await seen(engine, of_png(np.full((400, 800, 3), PAPER, np.uint8)), "read") == []


async def test_a_model_does_one_kind_of_looking(tmp_path):
    async with opened(classifier_folder(tmp_path)) as engine:
        with pytest.raises(RequestInvalid, match="'classify' and nothing else"):
            await seen(engine, of_png(image(1, 2, 3)), "read")


def test_who_asks_for_another_kind_of_looking_learns_it_before_paying():
    blob = of_png(image(0, 0, 255))
    assert LookMeter("classify").units_in(LookRequest(what="classify"), blob) == 1
    assert LookMeter().units_in(LookRequest(what="read"), blob) == 1
    with pytest.raises(RequestInvalid, match="does 'classify' and nothing else"):
        LookMeter("classify").units_in(LookRequest(what="read"), blob)


def bomb() -> bytes:
    """100 MB of zeros behind a head that says 5 x 5."""
    chunk = zlib.compress(bytes(100 << 20), 9)
    sound = kit.png(5, 5)
    data = struct.pack(">I", len(chunk)) + b"IDAT" + chunk + struct.pack(">I", zlib.crc32(b"IDAT" + chunk))
    return sound[:33] + data + sound[-12:]


def two_heads() -> bytes:
    """Metered as 5 x 5 by its first head; the second says 100 x 100, and so many pixels follow."""
    return kit.png(5, 5)[:33] + kit.png(100, 100)[8:]


@pytest.mark.parametrize(
    "blob",
    [
        two_heads(),
        kit.png(500, 500)[:100],
        jpeg(np.random.default_rng(1).integers(0, 255, (200, 200, 3), np.uint8))[:3000],
        kit.png(5, 5).replace(b"IDAT", b"IDAX"),
        kit.png(5_000, 5_000),
        b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x05\x00\x05\x03" + bytes(200),
    ],
    ids=["two heads", "torn PNG", "torn JPEG", "no pixels", "fewer pixels than it says", "head alone"],
)
async def test_an_image_that_is_not_whole_is_the_askers_fault_and_harms_nobody(tmp_path, blob):
    async with opened(classifier_folder(tmp_path)) as engine:
        [pid] = engine.worker_pids
        with pytest.raises(RequestInvalid, match="decoded"):
            await seen(engine, blob)
        assert await seen(engine, of_png(image(1, 2, 3))) and engine.worker_pids == (pid,)


async def test_a_bomb_is_not_inflated(tmp_path):
    async with opened(classifier_folder(tmp_path)) as engine:
        assert len(await seen(engine, bomb())) == 3  # its first 5 x 5 pixels
        for blob in (kit.png(100_000, 100_000), b"", b"%PDF-1.7", bytes(1 << 20)):
            with pytest.raises(RequestInvalid):
                await seen(engine, blob)


async def test_scores_that_are_no_numbers_are_the_models_fault(tmp_path):
    graph = kit.model(
        kit.tensor("minus", np.array(-1, np.float32)),
        kit.node("ReduceMean", ["x"], "m", axes=[2, 3], keepdims=0),
        kit.node("Add", ["m", "minus"], "n"),
        kit.node("Log", ["n"], "logits"),
        kit.port(11, "x", kit.FLOAT, [1, 3, 8, 8]),
        kit.port(12, "logits", kit.FLOAT, [1, 3]),
    )
    async with opened(kit.write_model(tmp_path, model_onnx=graph, config_json=CLASSES)) as engine:
        with pytest.raises(EngineFailed, match="none"):
            await seen(engine, of_png(image(1, 2, 3)))


@pytest.mark.parametrize(
    ("kind", "files", "words"),
    [
        ("classify", {"model_onnx": kit.colour_classifier()}, "classes are called"),
        ("classify", {"model_onnx": kit.colour_classifier(), "config_json": '{"id2label": {"x": "red"}}'}, "numbered"),
        ("detect", {"model_onnx": kit.colour_classifier(), "config_json": CLASSES}, "YOLO"),
        ("read", {"model_onnx": kit.ink_finder()}, "two graphs"),
        ("classify", {"model_onnx": b"", "config_json": CLASSES}, "no ONNX model"),
    ],
)
async def test_a_model_of_another_kind_is_refused_when_it_is_opened(tmp_path, kind, files, words):
    with pytest.raises(ModelFileInvalid, match=words):
        async with opened(kit.write_model(tmp_path, **files), kind):
            pass


async def test_a_reader_lists_as_many_characters_as_it_has(tmp_path):
    folder = reader_folder(tmp_path)
    (folder / "rec.onnx").write_bytes(kit.ink_reader().replace(b"character", b"caracters"))
    with pytest.raises(ModelFileInvalid, match="list its characters"):
        async with opened(folder, "read", ("det.onnx", "rec.onnx")):
            pass
