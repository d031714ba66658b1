"""Tasks of any kind through whole nodes: a queue that outlives kill -9, and eyes on another machine."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import subprocess
import sys
import zipfile
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from forks import until
from queue_node import ANSWER, Terms, start_node

from inference.models.draft import Wishes
from node.running import RunningNode
from node.settings import Api, Content, EngineSettings, Mesh, Settings
from node.wiring import open_node
from tests.inference import onnx_kit as kit

PATH = "/api/v1/inference"
OCR_WHEEL = "rapidocr==3.10.0"
OCR_MODELS = ("PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx")
EYES_WHEEL = "nudenet==3.4.2"


def hand_in(remote, number: int) -> str:
    """A task with a key; its id. The connection is dropped at once."""
    body = {"model": "default", "input": f"Question {number}", "stream": True, "metadata": {"n": str(number)}}
    for event in remote.stream(PATH, body, headers={"Idempotency-Key": f"key-{number}"}):
        return event.get("id") or event["task"]["id"]
    raise AssertionError("the stream said nothing")


@pytest.mark.model
@pytest.mark.processes
async def test_after_kill_9_in_the_middle_every_task_is_done_once_and_keeps_its_receipt(tmp_path):
    terms = Terms(folder=tmp_path / "node", delay_s=0.008)
    node = await start_node(replace(terms, answers=6))  # however late the kill comes, it comes in the middle
    ids = [await asyncio.to_thread(hand_in, node.remote, number) for number in range(16)]
    before: dict[str, dict] = {}

    async def some_more_done() -> bool:
        page = await asyncio.to_thread(node.remote.get, f"{PATH}?limit=100&status=done")
        found = {task["id"]: task for task in page["data"]}
        if len(found) < len(before) + 3:
            return False
        before.update(found)
        return True

    await until(some_more_done)
    await node.process.kill()
    node = await start_node(terms)

    async def all_done() -> bool:
        page = await asyncio.to_thread(node.remote.get, f"{PATH}?limit=100")
        assert len(page["data"]) == 16
        assert not [task for task in page["data"] if task["status"] in ("failed", "expired")]
        return all(task["status"] == "done" for task in page["data"])

    await until(all_done)
    tasks = {id: await asyncio.to_thread(node.remote.get, f"{PATH}/{id}") for id in ids}
    for id, task in tasks.items():
        assert task["usage"]["units_out"] == len(ANSWER)  # a byte a token; the model's tokenizer reads other words
        assert task["receipts"] == before.get(id, task)["receipts"]
        assert (await asyncio.to_thread(node.remote.get_bytes, f"/api/v1/receipts/{task['receipts'][0]}"))[:1]
    assert len({task["result"]["choices"][0]["message"]["content"] for task in tasks.values()}) == 1
    assert sum(task["attempts"] for task in tasks.values()) <= 16 + 4  # the places of the death
    assert any(task["attempts"] > 1 for task in tasks.values())
    assert [await asyncio.to_thread(hand_in, node.remote, number) for number in range(16)] == ids
    assert list((terms.folder / "batches" / "tasks").glob("*-input")) == []
    await node.process.kill()


# ---- eyes ----


def settings_in(folder: Path, **changes) -> Settings:
    return Settings(
        data_dir=folder,
        api=Api(port=0),
        mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",)),
        content=Content(host="127.0.0.1"),
        engine=EngineSettings(workers=1, slots=2, context=512),
        **changes,
    )


async def a_market(
    stack: AsyncExitStack, tmp_path: Path, files: Path, modality: str
) -> tuple[RunningNode, RunningNode, str]:
    """(provider of a model that looks, client, the model's name)."""
    async with open_node(settings_in(tmp_path / "p", provide=False)) as node:
        added = await node.desk.add(str(files), wishes=Wishes(modality=modality))
    provider = await stack.enter_async_context(open_node(settings_in(tmp_path / "p", model=added["model"])))
    joined = settings_in(tmp_path / "c", provide=False, join=(provider.addresses()[0],))
    client = await stack.enter_async_context(open_node(joined))
    async with asyncio.timeout(60):
        while not client.catalog.on_offer():
            await asyncio.sleep(0.05)
    return provider, client, client.catalog.on_offer()[0].name


async def look(client: RunningNode, body: dict, blob: bytes, *, as_form: bool = False) -> dict:
    headers = {"Authorization": f"Bearer {client.first_api_key}"}
    body = {**body, "wait_s": 60, "mode": "batch"}
    async with aiohttp.ClientSession(client.url, headers=headers) as http:
        if as_form:
            form = aiohttp.FormData()
            form.add_field("request", json.dumps(body))
            form.add_field("file", blob, filename="seen.png")
            sent = http.post(PATH, data=form)
        else:
            image = base64.b64encode(blob).decode()
            sent = http.post(PATH, json={**body, "input": {**body["input"], "image": image}})
        async with sent as response:
            return await response.json()


@pytest.mark.net
@pytest.mark.parametrize("as_form", [False, True])
async def test_things_are_found_by_another_node_and_paid_by_the_tile(tmp_path, as_form):
    files = kit.write_model(tmp_path / "colours", model_onnx=kit.colour_detector())
    async with AsyncExitStack() as stack:
        provider, client, name = await a_market(stack, tmp_path, files, "detection")
        green = np.broadcast_to(np.array([0, 255, 0], np.uint8), (100, 200, 3))
        task = await look(
            client, {"model": name, "input": {"what": "detect"}}, kit.png(200, 100, green), as_form=as_form
        )
        assert task["status"] == "done", task
        (found,) = task["result"]["findings"]
        assert (found["label"], found["box"]) == ("green", {"left": 0, "top": 0, "right": 100, "bottom": 100})
        record = await client.receipts.receipt_by_cid(task["receipts"][0])
        receipt = record.receipt.read()
        assert (receipt.provider, receipt.tokens_in, receipt.tokens_out) == (provider.peer, 8, 1)  # 4 x 2 tiles
        assert task["usage"] == {"units_in": 8, "units_out": 1}
        assert task["amount"] == receipt.amount > 0
        task = await look(client, {"model": name, "input": {"what": "read"}}, kit.png(200, 100, green))
        assert task["status"] == "failed"
        assert "does 'detect' and nothing else" in task["error"]["message"]


@pytest.mark.net
async def test_text_is_read_by_another_node(tmp_path):
    files = kit.write_model(tmp_path / "ink", det_onnx=kit.ink_finder(), rec_onnx=kit.ink_reader())
    page = np.full((400, 800, 3), 255, np.uint8)
    page[50:150, 100:160] = page[250:350, 300:360] = 0
    async with AsyncExitStack() as stack:
        _, client, name = await a_market(stack, tmp_path, files, "ocr")
        task = await look(client, {"model": name, "input": {"what": "read"}}, kit.png(800, 400, page))
        assert task["result"]["text"] == "I\nI", task


def wheel(folder: Path, name: str) -> zipfile.ZipFile:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    subprocess.run([*command, name], check=True)
    [path] = folder.glob(f"{name.split('==', maxsplit=1)[0]}-*.whl")
    return zipfile.ZipFile(path)


def printed() -> bytes:
    drawing = pytest.importorskip("PIL.ImageDraw", reason="Pillow decodes images; it comes with octo-node")
    from PIL import Image, ImageFont

    page = Image.new("RGB", (640, 200), "white")
    pen = drawing.Draw(page)
    pen.text((20, 20), "Hello Octo Node 42", fill="black", font=ImageFont.load_default(56))
    pen.text((20, 120), "second line, and more", fill="black", font=ImageFont.load_default(36))
    out = io.BytesIO()
    page.save(out, "PNG")
    return out.getvalue()


@pytest.mark.net
@pytest.mark.heavy
async def test_printed_text_is_read_by_another_node_with_real_weights(tmp_path):
    files = tmp_path / "ppocr"
    files.mkdir()
    with wheel(tmp_path, OCR_WHEEL) as archive:
        for name in OCR_MODELS:
            (files / name).write_bytes(archive.read(f"rapidocr/models/{name}"))
    async with AsyncExitStack() as stack:
        _, client, name = await a_market(stack, tmp_path, files, "ocr")
        task = await look(client, {"model": name, "input": {"what": "read", "threshold": 0.5}}, printed())
        assert task["result"]["text"] == "Hello Octo Node 42\nsecond line, and more", task
        assert task["usage"]["units_in"] == 10 * 4  # tiles of 640 x 200


@pytest.mark.net
@pytest.mark.heavy
async def test_a_real_detector_looks_at_a_page_of_another_node(tmp_path):
    """There is nobody on the page; the weights run, and what they see of a page of text is little or nothing."""
    files = tmp_path / "eyes"
    files.mkdir()
    with wheel(tmp_path, EYES_WHEEL) as archive:
        (files / "320n.onnx").write_bytes(archive.read("nudenet/320n.onnx"))
    async with AsyncExitStack() as stack:
        _, client, name = await a_market(stack, tmp_path, files, "detection")
        task = await look(client, {"model": name, "input": {"what": "detect", "threshold": 0.01}}, printed())
        assert task["status"] == "done", task
        for found in task["result"]["findings"]:
            assert re.fullmatch(r"[A-Z_]+", found["label"])
            assert 0 <= found["box"]["left"] <= found["box"]["right"] <= 640
        assert task["receipts"]
