"""A Kubo daemon behind its RPC: a source, a place to push to, and what a hostile or broken one can do to us."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from inference.models.cid import DAG_CBOR, cid_of_block
from inference.models.fetch import fetch_block
from inference.models.kubo import KuboSource, open_kubo
from inference.models.kubo_address import parse_rpc
from inference.models.kubo_client import KuboClientSource, open_kubo_client
from inference.models.kubo_push import push
from inference.models.progress import Progress
from market.errors import BlockInvalid, ContentUnavailable, NodeMisconfigured
from market.testing_content import MemorySource, check_source
from tests.inference.models.content_kit import serving
from tests.inference.models.ipfs_kit import ABSENT, Dag, KuboDouble, endless

ERROR = b'{"Message":"the disk is on fire","Code":0,"Type":"error"}\n'


@pytest.fixture(scope="module")
def dag(tmp_path_factory: pytest.TempPathFactory) -> Dag:
    return Dag(tmp_path_factory.mktemp("dag"))


@asynccontextmanager
async def kubo_of(daemon: KuboDouble) -> AsyncIterator[KuboSource]:
    async with serving(daemon.app()) as url, open_kubo(url, timeout_s=60) as kubo:
        yield kubo


async def test_a_kubo_is_a_source(dag: Dag) -> None:
    async with kubo_of(KuboDouble(dag)) as kubo:
        await check_source(kubo, root=dag.root, content=dag.content, absent=ABSENT)


async def test_a_kubo_says_who_it_is() -> None:
    async with kubo_of(KuboDouble()) as kubo:
        assert await kubo.version() == "0.18.1"
        who = await kubo.identity()
        assert (who.peer[:8], who.agent, who.addresses) == ("12D3KooW", "js-ipfs/0.18.1", ())


async def test_pins_come_and_go_whatever_base_their_cids_are_printed_in(dag: Dag) -> None:
    daemon = KuboDouble(dag)
    async with kubo_of(daemon) as kubo:
        await kubo.pin(dag.root)
        assert list(await kubo.pins()) == [dag.root]
        daemon.says["pin/ls"] = [b'{"Cid":"QmbZjJfSbvQxqp1geBytLgbkPNDLZaJGTdBr6Co4BqQP56"}\n{"Cid":"k51nonsense"}\n{}']
        assert [cid[:4] for cid in await kubo.pins()] == ["bafy"]
        await kubo.unpin(dag.root)
        with pytest.raises(ContentUnavailable, match="is not pinned"):
            await kubo.unpin(dag.root)


async def test_a_step_that_an_older_daemon_lacks_fails_in_its_words() -> None:
    async with kubo_of(KuboDouble()) as kubo:
        with pytest.raises(ContentUnavailable, match=r"404 to routing/provide\. Not Found"):
            await kubo.provide(ABSENT)


# ---- pushing -------------------------------------------------------------------------------------


async def test_a_push_brings_every_block_under_its_own_cid_and_pins_the_root(dag: Dag) -> None:
    daemon, told = KuboDouble(), list[Progress]()
    async with kubo_of(daemon) as kubo:
        await push(kubo, dag.root, dag.block, progress=told.append, parcel_bytes=500_000)
    assert daemon.blocks == dag.blocks
    assert daemon.pinned == {dag.root}
    assert told[0].done_bytes == 0
    assert told[-1].done_bytes == told[-1].total_bytes == sum(map(len, dag.blocks.values()))
    assert len(daemon.commands("dag/import")) >= 5


async def test_a_push_that_broke_off_goes_on_where_it_was(dag: Dag) -> None:
    daemon = KuboDouble()
    left = 2

    async def breaks(cid: str) -> bytes:
        nonlocal left
        if len(daemon.commands("dag/import")) == left:
            raise ContentUnavailable("our disk is away")
        return await dag.block(cid)

    async with kubo_of(daemon) as kubo:
        with pytest.raises(ContentUnavailable):
            await push(kubo, dag.root, breaks, parcel_bytes=500_000)
        assert not daemon.pinned
        await push(kubo, dag.root, dag.block, parcel_bytes=500_000)
        whole = len(daemon.commands("dag/import"))
        assert daemon.blocks == dag.blocks
        await push(kubo, dag.root, dag.block, parcel_bytes=500_000)
        assert len(daemon.commands("dag/import")) == whole, "what is there already is not sent again"
        daemon.blocks.clear()
        await push(kubo, dag.root, dag.block, parcel_bytes=500_000)
        assert len(daemon.commands("dag/import")) - whole == whole, "nothing was sent twice after the break"


async def test_a_daemon_that_lost_blocks_it_says_it_has_gets_them_all_again(dag: Dag) -> None:
    daemon = KuboDouble(dag)
    del daemon.blocks[dag.root]
    async with kubo_of(daemon) as kubo:
        await push(kubo, dag.root, dag.block, parcel_bytes=500_000)
    assert daemon.blocks == dag.blocks
    assert daemon.pinned == {dag.root}


async def test_a_manifest_is_pushed_as_the_one_block_that_it_is() -> None:
    manifest = b"\xa1\x64name\x65model"
    cid, daemon = str(cid_of_block(DAG_CBOR, manifest)), KuboDouble()
    async with kubo_of(daemon) as kubo:
        await push(kubo, cid, MemorySource("us", blocks={cid: manifest}, files={}).block)
    assert daemon.blocks == {cid: manifest}


async def test_a_block_of_ours_that_rotted_is_not_pushed(dag: Dag) -> None:
    async def rotten(cid: str) -> bytes:
        return dag.blocks[cid][:-1] + b"!" if len(dag.blocks[cid]) > 90_000 else dag.blocks[cid]

    daemon = KuboDouble()
    async with kubo_of(daemon) as kubo:
        with pytest.raises(BlockInvalid):
            await push(kubo, dag.root, rotten)
    assert not daemon.blocks


# ---- daemons that break or lie -------------------------------------------------------------------


@pytest.mark.parametrize(
    "says",
    [
        [ERROR],
        [b'{"Progress":5}\n', ERROR],
        [ERROR[:20], ERROR[20:]],
        [b'{"Root":{"Cid":{"/":"bafy"},"PinErrorMsg":"the disk is on fire"}}\n'],
    ],
)
async def test_an_error_inside_a_success_is_an_error(dag: Dag, says: list[bytes]) -> None:
    daemon = KuboDouble(dag)
    daemon.says = {"pin/add": says, "dag/import": says}
    async with kubo_of(daemon) as kubo:
        for step in (lambda: kubo.pin(dag.root), lambda: kubo.import_car(b"")):
            with pytest.raises(ContentUnavailable, match="the disk is on fire"):
                await step()


@pytest.mark.parametrize("says", [[], [b'{"Progress":5}\n'], [b'{"Pins":["bafyother"]}\n'], [b'{"Pins":7}\n']])
async def test_a_pin_that_is_not_confirmed_has_not_happened(dag: Dag, says: list[bytes]) -> None:
    """An error in a trailer is invisible to us; that the answer does not name the root is not."""
    daemon = KuboDouble(dag)
    daemon.says["pin/add"] = says
    async with kubo_of(daemon) as kubo:
        with pytest.raises(ContentUnavailable, match="did not pin"):
            await kubo.pin(dag.root)


@pytest.mark.parametrize("says", [[b"<html>\n"], [b"[1]\n"], [b"[" * 60_000 + b"\n"], [b"\xff\xfe\n"], [b"7"]])
async def test_what_is_no_json_object_is_refused(says: list[bytes]) -> None:
    daemon = KuboDouble()
    daemon.says = dict.fromkeys(("version", "id", "pin/ls"), says)
    async with kubo_of(daemon) as kubo:
        for step in (kubo.version, kubo.identity, kubo.pins):
            with pytest.raises(ContentUnavailable, match=r"not JSON|no JSON object"):
                await step()


def hostile_app(handler: Callable[[web.Request], Any]) -> web.Application:
    app = web.Application()
    app.router.add_post("/{path:.*}", handler)
    return app


async def test_endless_answers_end(dag: Dag) -> None:
    async with serving(hostile_app(endless)) as url, open_kubo(url, timeout_s=2) as kubo:
        with pytest.raises(BlockInvalid, match="more than"):
            await kubo.block(dag.root)
        with pytest.raises(ContentUnavailable, match="more than anyone can read"):
            await kubo.pins()
        async with aclosing(kubo.read_range(dag.root, 0, 300_000)) as pieces:
            assert sum([len(piece) async for piece in pieces]) == 300_000


async def test_a_kubo_that_lies_is_no_reason_to_fail(dag: Dag) -> None:
    daemon = KuboDouble(dag)
    daemon.blocks[dag.root] = b"not this one"
    async with kubo_of(daemon) as kubo:
        honest = MemorySource("honest", blocks=dag.blocks, files={})
        assert await fetch_block(dag.root, [kubo, honest]) == dag.blocks[dag.root]


async def test_a_daemons_words_are_cut_and_cleaned() -> None:
    daemon = KuboDouble()
    daemon.says["pin/ls"] = [b'{"Type":"error","Message":"one\\ntwo \\u001b[31m' + b"x" * 1000 + b'"}']
    async with kubo_of(daemon) as kubo:
        with pytest.raises(ContentUnavailable) as refusal:
            await kubo.pins()
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 400


async def test_a_daemon_that_is_not_there() -> None:
    async with open_kubo("http://127.0.0.1:1") as kubo:
        with pytest.raises(ContentUnavailable, match="Check that the daemon runs"):
            await kubo.block(ABSENT)


# ---- addresses and secrets -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1", "http://127.0.0.1:5001/"),
        ("http://localhost:5001/", "http://localhost:5001/"),
        ("http://[::1]:5001", "http://[::1]:5001/"),
        ("http://192.168.1.5:80", "http://192.168.1.5/"),
        ("https://kubo.example/api/v0", "https://kubo.example/"),
        ("https://8.8.8.8:5001", "https://8.8.8.8:5001/"),
    ],
)
def test_where_an_rpc_may_live(text: str, url: str) -> None:
    assert str(parse_rpc(text).url) == url


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("http://8.8.8.8:5001", "in the open"),
        ("http://user:hunter2@kubo.example:5001", "in the open"),
        ("http://[::ffff:8.8.8.8]:5001", "in the open"),
        ("http://[2606:4700::1]:5001", "in the open"),
        ("http://0.0.0.0:5001", "in the open"),
        ("http://[::ffff:0.0.0.0]:5001", "in the open"),
        ("/ip4/127.0.0.1/tcp/5001", "not a URL"),
        ("127.0.0.1:5001", "not a URL"),
        ("ftp://127.0.0.1", "not a URL"),
        ("https://user:hunter2@", "not a URL"),
        ("https://user:hunter2@host:port", "not a URL"),
        ("", "not a URL"),
    ],
)
def test_where_an_rpc_may_not_live(text: str, why: str) -> None:
    with pytest.raises(NodeMisconfigured, match=why) as refusal:
        parse_rpc(text)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("prefix", "header"),
    [
        ("user:hunter2%40@", "Basic " + base64.b64encode(b"user:hunter2@").decode()),
        ("hunter2@", "Bearer hunter2"),
        ("", None),
    ],
)
async def test_a_key_goes_into_one_header_and_nowhere_else(prefix: str, header: str | None, dag: Dag) -> None:
    daemon = KuboDouble(dag)
    async with serving(daemon.app()) as url:
        text = url.replace("http://", f"http://{prefix}")
        async with open_kubo(text) as kubo:
            await kubo.block(dag.root)
            with pytest.raises(ContentUnavailable) as refusal:
                await kubo.block(ABSENT)
    assert daemon.authorization == {header}
    assert "hunter2" not in f"{kubo.name} {refusal.value} {parse_rpc(text)!r} {daemon.asked}"


async def test_a_daemon_that_refuses_our_key_says_what_to_do() -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=403, text="403 - Forbidden")

    async with serving(hostile_app(refuse)) as url, open_kubo(url) as kubo:
        with pytest.raises(ContentUnavailable, match=r"API\.Authorizations"):
            await kubo.version()


async def test_a_redirect_is_not_followed_with_our_key() -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        assert "elsewhere" not in request.path
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with serving(hostile_app(redirect)) as url, open_kubo(url) as kubo:
        with pytest.raises(ContentUnavailable, match="307"):
            await kubo.version()


# ---- the package ipfshttpclient ------------------------------------------------------------------


class Stream:
    def __init__(self, pieces: list[Any]) -> None:
        self._pieces = iter(pieces)
        self.closed = False

    def __iter__(self) -> Iterator[Any]:
        return self._pieces

    def __next__(self) -> Any:
        return next(self._pieces)

    def close(self) -> None:
        self.closed = True


class ErrorResponse(Exception):
    """As the package's: the daemon's own words."""


def library_of(dag: Dag, made: list[Any]) -> Any:
    """The package's shape over a dictionary; the package itself meets a real daemon in test_ipfs_interop.py."""

    def get(cid: str, *, stream: bool, opts: dict[str, str]) -> Stream:
        if cid not in dag.blocks:
            raise ErrorResponse("Failed to get block: request timed out")
        return Stream([dag.blocks[cid]])

    def cat(cid: str, *, stream: bool, opts: dict[str, str]) -> Stream:
        if cid != dag.root:
            raise ErrorResponse("Failed to cat file: request timed out")
        start, length = int(opts["offset"]), int(opts["length"])
        data = dag.content[start : start + length]
        stream_ = Stream([data[at : at + 65536] for at in range(0, len(data), 65536)])
        made.append(stream_)
        return stream_

    def client(address: str, **options: Any) -> Any:
        made.append((address, options))
        pins = SimpleNamespace(ls=lambda type: {"nothing": "expected"})
        return SimpleNamespace(block=SimpleNamespace(get=get), cat=cat, pin=pins)

    return SimpleNamespace(exceptions=SimpleNamespace(Error=ErrorResponse), Client=client)


