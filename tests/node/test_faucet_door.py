"""The faucet before a chain that has none: what it answers itself, what it hands on, and to whom."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from contracts.chain import open_chain
from contracts.faucet import ask_faucet
from contracts.faults import ChainAway, ChainError, ChainRefused
from node.faucet_door import open_faucet_door
from node.listening import open_site

WALLET = bytes(range(20))


class Till:
    """Stands for the faucet: gives each address one draw."""

    def __init__(self) -> None:
        self.given: list[str] = []

    async def answer(self, address: str) -> dict[str, str]:
        if address in self.given:
            raise ChainError("the faucet has given all that it gives one address.")
        self.given.append(address)
        return {"gas": "1"}


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": "0x7a69", "method": asked["method"]})

    app = web.Application()
    app.router.add_post("/", answer)
    async with open_site(app, host="127.0.0.1", ports=(0,), setting="chain") as url:
        yield url


@pytest.fixture
def till() -> Till:
    return Till()


@pytest.fixture
async def door(upstream: str, till: Till) -> AsyncIterator[str]:
    async with open_faucet_door(upstream, till) as url:
        yield url


async def test_a_draw_is_answered_at_the_door(door: str, till: Till) -> None:
    await ask_faucet(door, WALLET)
    assert [address.lower() for address in till.given] == ["0x" + WALLET.hex()]


async def test_the_faucets_no_arrives_with_its_reason(door: str) -> None:
    await ask_faucet(door, WALLET)
    with pytest.raises(ChainRefused, match="one address"):
        await ask_faucet(door, WALLET)


@pytest.mark.parametrize("params", [[], {}, None, "0x"])
async def test_a_draw_for_nobody_is_refused(door: str, till: Till, params: object) -> None:
    till.given.append(None)  # type: ignore[arg-type] - what the door makes of params that name nobody
    async with aiohttp.ClientSession() as session:
        body = {"id": 1, "method": "octo_faucet", "params": params}
        async with session.post(door, json=body) as response:
            assert "error" in await response.json()


async def test_everything_else_is_handed_on(door: str) -> None:
    async with aiohttp.ClientSession() as session, session.post(door, json={"id": 7, "method": "eth_x"}) as response:
        assert await response.json() == {"jsonrpc": "2.0", "id": 7, "result": "0x7a69", "method": "eth_x"}


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
async def test_a_web_page_gets_no_answer(door: str, till: Till, headers: dict[str, str]) -> None:
    async with aiohttp.ClientSession() as session:
        body = {"id": 1, "method": "octo_faucet", "params": ["0x" + WALLET.hex()]}
        async with session.post(door, json=body, headers=headers) as response:
            assert response.status == 403
        async with session.post(door, data=b"{}", headers={"Content-Type": "text/plain"}) as response:
            assert response.status == 403  # what a page can send without asking first
    assert till.given == []


async def test_a_body_that_nests_without_end_goes_to_the_chain_unread(door: str) -> None:
    async with aiohttp.ClientSession() as session:
        headers = {"Content-Type": "application/json"}
        async with session.post(door, data=b"[" * 100_000, headers=headers) as response:
            assert response.status == 500  # the upstream's own


async def test_a_chain_that_is_gone_is_away(till: Till) -> None:
    async with open_faucet_door("http://127.0.0.1:9", till) as url:
        with pytest.raises(ChainAway):
            async with open_chain(url):
                pass
