"""Nodes that settle on a chain: stake, channels, vouchers and balances that the chain agrees with."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr

from contracts.channels import OnChain
from contracts.devchain import open_devchain
from market.errors import InsufficientFunds, NodeMisconfigured
from market.testing import ScriptedEngine
from node.chain import Closing
from node.faults import NotNow
from node.settings import Api, ChainSettings, Content, EngineSettings, Mesh, Settings
from node.wiring import open_node

Q4_0 = Path(__file__).resolve().parents[2] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"

pytestmark = pytest.mark.model


@pytest.fixture
async def chain(tmp_path):
    async with open_devchain(tmp_path / "chain", network="test", controls=True) as running:
        yield running


@asynccontextmanager
async def node_on(chain, folder: Path, *, join=(), provide=True, text="Hello from the chain.", delay_s=0.0, **of_chain):
    settings = Settings(
        data_dir=folder,
        network="test",
        join=join,
        provide=provide,
        api=Api(port=0),
        mesh=Mesh(listen=(LOOPBACK,)),
        content=Content(host="127.0.0.1"),
        engine=EngineSettings(workers=1, slots=2, context=512),
        chain=ChainSettings(
            **{"url": SecretStr(chain.url), "deployment": chain.deployment_file, "faucet": True, **of_chain}
        ),
    )
    # Token ids of the default model stand for printable text up to 127, which is all that this engine says.
    engine = ScriptedEngine(text, delay_s=delay_s) if provide else None
    async with open_node(settings, engine=engine, prepared=[Q4_0]) as node:
        yield node


async def chat(node, **more) -> dict:
    body = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], **more}
    headers = {"Authorization": f"Bearer {node.first_api_key}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{node.url}/v1/chat/completions", json=body, headers=headers) as response,
    ):
        return {"status": response.status, **await response.json()}


async def until(condition, timeout_s: float = 60.0):
    async with asyncio.timeout(timeout_s):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.05)


async def offered(buyer) -> None:
    await until(buyer.catalog.on_offer)
    await until(lambda: all("looked up" not in (buyer.chain.stakes.vet(o) or "") for o in buyer.network.offers()))


async def test_what_a_task_costs_moves_from_one_wallet_to_the_other_on_chain(chain, tmp_path):
    async with node_on(chain, tmp_path / "seller") as seller:
        staked = await seller.chain.stake_facts()
        assert staked["tier"] == "consumer"
        assert staked["bonded"] == 1000 * 10**18
        async with node_on(chain, tmp_path / "buyer", provide=False, join=tuple(seller.addresses())) as buyer:
            await offered(buyer)
            before = (await seller.balances()).available
            answers = [await chat(buyer) for _ in range(3)]
            amounts = [answer["octo"]["amount"] for answer in answers]
            assert all(answer["status"] == 200 for answer in answers)
            await until(lambda: _earned(seller, sum(amounts)))
            settled = await seller.chain.parts.collector.settle(everything=True)
            assert sum(one.amount for one in settled) == sum(amounts)
            assert (await seller.balances()).available - before == sum(amounts)
            assert (await buyer.balances()).spent == sum(amounts)
            assert len(await buyer.channels()) == 1


async def _earned(seller, amount: int) -> bool:
    return (await seller.balances()).earned == amount


async def test_a_provider_without_stake_gets_no_shared_task_and_the_client_says_why(chain, tmp_path):
    async with (
        node_on(chain, tmp_path / "seller", stake=False) as seller,
        node_on(chain, tmp_path / "buyer", provide=False, join=tuple(seller.addresses())) as buyer,
    ):
        await offered(buyer)
        refused = await chat(buyer)
        assert refused["status"] == 503
        assert refused["error"]["octo"]["reasons"] == {seller.peer: "has no stake for the consumer tier"}
        assert (await chat(buyer, octo={"privacy": "public"}))["status"] == 200


async def test_a_provider_does_not_close_a_channel_under_a_running_task(chain, tmp_path):
    async with (
        node_on(chain, tmp_path / "seller", text="x" * 400, delay_s=0.01) as seller,
        node_on(chain, tmp_path / "buyer", provide=False, join=tuple(seller.addresses())) as buyer,
    ):
        await offered(buyer)
        answering = asyncio.create_task(chat(buyer))
        (channel,) = await until(seller.channels)
        with pytest.raises(NotNow, match="running"):
            await seller.chain.cashier.close(bytes.fromhex(channel["id"]))
        answer = await answering
        assert answer["status"] == 200
        await until(lambda: _earned(seller, answer["octo"]["amount"]))
        await until(lambda: not seller.chain.closing.is_busy(bytes.fromhex(channel["id"])))
        await seller.chain.cashier.close(bytes.fromhex(channel["id"]))
        assert (await seller.balances()).earned == answer["octo"]["amount"]


async def test_without_octo_a_a_provider_is_told_what_its_tier_takes(chain, tmp_path):
    with pytest.raises(InsufficientFunds, match="consumer tier takes a stake of 1000 OCTO-A"):
        async with node_on(chain, tmp_path / "seller", faucet=False):
            pass


async def test_a_chain_without_a_deployments_file_is_no_setting(chain, tmp_path):
    with pytest.raises(NodeMisconfigured, match=r"chain\.deployment"):
        async with node_on(chain, tmp_path / "seller", deployment=None):
            pass


class Side:
    def __init__(self) -> None:
        self.heard: list[tuple[bytes, bool]] = []

    async def closing(self, channel_id: bytes, *, closed: bool) -> None:
        self.heard.append((channel_id, closed))


async def test_a_channel_that_closes_before_purse_and_till_are_there_is_told_to_them_later():
    closing, purse, till = Closing(), Side(), Side()
    await closing(b"one", OnChain(deposit=5, redeemed=0, closes_at=9))
    await closing.attach(purse, till)
    await closing(b"two", OnChain(deposit=5, redeemed=5, closes_at=2**64 - 1))
    assert purse.heard == till.heard == [(b"one", False), (b"two", True)]
