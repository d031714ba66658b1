"""The owner's side of a chain, over the API and the command line: two real nodes on one real chain."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from contracts.devchain import Devchain, open_devchain
from contracts.rpc import open_rpc
from contracts.tokens import Token
from market.errors import RequestInvalid
from market.money import OCTO, format_octo
from market.testing import ScriptedEngine
from node.cashier import Cashier
from node.cli.channels import _only
from node.faults import NotNow
from node.listening import open_site
from node.settings import Api, ChainSettings, Content, EngineSettings, Mesh, Settings
from node.wiring import open_node

ROOT = Path(__file__).resolve().parents[2]
Q4_0 = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
CHALLENGE_S = 3600
WEEK_S = 7 * 24 * 3600

pytestmark = pytest.mark.model


@dataclass
class Owner:
    """A node and whoever has its data folder."""

    node: Any
    folder: Path

    async def ask(self, path: str, body: dict[str, Any] | None = None, status: int = 200) -> Any:
        token = (self.folder / "token").read_text()
        async with aiohttp.ClientSession(self.node.url, headers={"Authorization": f"Bearer {token}"}) as session:
            method = "GET" if body is None else "POST"
            async with session.request(method, path, json=body) as response:
                assert response.status == status, await response.text()
                return await response.json()

    async def refused(self, path: str, body: dict[str, Any], status: int) -> dict[str, Any]:
        return (await self.ask(path, body, status))["error"]

    async def run(self, *arguments: str, code: int = 0) -> str:
        return await run(*arguments, "--data-dir", str(self.folder), code=code)

    async def says(self, *arguments: str) -> Any:
        return json.loads(await self.run(*arguments, "--json"))

    async def channel(self, channel_id: str) -> dict[str, Any]:
        found = (await self.ask("/api/v1/channels"))["channels"]
        return next(channel for channel in found if channel["id"] == channel_id)


@dataclass
class Market:
    chain: Devchain
    seller: Owner
    buyer: Owner

    async def pass_time(self, seconds: int) -> None:
        async with open_rpc(self.chain.url) as rpc:
            await rpc.call("evm_increaseTime", seconds)
            await rpc.call("evm_mine")

    async def trade(self) -> tuple[str, int]:
        """Buy one answer; (the channel that paid, how much), once the seller holds its last voucher."""
        node = self.buyer.node
        body = {"model": "default", "messages": [{"role": "user", "content": "Hi"}]}
        headers = {"Authorization": f"Bearer {node.first_api_key}"}
        before = {c["id"]: c["paid"] for c in await node.channels()}
        async with (
            aiohttp.ClientSession(node.url, headers=headers) as session,
            session.post("/v1/chat/completions", json=body) as response,
        ):
            answer = await response.json()
            assert response.status == 200, answer
        amount = answer["octo"]["amount"]
        after = {c["id"]: c["paid"] for c in await node.channels()}
        (channel,) = [c for c, paid in after.items() if paid != before.get(c, 0)]
        async with asyncio.timeout(60):
            while {c["id"]: c["paid"] for c in await self.seller.node.channels()}.get(channel) != after[channel]:
                await asyncio.sleep(0.05)
        return channel, amount


async def run(*arguments: str, code: int = 0) -> str:
    """stdout of `octo-node`, which must end with this code; both streams if it should fail."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "node.cli", *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = (stream.decode() for stream in await process.communicate())
    assert process.returncode == code, out + err
    return out if code == 0 else out + err


def settings(folder: Path, chain: ChainSettings, **more: Any) -> Settings:
    return Settings(
        data_dir=folder, network="test", api=Api(port=0), mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",)),
        content=Content(host="127.0.0.1"), engine=EngineSettings(workers=1, slots=2, context=512), chain=chain, **more,
    )  # fmt: skip


@asynccontextmanager
async def owner_of(folder: Path, chain: ChainSettings, **more: Any) -> AsyncIterator[Owner]:
    engine = ScriptedEngine("Hello from the chain.") if more.get("provide", True) else None
    async with open_node(settings(folder, chain, **more), engine=engine, prepared=[Q4_0]) as node:
        yield Owner(node, folder)


