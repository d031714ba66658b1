"""Gateways that the user names: what they may answer, where they may send us, and what a router may say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver

from inference.models.cid import parse_cid
from inference.models.gateway import GatewaySource
from inference.models.routers import find_gateways
from inference.models.sources import SourceBusy
from inference.models.web_client import open_web
from market.errors import BlockInvalid, ContentUnavailable, NodeMisconfigured
from market.testing_content import check_source
from tests.inference.models.content_kit import serving
from tests.inference.models.ipfs_kit import ABSENT, Dag, Gateway, endless, tls_of


@pytest.fixture(scope="module")
def dag(tmp_path_factory: pytest.TempPathFactory) -> Dag:
    return Dag(tmp_path_factory.mktemp("dag"))


@asynccontextmanager
async def source_of(app: web.Application, silence_s: float = 60.0) -> AsyncIterator[GatewaySource]:
    async with serving(app) as url, open_web(silence_s=silence_s) as client:
        yield GatewaySource(url, client)


def one_answer(**response: object) -> web.Application:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(**response)  # type: ignore[arg-type]

    return app_of(answer)


def app_of(handler: object) -> web.Application:
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)  # type: ignore[arg-type]
    return app


async def read(source: GatewaySource, root: str, start: int = 0, length: int = 1000) -> bytes:
    async with aclosing(source.read_range(root, start, length)) as pieces:
        return b"".join([piece async for piece in pieces])


async def test_a_gateway_is_a_source(dag: Dag) -> None:
    async with source_of(Gateway(dag).app()) as source:
        await check_source(source, root=dag.root, content=dag.content, absent=ABSENT)


async def test_a_trustless_only_gateway_gives_blocks_and_is_asked_once_for_a_range(dag: Dag) -> None:
    gateway = Gateway(dag, ranges=False)
    async with source_of(gateway.app()) as source:
        await check_source(source, root=dag.root, content=dag.content, absent=ABSENT, ranges=False)
        for _ in range(3):
            with pytest.raises(ContentUnavailable, match="serves blocks"):
                await read(source, dag.root)
    assert sum("format=raw" not in path for path in gateway.asked) == 1


async def test_a_gateway_that_answers_whole_files_only_has_no_blocks_and_is_no_liar(dag: Dag) -> None:
    async with source_of(Gateway(dag, raw=False).app()) as source:
        await check_source(source, root=dag.root, content=dag.content, absent=ABSENT, blocks=False)
        with pytest.raises(ContentUnavailable, match="whole files"):
            await source.block(dag.root)


async def test_what_a_gateway_lacks_once_it_may_have_later(dag: Dag) -> None:
    gateway = Gateway(dag)
    async with source_of(gateway.app()) as source:
        with pytest.raises(ContentUnavailable):
            await read(source, ABSENT)
        assert await read(source, dag.root, 5, 10) == dag.content[5:15]


@pytest.mark.parametrize(("said", "expected_s"), [("7", 7.0), ("soon", 2.0), ("-1", 2.0), ("9" * 30, 2.0)])
async def test_a_busy_gateway_says_when_to_come_back(dag: Dag, said: str, expected_s: float) -> None:
    async with source_of(one_answer(status=429, headers={"Retry-After": said})) as source:
        for request in (source.block, lambda cid: read(source, cid)):
            with pytest.raises(SourceBusy) as busy:
                await request(dag.root)
            assert busy.value.retry_after_s == expected_s


async def test_an_endless_block_ends_at_its_limit(dag: Dag) -> None:
    async with source_of(app_of(endless)) as source:
        with pytest.raises(BlockInvalid, match="more than"):
            await source.block(dag.root)


async def test_a_silent_gateway_is_given_up(dag: Dag) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(600)
        raise AssertionError

    async with source_of(app_of(silent), silence_s=0.2) as source:
        with pytest.raises(ContentUnavailable, match="silent"):
            await source.block(dag.root)


@pytest.mark.parametrize(
    "headers",
    [{}, {"Content-Range": "bytes 1-1000/5000"}, {"Content-Range": "bytes 0-5000/9000"}, {"Content-Range": "?"}],
)
async def test_another_range_than_asked_for_is_refused(dag: Dag, headers: dict[str, str]) -> None:
    async with source_of(one_answer(status=206, body=bytes(1000), headers=headers)) as source:
        with pytest.raises(ContentUnavailable, match="another range"):
            await read(source, dag.root)


async def test_compressed_bytes_are_refused(dag: Dag) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/vnd.ipld.raw"}
    async with source_of(one_answer(body=bytes(100), headers=headers)) as source:
        with pytest.raises(ContentUnavailable, match="compressed"):
            await source.block(dag.root)


# ---- redirects -----------------------------------------------------------------------------------


class Names(AbstractResolver):
    """Every name is this machine."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[dict[str, object]]:  # type: ignore[override]
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 6, "flags": 0}]

    async def close(self) -> None:
        pass


