"""Our content and other people's IPFS: Helia fetches from us, we fetch from Helia and js-ipfs, and push to the latter.

Real implementations, in processes of their own; `make ipfs-tools` installs them, `make test-all` runs this.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from ipfs_nodes import PEER, PYTHON, Helia, JsIpfs, installed, open_node

from inference.models.cid import parse_cid
from inference.models.directory import build_folder
from inference.models.fetch import fetch_file
from inference.models.gateway import GatewaySource
from inference.models.kubo import open_kubo
from inference.models.kubo_answers import cid_of_text
from inference.models.kubo_client import open_kubo_client
from inference.models.kubo_push import push
from inference.models.paths import bring_with, list_folder, resolve_path
from inference.models.progress import Progress
from inference.models.routers import find_gateways
from inference.models.store import Store
from inference.models.unixfs import PROFILE_CLASSIC
from inference.models.web_client import Web, open_web
from market.errors import ContentUnavailable
from market.testing_content import check_source
from tests.inference.models.content_kit import PLENTY, seeded, serving

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not installed(), reason="Helia and js-ipfs are not installed: run `make ipfs-tools`"),
]
SIZE = 20_000_003
ABSENT = "bafkreigaknpexyvxt76zgkitavbwx6ejgfheup5oybpm77f3pxzrvpdpdi"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "models")
    yield opened
    opened.close()


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with open_web() as opened:
        yield opened


@asynccontextmanager
async def open_helia(*router: str) -> AsyncIterator[Helia]:
    async with aiohttp.ClientSession() as session, open_node("helia.mjs", *router) as said:
        yield Helia(said["gateway"], session)


@asynccontextmanager
async def open_js_ipfs(folder: Path) -> AsyncIterator[JsIpfs]:
    async with aiohttp.ClientSession() as session, open_node("js_ipfs.mjs", str(folder / "js-ipfs")) as said:
        yield JsIpfs(said["rpc"], said["gateway"], session)


@asynccontextmanager
async def open_listener(store: Store) -> AsyncIterator[str]:
    """Our content listener, advertising itself in its own /routing/v1."""
    from node.content.listener import content_app

    addresses: list[str] = []
    async with serving(content_app(store, limits=PLENTY, advertised=lambda: addresses, peer=PEER)) as url:
        addresses.append(f"/ip4/127.0.0.1/tcp/{url.rsplit(':', 1)[1]}/http")
        yield url


async def put(store: Store, folder: Path, data: bytes, **options: object) -> str:
    path = folder / "ours.bin"
    path.write_bytes(data)
    return await store.add(path, public=True, **options)  # type: ignore[arg-type]


async def test_helia_finds_and_fetches_our_root_over_http_alone(store: Store, tmp_path: Path) -> None:
    data = seeded(SIZE, "ours")
    root = await put(store, tmp_path, data)
    classic = await put(store, tmp_path, data, profile=PROFILE_CLASSIC)
    async with open_listener(store) as url, open_helia(url) as helia:
        began = time.monotonic()
        assert await helia.fetch(root) == data
        print(f"Helia fetched {len(data) / 1e6:.0f} MB from us in {time.monotonic() - began:.2f} s")
        assert await helia.fetch(classic) == data


async def test_helia_gets_nothing_of_what_is_not_public(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, seeded(SIZE, "private"))
    await store.set_public(root, False)
    async with open_listener(store) as url, open_helia(url) as helia:
        with pytest.raises(AssertionError, match="Error"):
            await helia.fetch(root)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cidVersion": 0, "rawLeaves": False},
        {"cidVersion": 1, "rawLeaves": False, "chunk": 262144},
        {"reduceSingleLeafToSelf": False},
    ],
)
async def test_we_fetch_what_helia_made_from_a_gateway_that_has_blocks_only(
    store: Store, web: Web, options: dict[str, object]
) -> None:
    data = seeded(SIZE, "helia's")
    async with open_helia() as helia:
        root = await helia.add(data, **options)
        source = GatewaySource(helia.gateway, web)
        path = await fetch_file(store, str(parse_cid(root)), [source], size_bytes=SIZE, public=True)
        assert path.read_bytes() == data
    async with open_listener(store) as url, open_helia(url) as other:
        assert await other.fetch(root) == data, "and what we fetched, another Helia fetches from us"


async def test_helias_gateway_is_a_source(web: Web) -> None:
    data = seeded(SIZE, "helia's")
    async with open_helia() as helia:
        root = str(parse_cid(await helia.add(data)))
        await check_source(GatewaySource(helia.gateway, web), root=root, content=data, absent=ABSENT, ranges=False)


async def test_our_router_names_us_to_ourselves(store: Store, web: Web, tmp_path: Path) -> None:
    root = await put(store, tmp_path, seeded(1_200_000))
    async with open_listener(store) as url:
        assert list(await find_gateways(url, root, web)) == [url]
        assert list(await find_gateways(url, ABSENT, web)) == []


async def test_we_fetch_what_js_ipfs_made_by_its_defaults_and_serve_it_on(
    store: Store, web: Web, tmp_path: Path
) -> None:
    """CIDv0, dag-pb leaves of 256 KiB: what most of IPFS is made of."""
    data = seeded(SIZE, "theirs")
    async with open_js_ipfs(tmp_path) as daemon:
        said = await daemon.add(data)
        assert said.startswith("Qm")
        root = str(parse_cid(said))
        async with open_kubo(daemon.rpc, timeout_s=5) as kubo:
            began = time.monotonic()
            path = await fetch_file(store, root, [kubo], size_bytes=SIZE, public=True)
            print(f"we fetched {SIZE / 1e6:.0f} MB by js-ipfs's RPC in {time.monotonic() - began:.2f} s")
        assert path.read_bytes() == data
    async with open_listener(store) as url, open_helia(url) as helia:
        assert await helia.fetch(said) == data


async def test_blocks_of_one_and_ranges_of_another_make_one_file(store: Store, web: Web, tmp_path: Path) -> None:
    """js-ipfs's gateway knows no raw blocks, Helia's no ranges; the inner nodes come from one, the bytes from both."""
    data, told = seeded(SIZE, "shared"), list[Progress]()
    async with open_js_ipfs(tmp_path) as daemon, open_helia() as helia:
        options = {"cid-version": "1", "raw-leaves": "true", "chunker": "size-1048576"}
        root = str(cid_of_text(await daemon.add(data, **options)))
        assert await helia.add(data) == root, "three importers, one CID"
        assert await put(store, tmp_path, data) == root
        await store.remove(root)
        ranges, blocks = GatewaySource(daemon.gateway, web), GatewaySource(helia.gateway, web)
        path = await fetch_file(store, root, [ranges, blocks], progress=told.append)
        assert path.read_bytes() == data
    assert ranges.name in {name for event in told for name in event.sources}


async def test_js_ipfs_s_gateway_and_rpc_are_sources(web: Web, tmp_path: Path) -> None:
    data = seeded(SIZE, "theirs")
    async with open_js_ipfs(tmp_path) as daemon, AsyncExitStack() as stack:
        root = str(parse_cid(await daemon.add(data)))
        kubo = await stack.enter_async_context(open_kubo(daemon.rpc, timeout_s=1))
        await check_source(kubo, root=root, content=data, absent=ABSENT)
        gateway = GatewaySource(daemon.gateway, web)
        async with aclosing(gateway.read_range(root, 1_000_003, 70_001)) as pieces:
            assert b"".join([piece async for piece in pieces]) == data[1_000_003:1_070_004]
        with pytest.raises(ContentUnavailable, match="whole files"):
            await gateway.block(root)


@pytest.mark.parametrize("client", ["aiohttp", "ipfshttpclient"])
async def test_a_push_leaves_our_dag_in_the_daemon(
    store: Store, tmp_path: Path, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(PYTHON)])  # the extra, without installing it
    data = seeded(2 * SIZE, "pushed")
    root = await put(store, tmp_path, data)
    opened = open_kubo if client == "aiohttp" else open_kubo_client
    async with open_js_ipfs(tmp_path) as daemon, opened(daemon.rpc, timeout_s=1) as kubo:
        assert await kubo.version() == "0.18.1"
        assert (await kubo.identity()).agent == "js-ipfs/0.18.1"
        began = time.monotonic()
        await push(kubo, root, store.read_block)
        print(f"{client} pushed {len(data) / 1e6:.0f} MB in {time.monotonic() - began:.2f} s")
        assert list(await kubo.pins()) == [root]
        assert await daemon.cat(root) == data
        await check_source(kubo, root=root, content=data, absent=ABSENT)
        other = Store(tmp_path / "others")
        assert (await fetch_file(other, root, [kubo])).read_bytes() == data
        other.close()
        await kubo.unpin(root)
        assert list(await kubo.pins()) == []
        with pytest.raises(ContentUnavailable, match="not pinned"):
            await kubo.unpin(root)


@pytest.mark.parametrize("options", [{}, {"shardSplitThresholdBytes": 0}])
async def test_a_folder_that_helia_made_lists_its_files_sharded_or_not(web: Web, options: dict[str, int]) -> None:
    files = {f"model/part-{number}.txt": f"text {number}" for number in range(40)} | {"README": "x"}
    async with open_helia() as helia:
        top = parse_cid(await helia.add_folder(files, **options))
        source = GatewaySource(helia.gateway, web)
        listed = await bring_with(list_folder(top), lambda cid: source.block(str(cid)))
        assert sorted(listed) == sorted(files)
        for name in ("README", "model/part-7.txt"):
            cid = await bring_with(resolve_path(top, name), lambda cid: source.block(str(cid)))
            assert cid == listed[name]
            assert await source.block(str(cid)) == files[name].encode()


async def test_helia_reads_a_folder_of_ours_by_path(store: Store, tmp_path: Path) -> None:
    data = seeded(3_000_000, "in a folder")
    root = await put(store, tmp_path, data)
    folder = build_folder({"model/weights.bin": (parse_cid(root), len(data)), "model/again.bin": (parse_cid(root), 1)})
    top = await store.add_directory(folder, public=True)
    async with open_listener(store) as url, open_helia(url) as helia:
        assert await helia.fetch(f"{top}/model/weights.bin") == data
