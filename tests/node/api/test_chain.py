"""Moving the owner's money over the API: who may, and what a node on the local ledger says to it."""

from typing import Any

import aiohttp
import pytest

from node.api.server import create_api

MOVING = ["/api/v1/stake", f"/api/v1/channels/{'ab' * 32}/close", "/api/v1/settle", "/api/v1/wallet/faucet"]


@pytest.fixture
async def owner(api: str, known: Any) -> Any:
    """A client with the data folder's token."""
    async with aiohttp.ClientSession(api, headers={"Authorization": f"Bearer {known.token}"}) as session:
        yield session


@pytest.mark.parametrize("path", MOVING)
async def test_an_api_key_moves_no_money(http: Any, path: str) -> None:
    async with http.post(path, json={"action": "withdraw"}) as response:
        assert response.status == 403
        error = (await response.json())["error"]
        assert (error["code"], error["octo"]["next_step"] != "") == ("cli_token_required", True)


@pytest.mark.parametrize("path", MOVING)
async def test_without_any_key_it_stays_a_401(api: str, path: str) -> None:
    async with aiohttp.ClientSession(api) as session, session.post(path, json={}) as response:
        assert response.status == 401


async def test_every_route_that_changes_something_and_does_not_buy_belongs_to_the_owner(http: Any, node: Any) -> None:
    changing = {
        (route.method, route.resource.canonical)
        for route in create_api(node).router.routes()
        if route.resource is not None and route.method not in ("GET", "HEAD")
    }
    buys = "/api/v1/inference"  # and OpenAI's, which lie elsewhere
    others = {(method, path) for method, path in changing if path.startswith("/api/") and not path.startswith(buys)}
    assert len(others) >= len(MOVING) + 9
    for method, path in others:
        named = path.replace("{id}", "ab" * 32).replace("{kind}", "trust").replace("{model}", "default")
        async with http.request(method, named) as response:
            assert response.status == 403, path


@pytest.mark.parametrize("path", MOVING)
async def test_a_node_on_the_local_ledger_says_that_it_has_no_chain(owner: Any, path: str) -> None:
    async with owner.post(path, json={"action": "withdraw"}) as response:
        assert response.status == 409
        error = (await response.json())["error"]
    assert error["code"] == "no_chain"
    assert "--chain-url" in error["octo"]["next_step"]


async def test_looking_takes_an_api_key_only(http: Any) -> None:
    async with http.get("/api/v1/stake") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (409, "no_chain")
    async with http.get("/api/v1/channels") as response:
        (channel,) = (await response.json())["channels"]
        assert (channel["id"], channel["on_chain"]) == ("00", None)
    async with http.get("/api/v1/wallet") as response:
        assert (await response.json())["chain"] is None