async def test_a_redirect_on_the_same_host_is_followed(dag: Dag) -> None:
    gateway = Gateway(dag)

    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMovedPermanently(request.path_qs.replace("/old/", "/"))

    app = gateway.app()
    app.router.add_get("/old/{path:.*}", redirect)
    async with serving(app) as url, open_web() as client:
        source = GatewaySource(f"{url}/old", client)
        assert await source.block(dag.root) == dag.blocks[dag.root]
        assert await read(source, dag.root, 5, 10) == dag.content[5:15]


async def test_a_redirect_to_another_host_is_not_even_dialled(dag: Dag) -> None:
    other = Gateway(dag)

    async with serving(other.app()) as url:
        for target in (url.replace("127.0.0.1", "localhost"), "https://gateway.example", "//gateway.example"):
            async with source_of(one_answer(status=302, headers={"Location": f"{target}/ipfs/{dag.root}"})) as source:
                with pytest.raises(ContentUnavailable, match="another host"):
                    await source.block(dag.root)
    assert not other.asked


async def test_three_redirects_are_one_too_many(dag: Dag) -> None:
    hops = 0

    async def redirect(request: web.Request) -> web.StreamResponse:
        nonlocal hops
        hops += 1
        raise web.HTTPFound(request.path_qs + "0")

    async with source_of(app_of(redirect)) as source:
        with pytest.raises(ContentUnavailable, match="too often"):
            await source.block(dag.root)
    assert hops == 3


@pytest.mark.parametrize(
    ("location", "allowed"),
    [
        ("https://bafy.ipfs.gateway.example/", True),
        ("https://gateway.example/ipfs/bafy/", True),
        ("/ipfs/bafy/", True),
        ("https://evilgateway.example/", False),
        ("https://gateway.example.evil.example/", False),
        ("https://example/", False),
        ("https://[", False),
    ],
)
async def test_a_gateway_may_send_us_to_its_own_subdomains_only(location: str, allowed: bool) -> None:
    async with open_web(resolver=Names()) as client:
        source = GatewaySource("https://gateway.example", client)
        if allowed:
            source._check_redirect(location, 1)
        else:
            with pytest.raises(ContentUnavailable):
                source._check_redirect(location, 1)


@asynccontextmanager
async def tls_source(app: web.Application) -> AsyncIterator[GatewaySource]:
    """https://gateway.test and its subdomains, with a certificate that only this client trusts."""
    server, client_tls = tls_of("gateway.test", "*.ipfs.gateway.test")
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server).start()
        async with open_web(tls=client_tls, resolver=Names()) as client:
            yield GatewaySource(f"https://gateway.test:{runner.addresses[0][1]}", client)
    finally:
        await runner.cleanup()


async def test_a_subdomain_gateway_is_followed_over_tls(dag: Dag) -> None:
    gateway = Gateway(dag)

    async def answer(request: web.Request) -> web.StreamResponse:
        name, port = request.host.split(":")
        if name == "gateway.test":
            cid = request.match_info["path"].removeprefix("ipfs/")
            raise web.HTTPMovedPermanently(f"https://{cid}.ipfs.gateway.test:{port}/?{request.query_string}")
        request.match_info["cid"] = name.split(".")[0]
        return await gateway.answer(request)

    async with tls_source(app_of(answer)) as source:
        await check_source(source, root=dag.root, content=dag.content, absent=ABSENT)


async def test_a_tls_gateway_cannot_send_us_to_plain_http(dag: Dag) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"http://bafy.ipfs.gateway.test{request.path_qs}")

    async with tls_source(app_of(redirect)) as source:
        with pytest.raises(ContentUnavailable, match="not https"):
            await source.block(dag.root)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gateway.example",
        "http://gateway.example",
        "http://10.0.0.1",
        "https://user:secret@gateway.example",
        "https://gateway.example/?key=secret",
        "https://gateway.example/#x",
        "ftp://gateway.example",
        "https://gateway.example:0",
        "https://gate way.example",
    ],
)
async def test_a_setting_that_is_no_gateway_is_refused_without_being_quoted(url: str) -> None:
    async with open_web() as client:
        with pytest.raises(NodeMisconfigured) as refusal:
            GatewaySource(url, client)
    assert "secret" not in str(refusal.value)