@pytest.fixture(scope="module")
async def market(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Market]:
    folder = tmp_path_factory.mktemp("market")
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(
            open_devchain(folder / "chain", network="test", challenge_s=CHALLENGE_S, controls=True)
        )
        on_chain = ChainSettings(url=SecretStr(chain.url), deployment=chain.deployment_file, faucet=True)
        seller = await stack.enter_async_context(owner_of(folder / "seller", on_chain))
        join = tuple(seller.node.addresses())
        buyer = await stack.enter_async_context(owner_of(folder / "buyer", on_chain, provide=False, join=join))
        async with asyncio.timeout(60):
            while not buyer.node.catalog.on_offer() or any(map(buyer.node.chain.stakes.vet, buyer.node.offers())):
                await asyncio.sleep(0.05)
        yield Market(chain, seller, buyer)


async def octo_of(owner: Owner) -> int:
    parts = owner.node.chain.parts
    return await Token(parts.chain, parts.deployment, "Octo").balance(owner.node.binding.wallet)


# ---- settlement ------------------------------------------------------------------------------------


async def test_settling_pays_what_is_due_and_names_each_transaction(market: Market) -> None:
    channel, amount = await market.trade()
    before = await octo_of(market.seller)
    said = await market.seller.ask("/api/v1/settle", {})
    (one,) = said["transactions"]
    assert (one["channels"], one["amount"], said["amount"], said["left"]) == ([channel], amount, amount, 0)
    assert one["hash"].startswith("0x")
    assert one["gas"] > 21_000
    assert await octo_of(market.seller) - before == amount
    assert (await market.seller.ask("/api/v1/settle", {}))["transactions"] == []
    assert (await market.buyer.channel(channel))["on_chain"]["redeemed"] == amount


async def test_the_command_line_settles_and_says_what_it_cost(market: Market) -> None:
    channel, amount = await market.trade()
    said = await market.seller.run("settle")
    assert f"{format_octo(amount)} redeemed." in said
    assert (await market.seller.says("settle"))["transactions"] == []
    assert (await market.seller.channel(channel))["on_chain"]["redeemed"] >= amount


# ---- channels --------------------------------------------------------------------------------------


async def test_a_payer_asks_for_the_close_waits_and_gets_the_rest_back(market: Market) -> None:
    channel, _ = await market.trade()
    before = await octo_of(market.buyer)
    listed = await market.buyer.run("channels")
    assert channel[:12] in listed
    assert "open" in listed
    asked = (await market.buyer.says("channels", "close", channel[:12]))["channel"]
    assert (asked["id"], asked["state"], asked["on_chain"]["state"]) == (channel, "closing", "closing")
    early = await market.buyer.refused(f"/api/v1/channels/{channel}/close", {}, 409)
    assert early["code"] == "not_now"
    assert "UTC" in early["message"]

    other, _ = await market.trade()
    assert other != channel  # nothing more is paid from one that closes

    await market.seller.ask("/api/v1/settle", {})
    spent = (await market.buyer.channel(channel))["on_chain"]["redeemed"]
    await market.pass_time(CHALLENGE_S + 1)
    closed = (await market.buyer.ask(f"/api/v1/channels/{channel}/close", {}))["channel"]["on_chain"]
    assert (closed["state"], closed["redeemed"]) == ("closed", spent)
    deposits = {c["id"]: c["deposit"] for c in await market.buyer.node.channels()}
    assert await octo_of(market.buyer) == before - deposits[other] + deposits[channel] - spent
    again = await market.buyer.refused(f"/api/v1/channels/{channel}/close", {}, 409)
    assert "closed" in again["message"]


async def test_a_payee_redeems_its_last_voucher_and_closes_at_once(market: Market) -> None:
    channel, amount = await market.trade()
    before = await octo_of(market.seller)
    done = await market.seller.ask(f"/api/v1/channels/{channel}/close", {})
    assert done["amount"] == amount
    assert done["transactions"][0]["channels"] == [channel]
    assert (done["channel"]["state"], done["channel"]["on_chain"]["state"]) == ("closed", "closed")
    assert await octo_of(market.seller) - before == amount
    assert (await market.buyer.channel(channel))["on_chain"]["state"] == "closed"


