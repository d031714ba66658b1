"""Text to image: what counts, what a model's folder may hold; then a tiny pipeline of random weights in its child."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import struct
import sys
import zlib
from contextlib import aclosing
from pathlib import Path

import pytest

from inference.engines.diffusion import open_diffusion_engine
from inference.work.diffusers_folder import check_folder
from inference.work.image_meter import ImageMeter
from market.errors import EncodingInvalid, EngineFailed, ModelFileInvalid, NodeMisconfigured, RequestInvalid
from market.ports import WorkJob
from market.task import TaskId
from market.testing_work import check_work_engine
from market.work import ImageRequest, SpeakRequest
from tests.inference.media_kit import PACKAGES, PIPELINE, require_media

DOG = ImageRequest(prompt="a dog", width=128, height=64, steps=4, count=2, seed=7)


def png_head(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)


def test_an_image_counts_tiles_times_steps() -> None:
    meter = ImageMeter()
    request = ImageRequest(prompt="a dog", negative="cat", width=456, height=520, steps=20, count=3)
    assert meter.units_in(request, b"") == 8
    assert meter.units_of(request, png_head(456, 520)) == 8 * 9 * 20
    assert meter.units_out_limit(request, b"") == 3 * 8 * 9 * 20


@pytest.mark.parametrize(
    "piece", [b"", png_head(512, 512), png_head(520, 512), b"GIF89a" + bytes(40), png_head(512, 520)[:-1]]
)
def test_an_image_of_another_size_or_kind_counts_for_nothing(piece: bytes) -> None:
    with pytest.raises(EncodingInvalid):
        ImageMeter().units_of(ImageRequest(prompt="x", width=512, height=520), piece)


def test_other_work_is_not_counted() -> None:
    with pytest.raises(RequestInvalid):
        ImageMeter().units_in(SpeakRequest(text="x"), b"")
    with pytest.raises(RequestInvalid):
        ImageMeter().units_in(DOG, b"blob")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Nothing but what is looked at before anything is loaded."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    return tmp_path


def test_a_folder_of_safetensors_may_be_loaded_without_its_checker(model: Path) -> None:
    assert check_folder(model) == {"safety_checker"}


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("unet/diffusion_pytorch_model.bin", "", "code or may run some"),
        ("unet/model.ckpt", "", "code or may run some"),
        ("pipeline.py", "", "code or may run some"),
        ("unet/config.json", '{"auto_map": {"AutoModel": "x.Y"}}', "code of the model's own"),
        ("model_index.json", '{"_class_name": "EvilPipeline"}', "names the pipeline"),
        ("model_index.json", '{"_class_name": ["x"]}', "names the pipeline"),
        ("model_index.json", '{"_class_name": "FluxPipeline", "unet": ["os", "system"]}', "not loaded"),
        ("model_index.json", '{"_class_name": "FluxPipeline", "unet": ["diffusers"]}', "not loaded"),
        ("model_index.json", '{"_class_name": "FluxPipeline", "unet": [["diffusers"], "x"]}', "not loaded"),
        ("model_index.json", "[" * 100_000, "no JSON"),
        ("model_index.json", "[]", "no JSON object"),
        ("model_index.json", " " * 2_000_000, "is over"),
    ],
)
def test_a_folder_with_code_or_pickles_is_refused(model: Path, name: str, content: str, why: str) -> None:
    (model / name).write_text(content)
    with pytest.raises(ModelFileInvalid, match=why):
        check_folder(model)


def test_a_folder_without_its_index_or_weights_is_refused(model: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelFileInvalid, match="safetensors"):
        check_folder(model)
    (model / "model_index.json").unlink()
    with pytest.raises(ModelFileInvalid, match="has no model_index"):
        check_folder(model)


async def test_without_diffusers_its_owner_is_told_what_to_install(model: Path) -> None:
    if any((Path(entry) / "diffusers").is_dir() for entry in sys.path):
        pytest.skip("diffusers is installed beside the node")
    with pytest.raises(NodeMisconfigured, match="diffusers") as caught:
        async with open_diffusion_engine(model):
            pass
    assert "'.[diffusers]'" in caught.value.next_step


@pytest.fixture(scope="module")
async def engine(anyio_backend):
    require_media()
    async with open_diffusion_engine(PIPELINE, packages=PACKAGES, pixels=256 * 256) as engine:
        yield engine


def job(request, max_units: int = 10**6) -> WorkJob:
    return WorkJob(task=TaskId(bytes(32)), request=request, blob=b"", max_units=max_units)


async def images(engine, request: ImageRequest) -> list[bytes]:
    return [piece async for item in engine.make(job(request)) for piece in item.pieces]


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    at, found = 8, []
    while at < len(png):
        size, name = struct.unpack_from(">I4s", png, at)
        assert zlib.crc32(png[at + 4 : at + 8 + size]) == struct.unpack_from(">I", png, at + 8 + size)[0]
        found.append((name, png[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


@pytest.mark.heavy
async def test_a_pipeline_is_an_engine(engine) -> None:
    pieces = await check_work_engine(engine, ImageMeter(), DOG, wrong=SpeakRequest(text="x"))
    assert len(pieces) == 2 and pieces[0] != pieces[1]
    for png in pieces:
        parts = chunks(png)
        assert {name for name, _ in parts} == {b"IHDR", b"IDAT", b"IEND"}, "no metadata"
        pixels = zlib.decompress(b"".join(data for name, data in parts if name == b"IDAT"))
        assert len(pixels) == 64 * (1 + 128 * 3)
        assert len(set(pixels)) > 50


@pytest.mark.heavy
async def test_image_i_is_the_one_of_seed_plus_i_whatever_the_company(engine) -> None:
    together = await images(engine, DOG)
    alone = [
        await images(engine, ImageRequest(prompt="a dog", width=128, height=64, steps=4, seed=seed)) for seed in (7, 8)
    ]
    assert [together[0]] == alone[0] and [together[1]] == alone[1]
    other = await images(engine, ImageRequest(prompt="a cat", width=128, height=64, steps=4, seed=7))
    assert other != alone[0]


@pytest.mark.heavy
async def test_progress_is_the_steps(engine) -> None:
    request = ImageRequest(prompt="a", width=64, height=64, steps=10)
    made = [item async for item in engine.make(job(request))]
    assert {10, 50, 90} <= {item.progress for item in made}
    assert len(made) >= 10


@pytest.mark.heavy
async def test_a_cancelled_image_ends_at_its_next_step(engine) -> None:
    request = ImageRequest(prompt="a", width=256, height=256, steps=150, count=10)
    async with aclosing(engine.make(job(request))) as stream:
        assert (await anext(stream)).progress < 10
    async with asyncio.timeout(10):
        assert await images(engine, ImageRequest(prompt="a", width=64, height=64, steps=1))


@pytest.mark.heavy
async def test_an_image_too_large_for_this_machine_is_refused(engine) -> None:
    with pytest.raises(RequestInvalid, match="too large"):
        await images(engine, ImageRequest(prompt="a", width=264, height=256, steps=1))


@pytest.mark.heavy
async def test_any_text_is_drawn_or_refused(engine) -> None:
    before = engine.worker_pids
    for prompt in ("\0\x1b[2J", "漢字" * 500, "((((a:1.5)))) [b|c] <lora:x:1>", "a " * 2000, "\u202e\ud7ff"):
        assert await images(engine, ImageRequest(prompt=prompt, negative=prompt, width=64, height=64, steps=1))
    assert engine.worker_pids == before


@pytest.mark.heavy
async def test_a_killed_worker_costs_no_picture_and_a_second_one_ends_the_task(engine) -> None:
    request = ImageRequest(prompt="a", width=128, height=128, steps=150, seed=5)
    alone = await images(engine, request)
    for blows in (1, 2):
        async with aclosing(engine.make(job(request))) as stream:
            for _ in range(blows):
                await anext(stream)
                [pid] = engine.worker_pids
                os.kill(pid, signal.SIGKILL)
                async with asyncio.timeout(120):
                    while engine.worker_pids in ((), (pid,)):
                        await asyncio.sleep(0.005)
            if blows == 1:
                assert [piece async for item in stream for piece in item.pieces] == alone
            else:
                with pytest.raises(EngineFailed, match="SIGKILL"):
                    async for _ in stream:
                        pass


@pytest.mark.heavy
async def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    require_media()
    shutil.copytree(PIPELINE, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelFileInvalid):
        async with open_diffusion_engine(tmp_path / "model", packages=PACKAGES):
            pass