async def test_localhost_is_asked_by_its_number() -> None:
    """Kubo sends the name to {cid}.ipfs.localhost, which not every resolver knows."""
    async with open_web() as client:
        assert GatewaySource("http://localhost:8080/", client).name == "http://127.0.0.1:8080"


# ---- routers -------------------------------------------------------------------------------------

CID = ABSENT
GOOD = {"Schema": "peer", "ID": "12D3", "Protocols": ["transport-bitswap", "transport-ipfs-gateway-http"]}


def peer(*addresses: object, **changes: object) -> dict[str, object]:
    return {**GOOD, "Addrs": list(addresses), **changes}


async def ask(answer: object, **options: object) -> list[str]:
    """What `find_gateways` makes of an answer: a list of records, or raw text."""
    body = answer if isinstance(answer, str) else json.dumps({"Providers": answer})

    async def router(request: web.Request) -> web.StreamResponse:
        assert request.path == f"/routing/v1/providers/{parse_cid(CID)}"
        return web.Response(text=body, **options)  # type: ignore[arg-type]

    async with serving(app_of(router)) as url, open_web() as client:
        return list(await find_gateways(url, CID, client))


async def test_a_router_names_gateways_in_both_forms() -> None:
    records = [peer("/ip4/8.8.8.8/tcp/80/http"), peer("/ip6/2606:4700::1/tcp/8081/http")]
    expected = ["http://8.8.8.8:80", "http://[2606:4700::1]:8081"]
    assert await ask(records) == expected
    assert await ask("\n".join(json.dumps(record) for record in records)) == expected
    assert await ask(json.dumps({"Providers": records}, indent=1)) == expected


async def test_only_what_may_be_dialled_comes_out_of_a_router() -> None:
    """This router is on this machine, so it may name this machine; a private network or a name it may not."""
    addresses = (
        "/ip4/127.0.0.1/tcp/8081/http",
        "/ip4/10.0.0.1/tcp/80/http",
        "/ip4/169.254.169.254/tcp/80/http",
        "/dns4/example.com/tcp/443/https",
        "/ip4/8.8.8.8/udp/4001/quic-v1",
        "/ip4/8.8.8.8/tcp/4001",
        "/ip4/8.8.8.8/tcp/99999/http",
        "x" * 10_000,
        7,
        None,
    )
    assert await ask([peer(*addresses)]) == ["http://127.0.0.1:8081"]


async def test_a_public_router_may_not_point_inside(dag: Dag) -> None:
    async def router(request: web.Request) -> web.StreamResponse:
        return web.json_response({"Providers": [peer("/ip4/127.0.0.1/tcp/80/http", "/ip4/8.8.8.8/tcp/80/http")]})

    async with tls_source(app_of(router)) as source:
        assert await find_gateways(source.name, CID, source._web) == ["http://8.8.8.8:80"]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"Providers": 7}',
        "[" * 100_000,
        "\xff not json",
        json.dumps({"Providers": [None, [], "peer", {"Schema": "peer"}]}),
        json.dumps({"Providers": [peer("/ip4/8.8.8.8/tcp/80/http", Schema="bitswap")]}),
        json.dumps({"Providers": [peer("/ip4/8.8.8.8/tcp/80/http", Protocols=["transport-bitswap"])]}),
        json.dumps({"Providers": [peer("/ip4/8.8.8.8/tcp/80/http", Protocols="transport-ipfs-gateway-http")]}),
        json.dumps({"Providers": [peer(Addrs={"/ip4/8.8.8.8/tcp/80/http": 1})]}),
    ],
)
async def test_a_router_that_talks_nonsense_names_nobody(answer: str) -> None:
    assert await ask(answer) == []


async def test_a_router_is_heard_for_so_long_only() -> None:
    many = [peer(f"/ip4/8.8.{i // 250}.{i % 250 + 1}/tcp/80/http") for i in range(5000)]
    assert len(await ask(many[:300])) == 32
    assert len(await ask("\n".join(json.dumps(record) for record in many))) == 32
    assert await ask([{}] * 100 + many[:1]) == []
    assert len(await ask([peer(*(f"/ip4/8.8.8.{i}/tcp/80/http" for i in range(1, 200)))])) == 16


async def test_a_router_that_knows_nobody_or_fails() -> None:
    assert await ask("", status=404) == []
    with pytest.raises(ContentUnavailable, match="500"):
        await ask("", status=500)
    async with open_web() as client:
        with pytest.raises(ContentUnavailable):
            await find_gateways("http://127.0.0.1:1", CID, client)
        with pytest.raises(NodeMisconfigured, match="router"):
            await find_gateways("http://router.example", CID, client)
