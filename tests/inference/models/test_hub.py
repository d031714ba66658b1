"""Hugging Face, as a mock of it with the routes and headers that its own library asks for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import sys
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from inference.models.hub import HubOrigin, HubSource
from inference.models.origins import OriginFile, open_origin, range_source
from inference.models.progress import Progress, quiet
from inference.models.references import HubReference, parse_reference
from inference.models.unixfs import build_file
from inference.models.web_client import Web, open_web
from market.errors import BlockInvalid, ContentUnavailable, OctoError, RequestInvalid
from market.testing_content import check_source
from tests.inference.models.hub_kit import COMMIT, MIB, QUICK, TOKEN, Fault, MockHub, serving, serving_hub

WEIGHTS = random.Random(7).randbytes(20 * MIB + 5)
FILES = {
    "model.safetensors": WEIGHTS,
    "config.json": b'{"a": 1}',
    "tokenizer.json": b"t" * 5000,
    "README.md": b"# hello",
    "modeling.py": b"import os",
    "pytorch_model.bin": b"\x80pickle",
}


def origin(client: Web, endpoint: str, text: str = "hf:owner/model", token: str | None = None) -> HubOrigin:
    parsed = parse_reference(text)
    assert isinstance(parsed, HubReference)
    return HubOrigin(parsed, web=client, endpoint=endpoint, token=lambda: token, patience=QUICK)


async def bring_all(one: HubOrigin, folder: Path) -> dict[str, bytes]:
    return {file.name: (await one.bring(file, folder, quiet)).read_bytes() for file in await one.files()}


async def test_a_model_comes_whole_at_the_commit_that_its_branch_was(tmp_path: Path) -> None:
    hub = MockHub(FILES)
    async with serving_hub(hub) as (endpoint, client):
        one = origin(client, endpoint, "hf:owner/model@v1")
        files = await one.files()
        assert one.reference == f"hf:owner/model@{COMMIT}"
        assert {file.name: file.sha256 for file in files} == {
            "config.json": None,  # a small file has a git hash only
            "model.safetensors": hashlib.sha256(WEIGHTS).hexdigest(),
            "tokenizer.json": hashlib.sha256(FILES["tokenizer.json"]).hexdigest(),
        }
        hub.commits["v1"] = "d" * 40  # the tag moves; we do not
        assert await bring_all(one, tmp_path) == {file.name: FILES[file.name] for file in files}
        assert all(f"/resolve/{COMMIT}/" in asked.path for asked in hub.pages.asked[1:])
        assert len([a for a in hub.pages.asked if "model.safetensors" in a.path]) == 1, "the redirect is walked once"


async def test_one_file_is_brought_by_its_path_even_a_pickle(tmp_path: Path) -> None:
    async with serving_hub(MockHub(FILES)) as (endpoint, client):
        one = open_origin(parse_reference("hf:owner/model/pytorch_model.bin"), web=client, endpoint=endpoint)
        (file,) = await one.files()
        assert file == OriginFile(name="pytorch_model.bin", size_bytes=7)
        assert (await one.bring(file, tmp_path, quiet)).read_bytes() == FILES["pytorch_model.bin"]
        with pytest.raises(RequestInvalid, match="no file"):
            await one.bring(OriginFile(name="modeling.py"), tmp_path, quiet)


async def test_signed_urls_expire_and_are_signed_again(tmp_path: Path) -> None:
    hub = MockHub(FILES)
    async with serving_hub(hub) as (endpoint, client):

        def expire(number: int, _: object) -> Fault | None:
            if number == 1:
                hub.expire()
            return None

        hub.cdn.faults = expire
        one = origin(client, endpoint, "hf:owner/model/model.safetensors")
        assert await bring_all(one, tmp_path) == {"model.safetensors": WEIGHTS}
        signed = {asked.path for asked in hub.cdn.asked}
        assert len(signed) >= 2
        assert hub.cdn.sent_bytes == len(WEIGHTS)


async def test_a_busy_hub_is_waited_for(tmp_path: Path) -> None:
    hub = MockHub(FILES)
    async with serving_hub(hub) as (endpoint, client):
        busy = Fault(status=429, headers={"Retry-After": "0"})
        hub.pages.faults = lambda number, _: busy if number in (0, 1) else None
        hub.cdn.faults = lambda number, _: busy if number == 0 else None
        assert (await bring_all(origin(client, endpoint), tmp_path))["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
async def test_bytes_that_are_not_what_the_hub_lists_are_refused(tmp_path: Path, name: str) -> None:
    hub = MockHub(dict(FILES))
    async with serving_hub(hub) as (endpoint, client):
        one = origin(client, endpoint, f"hf:owner/model/{name}")
        (file,) = await one.files()
        true = hub.files[name]
        listed = hub.listed(name)
        hub.files = FILES | {name: bytes([true[0] ^ 1]) + true[1:]}
        hub.linked[name] = listed["lfs"]["sha256"] if "lfs" in listed else str(listed["blobId"])  # type: ignore[index]
        with pytest.raises(BlockInvalid, match="sha256 is" if "lfs" in listed else "git sha1 is"):
            await one.bring(file, tmp_path, quiet)
        assert list(tmp_path.iterdir()) == []


async def test_a_hub_that_contradicts_its_own_list_is_not_believed(tmp_path: Path) -> None:
    hub = MockHub(FILES)
    hub.linked["model.safetensors"] = "00" * 32
    async with serving_hub(hub) as (endpoint, client):
        with pytest.raises(BlockInvalid, match="contradicts itself"):
            await bring_all(origin(client, endpoint), tmp_path)
        assert hub.cdn.asked == []


@pytest.mark.parametrize(
    ("text", "token", "setup", "words"),
    [
        ("hf:owner/absent", None, {}, ["does not exist, or it is private", "token"]),
        ("hf:owner/absent", TOKEN, {}, ["does not let this token", "valid"]),
        ("hf:owner/model@none", None, {}, ["no revision none", "branches and tags"]),
        ("hf:owner/model/none.gguf", None, {}, [r"no none\.gguf", "config.json"]),
        ("hf:owner/model", None, {"gated": True}, ["gated", "Accept the licence on http", "token"]),
        ("hf:owner/model", "hf_wrong", {"gated": True, "token": TOKEN}, ["gated", "Accept the licence"]),
        ("hf:owner/model", None, {"token": TOKEN}, ["private", "token"]),
        ("hf:owner/model", f"{TOKEN}\n", {}, ["characters that no token has"]),
    ],
)
async def test_a_refusal_says_what_to_do_next(
    tmp_path: Path, text: str, token: str | None, setup: dict[str, object], words: list[str]
) -> None:
    hub = MockHub(FILES)
    for key, value in setup.items():
        setattr(hub, key, value)
    async with serving_hub(hub) as (endpoint, client):
        with pytest.raises(OctoError) as caught:
            await bring_all(origin(client, endpoint, text, token), tmp_path)
    for word in words:
        assert re.search(word, str(caught.value)), str(caught.value)
    assert TOKEN not in str(caught.value)


async def test_the_token_opens_the_hub_and_is_seen_by_nobody_else(tmp_path: Path) -> None:
    hub = MockHub(FILES)
    hub.token = TOKEN
    seen: list[Progress] = []
    async with serving_hub(hub) as (endpoint, client):
        with capture_logs() as lines:
            one = origin(client, endpoint, token=TOKEN)
            for file in await one.files():
                await one.bring(file, tmp_path, seen.append)
        assert {asked.authorization for asked in hub.pages.asked} == {f"Bearer {TOKEN}"}
        assert {asked.authorization for asked in hub.cdn.asked} == {""}
        everything = [*lines, *seen, vars(one), *vars(one).values(), *(a.path for a in hub.pages.asked + hub.cdn.asked)]
        notes = [path.read_bytes() for path in tmp_path.iterdir() if path.stat().st_size < MIB]
        assert TOKEN not in repr(everything) + repr(notes)
        assert "Signature" not in repr(lines) + repr(seen)


@pytest.mark.parametrize(
    "answer",
    ["", "[]", "{}", '{"sha": "main", "siblings": []}', "<html>", '{"sha": "' + "a" * 40 + '", "siblings": [{}]}'],
)
async def test_a_listing_that_is_none_is_unavailable(answer: str) -> None:
    async def reply(_: web.Request) -> web.Response:
        return web.Response(text=answer)

    app = web.Application()
    app.router.add_get("/{path:.*}", reply)
    async with serving(app) as endpoint, open_web() as client:
        with pytest.raises(ContentUnavailable, match="not what a model hub says"):
            await origin(client, endpoint).files()


async def test_a_listing_without_hashes_and_paths_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    hub = MockHub({"../../evil.safetensors": b"x" * 2000, "a.safetensors": b"y"})
    async with serving_hub(hub) as (endpoint, client):
        assert [file.name for file in await origin(client, endpoint).files()] == ["a.safetensors"]
        hub.listed = lambda name: {"rfilename": name, "size": 1, "lfs": None}  # type: ignore[method-assign]
        with pytest.raises(ContentUnavailable, match="no hash"):
            await bring_all(origin(client, endpoint), tmp_path)


def test_an_endpoint_in_the_clear_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="Only https"):
        HubSource(HubReference(repo="a/b"), "f", "bafy", web=None, endpoint="http://hub.example")  # type: ignore[arg-type]


async def test_the_hub_is_one_more_source_of_ranges(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(WEIGHTS)
    root, absent = str(build_file(path).root), "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    hub = MockHub(FILES)
    async with serving_hub(hub) as (endpoint, client):
        reference = parse_reference(f"hf:owner/model@{COMMIT}")
        source = range_source(reference, "model.safetensors", root, web=client, endpoint=endpoint)
        assert source is not None
        assert source.name == f"hf:owner/model@{COMMIT}/model.safetensors"
        await check_source(source, root=root, content=WEIGHTS, absent=absent, blocks=False)
        hub.expire()
        assert b"".join([piece async for piece in source.read_range(root, 5, 100)]) == WEIGHTS[5:105]
        small = range_source(reference, "config.json", root, web=client, endpoint=endpoint)
        assert small is not None
        assert b"".join([piece async for piece in small.read_range(root, 2, 3)]) == FILES["config.json"][2:5]


LIBRARY = """
import json, sys
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
endpoint = sys.argv[1]
info = HfApi(endpoint=endpoint, token=False).model_info("owner/model", revision="v1", files_metadata=True)
meta = get_hf_file_metadata(hf_hub_url("owner/model", "model.safetensors", endpoint=endpoint), token=False)
files = {s.rfilename: [s.size, s.blob_id, s.lfs.sha256 if s.lfs else None] for s in info.siblings}
print(json.dumps({"sha": info.sha, "files": files, "etag": meta.etag, "size": meta.size, "commit": meta.commit_hash}))
"""


async def test_the_real_library_reads_the_same_out_of_our_mock(tmp_path: Path) -> None:
    hub = MockHub(FILES)
    async with serving_hub(hub) as (endpoint, client):
        environment = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_ENDPOINT": endpoint}
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", LIBRARY, endpoint, env=environment, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await child.communicate()
        theirs = json.loads(out)
        one = origin(client, endpoint, "hf:owner/model@v1")
        ours = {file.name: (file.size_bytes, file.sha256) for file in await one.files()}
    assert one.reference == f"hf:owner/model@{theirs['sha']}" == f"hf:owner/model@{theirs['commit']}"
    assert {name: (size, sha256) for name, (size, _, sha256) in theirs["files"].items() if name in ours} == ours
    assert (theirs["size"], theirs["etag"]) == ours["model.safetensors"]