async def test_a_channel_that_is_not_there_is_said_so(market: Market) -> None:
    assert (await market.buyer.refused(f"/api/v1/channels/{'ab' * 32}/close", {}, 404))["code"] == "channel_not_found"
    for bad in ("ab", "x" * 64, "ab" * 40):
        assert (await market.buyer.refused(f"/api/v1/channels/{bad}/close", {}, 400))["param"] == "id"


def test_a_channel_may_be_named_by_its_beginning_if_that_names_one() -> None:
    found = [{"id": "ab12"}, {"id": "ab34"}]
    assert _only("AB1", found) == "ab12"
    for beginning, words in (("ab", "2 channels begin"), ("zz", "0 channels begin"), ("", "no channels begin")):
        with pytest.raises(RequestInvalid, match=words):
            _only(beginning, found)


# ---- stake -----------------------------------------------------------------------------------------


async def test_a_provider_stakes_at_start_and_can_add_and_take_back(market: Market) -> None:
    stake = await market.seller.ask("/api/v1/stake")
    assert (stake["tier"], stake["bonded"], stake["active"]) == ("consumer", 1_000 * OCTO, True)
    more = await market.seller.says("stake", "add", "500")
    assert (more["bonded"], len(more["transactions"])) == (1_500 * OCTO, 1)

    too_much = await market.seller.refused("/api/v1/stake", {"action": "unstake", "amount": 501 * OCTO}, 400)
    assert "up to 500 OCTO-A, or all" in too_much["message"]
    assert "nothing unbonds" in (await market.seller.refused("/api/v1/stake", {"action": "withdraw"}, 409))["message"]
    some = await market.seller.ask("/api/v1/stake", {"action": "unstake", "amount": 500 * OCTO})
    assert (some["bonded"], some["unbonding"], some["active"]) == (1_000 * OCTO, 500 * OCTO, True)
    early = await market.seller.refused("/api/v1/stake", {"action": "withdraw"}, 409)
    assert "unbond until" in early["message"]

    none = await market.seller.ask("/api/v1/stake", {"action": "unstake"})
    assert (none["bonded"], none["unbonding"], none["active"]) == (0, 1_500 * OCTO, False)
    assert "not active" in await market.seller.run("stake")
    nothing = await market.seller.refused("/api/v1/stake", {"action": "unstake"}, 409)
    assert nothing["code"] == "not_now"
    await market.pass_time(WEEK_S + 1)
    back = await market.seller.says("stake", "withdraw")
    assert (back["unbonding"], back["octo_a"] - stake["octo_a"]) == (0, 1_000 * OCTO)

    too_little = await market.seller.refused("/api/v1/stake", {"action": "add", "amount": OCTO}, 400)
    assert "at least 1000 OCTO-A" in too_little["message"]
    again = await market.seller.ask("/api/v1/stake", {"action": "add"})
    assert (again["bonded"], again["active"]) == (1_000 * OCTO, True)


async def test_a_stake_that_needs_nothing_costs_nothing(market: Market) -> None:
    for action in ("add", "bind"):
        assert (await market.seller.ask("/api/v1/stake", {"action": action}))["transactions"] == []


async def test_a_tier_that_the_wallet_cannot_pay_is_refused_before_anything_is_sent(market: Market) -> None:
    error = await market.seller.refused("/api/v1/stake", {"action": "add", "amount": 10**6 * OCTO}, 402)
    assert error["code"] == "insufficient_funds"


