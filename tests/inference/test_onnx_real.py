"""The ONNX engine with real weights: MiniLM's vectors, and text read by PP-OCR. Both come out of wheels (110 MB)."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from bench.minilm import minilm_folder
from inference.engines.onnx import open_onnx_engine
from inference.models.plain_encoder import load_plain_encoder
from inference.work.meters import EmbedMeter, LookMeter
from market.ports import WorkJob
from market.task import MICRO, TaskId
from market.values import decode
from market.work import EmbedRequest, Finding, LookRequest

pytestmark = pytest.mark.heavy
OCR_WHEEL = "rapidocr==3.10.0"
OCR_MODELS = ("PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx")
TEXTS = ("A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.", "x " * 400)


async def made(engine, request, blob=b""):
    job = WorkJob(task=TaskId(bytes(32)), request=request, blob=blob, max_units=1000)
    return [piece async for item in engine.make(job) for piece in item.pieces]


async def test_minilm_says_what_its_authors_say_and_the_same_bytes_in_any_company():
    folder = await asyncio.to_thread(minilm_folder)
    meter = EmbedMeter(load_plain_encoder(folder / "tokenizer.json", limit=512))
    async with open_onnx_engine(folder, kind="embed", models=["model.onnx"], meter=meter, workers=2) as engine:
        alone = [(await made(engine, EmbedRequest(inputs=(text,))))[0] for text in TEXTS]
        assert await made(engine, EmbedRequest(inputs=TEXTS)) == alone
        crowd = await asyncio.gather(*(made(engine, EmbedRequest(inputs=(text,))) for text in TEXTS[:3] * 20))
        assert [vectors[0] for vectors in crowd] == alone[:3] * 20
    near, other = (float(np.frombuffer(alone[0], "<f4") @ np.frombuffer(alone[at], "<f4")) for at in (1, 2))
    assert abs(near - 0.755) < 0.002 and other < 0


async def test_printed_text_is_read(tmp_path):
    drawing = pytest.importorskip("PIL.ImageDraw", reason="Pillow decodes images; it comes with octo-node")
    from PIL import Image, ImageFont

    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(tmp_path)]
    subprocess.run([*command, OCR_WHEEL], check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in OCR_MODELS:
            (tmp_path / name).write_bytes(archive.read(f"rapidocr/models/{name}"))
    page = Image.new("RGB", (640, 200), "white")
    pen = drawing.Draw(page)
    pen.text((20, 20), "Hello Octo Node 42", fill="black", font=ImageFont.load_default(56))
    pen.text((20, 120), "second line, and more", fill="black", font=ImageFont.load_default(36))
    pen.text((450, 120), "right", fill="black", font=ImageFont.load_default(36))
    out = io.BytesIO()
    page.save(out, "PNG")
    async with open_onnx_engine(tmp_path, kind="read", models=OCR_MODELS, meter=LookMeter()) as engine:
        request = LookRequest(what="read", threshold_micro=MICRO // 2)
        found = [decode(Finding, piece) for piece in await made(engine, request, out.getvalue())]
    assert [finding.label for finding in found] == ["Hello Octo Node 42", "second line, and more", "right"]
