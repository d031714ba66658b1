"""The RPC client and an endpoint that is broken, hostile, slow or away. No secret of its URL is ever shown."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from contracts import rpc as module
from contracts.abis import abi_of
from contracts.chain import open_chain
from contracts.contract import explained
from contracts.faults import ChainAway, ChainError, ChainRefused, Reverted
from contracts.rpc import open_rpc

SECRET = "k3y-0f-mine"  # what an endpoint's path often is


@asynccontextmanager
async def endpoint(answer):
    async def handle(request: web.Request) -> web.StreamResponse:
        return await answer(request)

    app = web.Application()
    app.router.add_post("/{key}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://user:{SECRET}@127.0.0.1:{runner.addresses[0][1]}/{SECRET}"
    finally:
        await runner.cleanup()


def says(text: str | bytes, status: int = 200):
    async def answer(_: web.Request) -> web.Response:
        body = text.encode() if isinstance(text, str) else text
        return web.Response(body=body, status=status, content_type="application/json")

    return answer


def result(value: object):
    async def answer(request: web.Request) -> web.Response:
        asked = await request.json()
        if isinstance(asked, list):
            return web.json_response([{"id": one["id"], "result": value} for one in asked])
        return web.json_response({"id": asked["id"], "result": value})

    return answer


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ("<html>", 200, ChainError), ("", 200, ChainError), ("[]", 200, ChainError), ("7", 200, ChainError),
        ("[" * 100_000, 200, ChainError), ("<html>bad gateway", 502, ChainAway), ("", 429, ChainAway),
        (b"\xff\xfe", 200, ChainError), ("", 302, ChainAway),
    ],
)  # fmt: skip
async def test_what_is_no_answer_is_an_error_without_the_urls_secret(text, status, error):
    async with endpoint(says(text, status)) as url, open_rpc(url) as rpc:
        with pytest.raises(error) as raised:
            await rpc.call("eth_chainId")
        assert SECRET not in str(raised.value)
        assert "127.0.0.1" in str(raised.value)


async def test_an_answer_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(module, "ANSWER_LIMIT_BYTES", 1 << 20)
    async with endpoint(says(b'"' + b"x" * (2 << 20) + b'"')) as url, open_rpc(url) as rpc:
        with pytest.raises(ChainError, match="more than 1 MiB"):
            await rpc.call("eth_chainId")


async def test_an_endpoint_that_says_nothing_is_given_up():
    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    async with endpoint(silent) as url, open_rpc(url, timeout_s=0.2) as rpc:
        with pytest.raises(ChainAway, match="no answer in time"):
            await rpc.call("eth_chainId")


async def test_no_redirect_is_followed():
    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/")

    async with endpoint(elsewhere) as url, open_rpc(url) as rpc:
        with pytest.raises(ChainAway, match="HTTP 307"):
            await rpc.call("eth_chainId")


async def test_answers_to_a_batch_may_come_in_any_order_but_all_must_come():
    async def reversed_order(request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response([{"id": one["id"], "result": one["params"][0]} for one in reversed(asked)])

    async def one_missing(request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response([{"id": one["id"], "result": 1} for one in asked[1:]])

    async with endpoint(reversed_order) as url, open_rpc(url) as rpc:
        assert await rpc.batch([("x", [n]) for n in range(5)]) == [0, 1, 2, 3, 4]
        assert await rpc.batch([]) == []
    async with endpoint(one_missing) as url, open_rpc(url) as rpc:
        with pytest.raises(ChainError):
            await rpc.batch([("x", [n]) for n in range(5)])


@pytest.mark.parametrize(
    "error",
    [
        {"code": 3, "message": "execution reverted", "data": "0x" + "aa" * 4},
        {"code": -32015, "message": "VM execution error.", "data": "Reverted 0x" + "aa" * 4},
        {"code": -32000, "message": "execution reverted", "data": {"data": "0x" + "aa" * 4}},
    ],
)
async def test_every_nodes_way_to_say_reverted_is_one_error(error):
    async with endpoint(says(json.dumps({"id": 1, "error": error}))) as url, open_rpc(url) as rpc:
        with pytest.raises(ChainRefused) as refused:
            await rpc.call("eth_call")
    assert refused.value.data == b"\xaa" * 4
    assert isinstance(explained(refused.value, what="it", abi=abi_of("Octo")), Reverted)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("nonce too low: next nonce 5, tx nonce 4", "nonce_used"), ("nonce too low", "nonce_used"),
        ("Transaction nonce is too low. old nonce", "nonce_used"), ("OldNonce", ""), ("already known", "known"),
        ("transaction already imported", "known"), ("replacement transaction underpriced", "underpriced"),
        ("max fee per gas less than block base fee: address", "underpriced"),
        ("transaction underpriced", "underpriced"),
        ("insufficient funds for gas * price + value", "gas_purse_empty"),
        ("Insufficient funds for gas * price + value", "gas_purse_empty"), ("out of gas", ""),
    ],
)  # fmt: skip
def test_refusals_are_told_apart_by_their_words(said, kind):
    refused = ChainRefused(said)
    kinds = [name for name in ("nonce_used", "known", "underpriced", "gas_purse_empty") if getattr(refused, name)]
    assert kinds[:1] == ([kind] if kind else [])


@pytest.mark.parametrize("value", [None, 7, "x", "0xzz", [], {}, {"number": "0x1"}, {"number": 1, "hash": 2}])
async def test_a_block_that_is_none_is_refused(value):
    async with endpoint(result(value)) as url, open_chain(url, chain_id=1) as chain:
        with pytest.raises(ChainError):
            await chain.head()
        assert (await chain.look()).state in ("away", "wrong")