async def test_the_package_is_a_source_behind_the_same_port(dag: Dag) -> None:
    made: list[Any] = []
    kubo = KuboClientSource(parse_rpc("https://hunter2@[::1]:5001"), library_of(dag, made), 2.0)
    await check_source(kubo, root=dag.root, content=dag.content, absent=ABSENT)
    address, options = made[0]
    assert address == "/ip6/::1/tcp/5001/https"
    assert options["headers"] == {"Authorization": "Bearer hunter2"}
    assert "hunter2" not in kubo.name
    assert all(stream.closed for stream in made[1:]), "a reader that leaves closes the response"


async def test_the_packages_surprises_become_our_errors(dag: Dag) -> None:
    kubo = KuboClientSource(parse_rpc("http://localhost"), library_of(dag, []), 2.0)
    with pytest.raises(ContentUnavailable, match="request timed out"):
        await kubo.block(ABSENT)
    with pytest.raises(ContentUnavailable, match="KeyError"):
        await kubo.pins()
    with pytest.raises(ContentUnavailable, match="AttributeError"):
        await kubo.version()
    with pytest.raises(ContentUnavailable, match="aiohttp"):
        await kubo.provide(dag.root)


@pytest.mark.skipif(
    importlib.util.find_spec("ipfshttpclient") is not None, reason="the extra [kubo] is installed: nothing is missing"
)
async def test_without_the_extra_the_error_says_how_to_get_it() -> None:
    with pytest.raises(NodeMisconfigured, match=r"pip install -e '\.\[kubo\]'"):
        async with open_kubo_client("http://127.0.0.1:5001"):
            pass
