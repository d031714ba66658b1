"""The public content listener, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import libipld
import pytest

from inference.models.cid import RAW, cid_of_block
from inference.models.store import Store
from node.content.door import ContentLimits
from node.content.listener import content_app
from tests.inference.models.content_kit import MIB, put, seeded, serving

DATA = seeded(2 * MIB + 9)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "models")
    yield opened
    opened.close()


async def test_a_public_file_comes_whole_with_headers_that_last_forever(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    async with serving(content_app(store)) as url, aiohttp.ClientSession() as http:
        async with http.get(f"{url}/ipfs/{root}", headers={"Origin": "http://evil.example"}) as response:
            assert await response.read() == DATA
            assert response.status == 200
            assert "immutable" in response.headers["Cache-Control"]
            assert response.headers["ETag"] == f'"{root}"'
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert not [name for name in response.headers if name.lower().startswith("access-control")]
        async with http.get(f"{url}/ipfs/{root}", headers={"If-None-Match": f'"{root}"'}) as response:
            assert response.status == 304
        async with http.head(f"{url}/ipfs/{root}") as response:
            assert response.status == 200
            assert response.headers["Content-Length"] == str(len(DATA))


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-99", 0, 100), ("bytes=1048570-1048600", 1048570, 1048601), ("bytes=-9", len(DATA) - 9, len(DATA))],
)
async def test_a_range_is_that_range(store: Store, tmp_path: Path, asked: str, start: int, stop: int) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    async with (
        serving(content_app(store)) as url,
        aiohttp.ClientSession() as http,
        http.get(f"{url}/ipfs/{root}", headers={"Range": asked}) as response,
    ):
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
        assert await response.read() == DATA[start:stop]


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=5-1", "bytes=a-b"])
async def test_a_range_that_is_none_is_416(store: Store, tmp_path: Path, asked: str) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    async with (
        serving(content_app(store)) as url,
        aiohttp.ClientSession() as http,
        http.get(f"{url}/ipfs/{root}", headers={"Range": asked}) as response,
    ):
        assert response.status == 416


async def test_raw_blocks_come_by_query_and_by_accept_header(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    leaf = str(cid_of_block(RAW, DATA[:MIB]))
    manifest = await store.add_block(libipld.encode_dag_cbor({"a": 1}), public=True)
    async with serving(content_app(store)) as url, aiohttp.ClientSession() as http:
        raw = "application/vnd.ipld.raw"
        for cid, headers, query, kind in (
            (root, {}, "?format=raw", raw),
            (root, {"Accept": "application/vnd.ipld.raw"}, "", raw),
            (leaf, {}, "?format=raw", raw),
            (leaf, {}, "", "application/octet-stream"),
            (manifest, {}, "", "application/vnd.ipld.dag-cbor"),
        ):
            async with http.get(f"{url}/ipfs/{cid}{query}", headers=headers) as response:
                assert response.status == 200
                assert response.content_type == "application/vnd.ipld.raw"
                assert await response.read() == await store.read_block(cid)


async def test_what_is_private_absent_or_no_cid_is_not_served(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    leaf = str(cid_of_block(RAW, DATA[:MIB]))
    manifest = await store.add_block(libipld.encode_dag_cbor({"a": 1}))
    absent = str(cid_of_block(RAW, b"never added"))
    async with serving(content_app(store)) as url, aiohttp.ClientSession() as http:
        for cid in (root, leaf, manifest, absent):
            for query in ("", "?format=raw"):
                async with http.get(f"{url}/ipfs/{cid}{query}") as response:
                    assert response.status == 404, cid
                    text = await response.text()
            async with http.get(f"{url}/routing/v1/providers/{cid}") as response:
                assert response.status == 404
        for bad in ("..%2f..%2fetc%2fpasswd", "Qmx", "b" * 59):
            async with http.get(f"{url}/ipfs/{bad}") as response:
                assert response.status == 400, bad
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            async with http.request(method, f"{url}/ipfs/{root}") as response:
                assert response.status == 405
    assert "not serve" in text  # private and absent read the same


async def test_routing_names_us_for_a_root_and_for_a_leaf(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    leaf = str(cid_of_block(RAW, DATA[:MIB]))
    app = content_app(store, advertised=lambda: ["/ip4/1.2.3.4/tcp/8081/http"], peer="12D3KooWpeer")
    async with serving(app) as url, aiohttp.ClientSession() as http:
        for cid in (root, leaf):
            async with http.get(f"{url}/routing/v1/providers/{cid}") as response:
                (record,) = (await response.json())["Providers"]
                assert record["Addrs"] == ["/ip4/1.2.3.4/tcp/8081/http"]
        headers = {"Accept": "application/x-ndjson, application/json;q=0.8"}
        async with http.get(f"{url}/routing/v1/providers/{root}", headers=headers) as response:
            assert json.loads((await response.text()).strip()) == record


async def test_an_address_that_asks_too_much_is_told_to_wait(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, b"small", public=True)
    now = [0.0]
    app = content_app(store, limits=ContentLimits(requests_per_s=1, burst=3), clock=lambda: now[0])
    async with serving(app) as url, aiohttp.ClientSession() as http:

        async def ask() -> int:
            async with http.get(f"{url}/ipfs/{root}") as response:
                return response.status

        assert [await ask() for _ in range(5)] == [200, 200, 200, 429, 429]
        now[0] = 2.0
        assert [await ask() for _ in range(3)] == [200, 200, 429]


async def test_streams_of_one_address_are_counted_and_given_back(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, seeded(24 * MIB), public=True)
    app = content_app(store, limits=ContentLimits(streams=2))
    async with serving(app) as url:
        host, port = url.removeprefix("http://").split(":")
        held = []
        for _ in range(2):  # readers that ask and then do not read
            quiet = socket.create_connection((host, int(port)))
            quiet.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            quiet.sendall(f"GET /ipfs/{root} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            held.append(quiet)
        await asyncio.sleep(0.3)
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{url}/ipfs/{root}") as response:
                assert response.status == 429
            for quiet in held:
                quiet.close()
            async with asyncio.timeout(10):
                while True:
                    async with http.get(f"{url}/ipfs/{root}") as response:
                        if response.status == 200:
                            assert len(await response.read()) == 24 * MIB
                            break
                    await asyncio.sleep(0.05)