async def test_a_higher_tier_can_be_taken_and_left(market: Market) -> None:
    up = await market.seller.ask("/api/v1/stake", {"action": "add", "tier": "prosumer"})
    assert (up["tier"], up["bonded"], up["active"]) == ("prosumer", 5_000 * OCTO, True)
    assert (await market.seller.ask("/api/v1/stake", {"action": "add"}))["tier"] == "prosumer"
    down = await market.seller.ask("/api/v1/stake", {"action": "add", "tier": "consumer"})
    assert (down["tier"], down["bonded"], len(down["transactions"])) == ("consumer", 5_000 * OCTO, 1)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "action"),
        ({"action": "burn"}, "action"),
        ({"action": "add", "amount": 0}, "amount"),
        ({"action": "add", "amount": -1}, "amount"),
        ({"action": "add", "amount": 2**256}, "amount"),
        ({"action": "add", "amount": 1.5}, "amount"),
        ({"action": "add", "amount": "1"}, "amount"),
        ({"action": "withdraw", "amount": 1}, "amount"),
        ({"action": "unstake", "tier": "consumer"}, "tier"),
        ({"action": "add", "tier": "none"}, "tier"),
        ({"action": "add", "amuont": 1}, "amuont"),
    ],
)
async def test_what_makes_no_sense_is_named(market: Market, body: dict[str, Any], param: str) -> None:
    assert (await market.seller.refused("/api/v1/stake", body, 400))["param"] == param


# ---- the wallet ------------------------------------------------------------------------------------


async def test_the_wallet_shows_what_it_has_on_the_chain(market: Market) -> None:
    said = await market.seller.ask("/api/v1/wallet")
    chain = said["chain"]
    assert (chain["chain_id"], chain["octo"]) == (market.chain.chain_id, said["balances"]["available"])
    assert chain["stake"]["active"]
    assert chain["gas_wei"] > 0
    assert set(chain["contracts"]) == {"Octo", "OctoA", "StakeRegistry", "PaymentChannels"}
    shown = await market.seller.run("wallet")
    assert "OCTO-A" in shown
    assert "of the chain's coin" in shown


async def test_the_status_shows_chain_contracts_and_stake(market: Market) -> None:
    shown = await market.seller.run("status")
    assert f"on chain {market.chain.chain_id} at 127.0.0.1:" in shown
    assert market.chain.deployment.contracts["PaymentChannels"].address in shown
    assert "for the consumer tier" in shown
    assert "stake" not in await market.buyer.run("status")


async def test_the_faucet_gives_until_it_has_given_enough(market: Market) -> None:
    before = await market.buyer.ask("/api/v1/wallet")
    after = await market.buyer.says("wallet", "faucet")
    assert after["octo_a"] - before["chain"]["octo_a"] == 10_000 * OCTO
    assert after["octo"] - before["chain"]["octo"] == 1_000 * OCTO
    await market.buyer.ask("/api/v1/wallet/faucet", {})
    assert "the faucet has given" in (await market.buyer.refused("/api/v1/wallet/faucet", {}, 502))["message"]


async def test_a_chain_without_faucet_is_said_so_with_the_address_to_send_to(market: Market) -> None:
    async def no_such_method(request: web.Request) -> web.Response:
        number = (await request.json())["id"]
        return web.json_response(
            {"jsonrpc": "2.0", "id": number, "error": {"code": -32601, "message": "the method does not exist"}}
        )

    app = web.Application()
    app.router.add_post("/", no_such_method)
    node = market.buyer.node
    async with open_site(app, host="127.0.0.1", ports=(0,), setting="api") as url:
        cashier = Cashier(
            node.chain.parts, node.receipts, wallet=node.binding.wallet, url=url, closing=node.chain.closing,
            is_busy=node.chain.closing.is_busy,
        )  # fmt: skip
        with pytest.raises(NotNow, match="no faucet") as caught:
            await cashier.draw()
    assert f"0x{node.binding.wallet.hex()}" in caught.value.next_step.lower()


# ---- a chain that is away --------------------------------------------------------------------------


async def test_while_the_chain_is_away_wallet_and_status_are_shown_without_it(market: Market, tmp_path: Path) -> None:
    nowhere = ChainSettings(url=SecretStr("http://127.0.0.1:9"), deployment=market.chain.deployment_file)
    async with owner_of(tmp_path / "alone", nowhere, provide=False) as alone:
        chain = (await alone.ask("/api/v1/wallet"))["chain"]
        assert (chain["state"], chain["octo_a"], chain["stake"]) == ("away", None, None)
        assert (await alone.ask("/api/v1/stake", status=503))["error"]["code"] == "chain_away"
        assert "the chain does not answer" in await alone.run("status")
        assert "does not answer" in await alone.run("wallet")
        assert (await alone.ask("/api/v1/channels"))["channels"] == []
