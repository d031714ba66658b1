"""The public content listener, over real HTTP: files, blocks, directories, conditions."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import anyio
import libipld
import pytest

from inference.models.cid import DAG_PB, Cid, cid_of_block, parse_cid
from inference.models.store import Store
from inference.models.unixfs import PROFILE_CLASSIC
from market.errors import NodeMisconfigured
from node.content.listener import Content
from node.content.site import open_content
from tests.inference.models.store_kit import put
from tests.node.content.kit import ABSENT, DATA, LEAF, MIB, add_folder, ask, listening

RAW_TYPE = "application/vnd.ipld.raw"


def version_0(cid: str) -> str:
    """The `Qm…` text of a dag-pb CID."""
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    number, text = int.from_bytes(b"\x12\x20" + parse_cid(cid).digest, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = alphabet[digit] + text
    return text


async def test_a_public_file_comes_whole_with_headers_that_last_forever(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    async with listening(store) as url:
        answer = await ask(url, f"/ipfs/{root}", headers={"Origin": "http://evil.example", "Cookie": "a=b"})
    assert (answer.status, answer.body) == (200, DATA)
    assert answer.headers["cache-control"] == "public, max-age=29030400, immutable"
    assert answer.headers["etag"] == f'"{root}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["vary"] == "Accept"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == f'attachment; filename="{root}.bin"'
    assert answer.headers["x-ipfs-roots"] == root
    assert answer.headers["server"] == "octo-node"
    assert not [name for name in answer.headers if name.startswith(("access-control", "set-cookie"))]


@pytest.mark.parametrize("target", ["", "?format=raw", "/", "?x=1"])
async def test_head_equals_get_without_the_body(store: Store, tmp_path: Path, target: str) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    async with listening(store) as url:
        for headers in ({}, {"Range": "bytes=5-9"}, {"If-None-Match": "*"}, {"Range": "bytes=99999999-"}):
            got = await ask(url, f"/ipfs/{root}{target}", headers=headers)
            head = await ask(url, f"/ipfs/{root}{target}", headers=headers, method="HEAD")
            assert head.status == got.status
            assert {**head.headers, "date": ""} == {**got.headers, "date": ""}


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-99", 0, 100), ("bytes=1048570-1048600", 1048570, 1048601), ("bytes=-9", len(DATA) - 9, len(DATA))],
)
async def test_a_range_is_that_range(store: Store, tmp_path: Path, asked: str, start: int, stop: int) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    async with listening(store) as url:
        answer = await ask(url, f"/ipfs/{root}", headers={"Range": asked})
        again = await ask(url, f"/ipfs/{root}", headers={"Range": asked, "If-Range": f'"{root}"'})
        other = await ask(url, f"/ipfs/{root}", headers={"Range": asked, "If-Range": '"older"'})
    assert (answer.status, answer.body) == (206, DATA[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
    assert again.status == 206
    assert (other.status, other.body) == (200, DATA)


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=5-1", "bytes=a-b"])
async def test_a_range_that_is_none_is_416_and_says_the_size(store: Store, tmp_path: Path, asked: str) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    async with listening(store) as url:
        answer = await ask(url, f"/ipfs/{root}", headers={"Range": asked})
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{len(DATA)}"
    assert answer.headers["cache-control"] == "no-store"


async def test_blocks_have_ranges_too_and_an_empty_file_is_a_file(store: Store, tmp_path: Path) -> None:
    await put(store, tmp_path, DATA, public=True)
    empty = await put(store, tmp_path, b"", public=True)
    async with listening(store) as url:
        part = await ask(url, f"/ipfs/{LEAF}?format=raw", headers={"Range": "bytes=-7"})
        nothing = await ask(url, f"/ipfs/{empty}", headers={"Range": "bytes=0-"})
    assert (part.status, part.body) == (206, DATA[MIB - 7 : MIB])
    assert (nothing.status, nothing.body, nothing.headers["content-length"]) == (200, b"", "0")


async def test_conditions_are_answered_without_a_body(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    async with listening(store) as url:
        for tags in (f'"{root}"', f'W/"{root}"', f'"x", "{root}"', "*"):
            same = await ask(url, f"/ipfs/{root}", headers={"If-None-Match": tags, "Range": "bytes=0-1"})
            assert (same.status, same.body) == (304, b"")
            assert same.headers["etag"] == f'"{root}"'
            assert "immutable" in same.headers["cache-control"]
        assert (await ask(url, f"/ipfs/{root}", headers={"If-None-Match": f'"{root}.raw"'})).status == 200
        assert (await ask(url, f"/ipfs/{root}", headers={"If-Match": '"x"'})).status == 412
        assert (await ask(url, f"/ipfs/{root}", headers={"If-Match": f'"{root}"'})).status == 200
        for cid, status in ((root, 200), (ABSENT, 412)):
            answer = await ask(url, f"/ipfs/{cid}", headers={"Cache-Control": "only-if-cached"}, method="HEAD")
            assert answer.status == status


async def test_raw_blocks_come_by_query_and_by_accept_header(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    manifest = await store.add_block(libipld.encode_dag_cbor({"a": 1}), public=True)
    async with listening(store) as url:
        for cid, headers, query, kind in (
            (root, {}, "?format=raw", RAW_TYPE),
            (root, {"Accept": RAW_TYPE}, "", RAW_TYPE),
            (LEAF, {"Accept": "application/vnd.ipld.car"}, "?format=raw", RAW_TYPE),
            (LEAF, {}, "", "application/octet-stream"),
            (manifest, {}, "", "application/vnd.ipld.dag-cbor"),
        ):
            answer = await ask(url, f"/ipfs/{cid}{query}", headers=headers)
            assert (answer.status, answer.headers["content-type"]) == (200, kind)
            assert answer.body == await store.read_block(cid)
            assert ("vary" in answer.headers) == (not query), "what the URL decides needs no Vary"
            assert answer.headers.get("content-location") == (
                f"/ipfs/{cid}?format=raw" if headers and not query else None
            )
            assert answer.headers["etag"] == (f'"{cid}.raw"' if kind == RAW_TYPE else f'"{cid}"')


@pytest.mark.parametrize(("query", "accept"), [("?format=car", "*/*"), ("", "application/vnd.ipld.car;version=1")])
async def test_a_format_that_we_do_not_speak_is_406(store: Store, tmp_path: Path, query: str, accept: str) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    async with listening(store) as url:
        assert (await ask(url, f"/ipfs/{root}{query}", headers={"Accept": accept})).status == 406


async def test_a_client_that_probes_for_a_trustless_gateway_finds_one(store: Store) -> None:
    async with listening(store) as url:
        for method in ("GET", "HEAD"):
            answer = await ask(url, "/ipfs/bafkqaaa?format=raw", method=method)
            assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")


async def test_the_old_name_of_a_root_serves_the_same_file(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True, profile=PROFILE_CLASSIC)
    async with listening(store) as url:
        answer = await ask(url, f"/ipfs/{version_0(root)}")
        providers = await ask(url, f"/routing/v1/providers/{version_0(root)}")
    assert (answer.status, answer.body, answer.headers["etag"]) == (200, DATA, f'"{root}"')
    assert providers.status == 200


async def test_a_file_is_found_by_its_path_in_a_directory(store: Store, tmp_path: Path) -> None:
    first, second = await put(store, tmp_path, DATA), await put(store, tmp_path, b"tiny")
    folder = await add_folder(store, {"shards/a b.gguf": first, "über.json": second}, public=True)
    async with listening(store) as url:
        whole = await ask(url, f"/ipfs/{folder}/shards/a%20b.gguf")
        part = await ask(url, f"/ipfs/{folder}/shards/a%20b.gguf", headers={"Range": "bytes=-9"})
        small = await ask(url, f"/ipfs/{folder}/%C3%BCber.json")
        block = await ask(url, f"/ipfs/{folder}/shards/a%20b.gguf?format=raw")
        lost = [await ask(url, f"/ipfs/{folder}/{path}") for path in ("no", "shards/no", "%C3%BCber.json/x", "a b"[:1])]
    assert (whole.status, whole.body, part.body, small.body) == (200, DATA, DATA[-9:], b"tiny")
    assert whole.headers["etag"] == f'"{first}"', "the same file under any path is the same thing"
    assert whole.headers["content-disposition"] == 'attachment; filename="a b.gguf"'
    assert whole.headers["x-ipfs-path"] == f"/ipfs/{folder}/shards/a%20b.gguf"
    roots = whole.headers["x-ipfs-roots"].split(",")
    assert (roots[0], roots[-1], len(roots)) == (folder, first, 3)
    assert block.body == await store.read_block(first)
    assert [answer.status for answer in lost] == [404] * 4


async def test_a_directory_without_a_path_lists_its_names(store: Store, tmp_path: Path) -> None:
    first, second = await put(store, tmp_path, DATA), await put(store, tmp_path, b"tiny")
    folder = await add_folder(store, {"shards/a.gguf": first, "<script>": second}, public=True)
    async with listening(store) as url:
        for path in (f"/ipfs/{folder}", f"/ipfs/{folder}/"):
            answer = await ask(url, path)
            listed = {entry["Name"]: entry["Cid"] for entry in json.loads(answer.body)["Entries"]}
            assert set(listed) == {"shards", "<script>"}
            assert listed["<script>"] == second
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-disposition"].startswith("attachment")
            assert "immutable" not in answer.headers["cache-control"], "the form of a listing is ours, and may change"
        below = await ask(url, f"/ipfs/{listed['shards']}")
        raw = await ask(url, f"/ipfs/{folder}?format=raw")
    assert json.loads(below.body)["Entries"] == [{"Name": "a.gguf", "Cid": first}]
    assert cid_of_block(DAG_PB, raw.body) == parse_cid(folder)


async def test_a_directory_of_thousands_is_entered_but_not_listed(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, b"tiny")
    folder = await add_folder(store, {f"a-rather-long-name-of-a-shard-{n:06}": root for n in range(5000)}, public=True)
    async with listening(store) as url:
        listing = await ask(url, f"/ipfs/{folder}")
        entry = await ask(url, f"/ipfs/{folder}/a-rather-long-name-of-a-shard-004321")
    assert listing.status == 404
    assert (entry.status, entry.body) == (200, b"tiny")


async def test_a_file_that_changed_on_disk_is_not_served(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    path = store.path_of(root)
    async with listening(store) as url:
        assert (await ask(url, f"/ipfs/{root}")).status == 200
        path.chmod(0o644)
        path.write_bytes(DATA[:-1] + b"!")
        for target in (f"/ipfs/{root}", f"/ipfs/{LEAF}?format=raw"):
            answer = await ask(url, target)
            assert answer.status == 404
            assert DATA[:100] not in answer.body


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_resumes_a_download(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    target = tmp_path / "half"
    target.write_bytes(DATA[:MIB])
    async with listening(store) as url:
        command = ["curl", "-sf", "-C", "-", "-o", str(target), f"{url}/ipfs/{root}"]
        await anyio.to_thread.run_sync(lambda: subprocess.run(command, check=True, timeout=30))
    assert target.read_bytes() == DATA


async def test_a_port_that_is_taken_is_named_with_its_setting(store: Store) -> None:
    async with listening(store) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(NodeMisconfigured, match=r"content\.port"):
            async with open_content(Content(store), host="127.0.0.1", ports=(port,)):
                pass


async def test_every_block_of_a_dag_is_served_under_its_own_cid(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    async with listening(store) as url:
        cids = [Cid(codec=DAG_PB, digest=parse_cid(root).digest), parse_cid(LEAF)]
        for cid in cids:
            answer = await ask(url, f"/ipfs/{cid}?format=raw")
            assert cid_of_block(cid.codec, answer.body) == cid
