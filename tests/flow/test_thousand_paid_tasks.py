"""Many paid tasks on a devnet chain, while nodes are killed at random: what the client spent is what the providers
earned and what is still open, in the stores and on the chain.

Whole nodes as processes, real libp2p, SQLite, the embedded chain with a block a second; only the engine is scripted.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from forks import until
from scripted_node import ANSWER, DEPOSIT, NodeTerms, ScriptedNode, start_node

from contracts.chain import open_chain
from contracts.channels import Channels
from contracts.devchain import Devchain, open_devchain
from contracts.faucet import FaucetTerms
from contracts.tokens import Token
from market.channel import Channel
from market.errors import OctoError
from market.money import OCTO, cost
from node.store import open_store

pytestmark = [pytest.mark.processes, pytest.mark.model]

AT_ONCE = 6
VICTIMS = ("client", "provider-1", "chain", "provider-2")
GRANTED = FaucetTerms().octo


class Town:
    """One client, two providers, one chain; each may be killed and comes back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, ScriptedNode] = {}
        self.devchain: Devchain
        self._chain_process = AsyncExitStack()
        self.done = 0
        self.price = 0
        self.deaths: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()

    async def open(self) -> None:
        await self._start_chain()
        for name in ("provider-1", "provider-2", "client"):
            terms = NodeTerms(
                name=name,
                folder=self.folder / name,
                chain=self.devchain.url,
                deployment=self.devchain.deployment_file,
                provides=name != "client",
                join=tuple(node.address for node in self.nodes.values()),
            )
            self.nodes[name] = await start_node(terms)

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.process.kill()
        await self._chain_process.aclose()

    async def _start_chain(self) -> None:
        self.devchain = await self._chain_process.enter_async_context(
            open_devchain(self.folder / "chain", network="octo-thousand")
        )

    async def kill(self, name: str) -> None:
        """SIGKILL, and a new start in the same folder, on the same port."""
        self.deaths[name] += 1
        if name == "chain":
            os.kill(self.devchain.pid, signal.SIGKILL)
            await self._chain_process.aclose()
            await self._start_chain()
            return
        node = self.nodes[name]
        await node.process.kill()
        terms = replace(node.terms, listen=node.address.partition("/p2p/")[0])
        self.nodes[name] = await start_node(terms)

    async def buy(self) -> bool:
        """One task over the client's API; whether it was answered."""
        body = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100}
        try:
            remote = self.nodes["client"].remote
            answer = await asyncio.to_thread(remote.post, "/v1/chat/completions", body, timeout_s=30)
        except OctoError as error:
            self.refusals[type(error).__name__] += 1
            await asyncio.sleep(0.1)
            return False
        usage = answer["usage"]
        assert usage["completion_tokens"] == len(ANSWER)  # its letters, as token ids of the default model
        self.price = cost(tokens=usage["prompt_tokens"], price_per_million=10 * OCTO)
        self.price += cost(tokens=usage["completion_tokens"], price_per_million=100 * OCTO)
        self.done += 1
        return True

    async def books(self, name: str) -> dict[bytes, Channel]:
        async with open_store(self.folder / name / "node.db") as store:
            return {channel.id: channel for channel in await store.channels()}


@asynccontextmanager
async def open_town(folder: Path) -> AsyncIterator[Town]:
    town = Town(folder)
    try:
        await town.open()
        yield town
    finally:
        await town.close()


async def trade(town: Town, *, tasks: int, kills: int, chance: random.Random) -> None:
    """So many answered tasks, some at once, with so many deaths spread over them."""
    deaths = sorted(chance.sample(range(1, tasks), kills))
    victims = chance.sample(VICTIMS, len(VICTIMS)) * kills

    async def customer() -> None:
        while town.done < tasks:
            await town.buy()

    async def reaper() -> None:
        for due, victim in zip(deaths, victims, strict=False):
            while town.done < due:
                await asyncio.sleep(0.01)
            await asyncio.sleep(chance.random() * 0.2)
            await town.kill(victim)

    await asyncio.gather(reaper(), *(customer() for _ in range(AT_ONCE)))


async def settle(town: Town) -> None:
    """Everything that is due becomes money: vouchers too that were still on their way when the last answer came."""
    async with open_chain(town.devchain.url) as chain:
        channels = Channels(chain, town.devchain.deployment)
        for name in ("provider-1", "provider-2"):

            async def settled(name=name) -> bool:
                with suppress(OctoError):
                    await asyncio.to_thread(town.nodes[name].remote.post, "/api/v1/settle", {}, timeout_s=60)
                    books = await town.books(name)
                    on_chain = await channels.channels(list(books))
                    return [held.paid for held in books.values()] == [channel.redeemed for channel in on_chain]
                return False

            await until(settled, every_s=0.2)


async def add_up(town: Town) -> None:
    alice = await town.books("client")
    bobs = {name: await town.books(name) for name in ("provider-1", "provider-2")}
    assert all(channel_id in alice for books in bobs.values() for channel_id in books)
    async with open_chain(town.devchain.url) as chain:
        octo, channels = Token(chain, town.devchain.deployment, "Octo"), Channels(chain, town.devchain.deployment)
        spent = earned = open_credit = locked = 0
        for channel_id, mine in alice.items():
            taken = sum(books[channel_id].paid for books in bobs.values() if channel_id in books)
            on_chain = await channels.channel(channel_id)
            assert on_chain.redeemed == taken, "on the chain, the provider has what its last voucher says"
            assert mine.paid >= taken, "the client's books cover every voucher that was taken"
            spent, earned, open_credit = spent + mine.paid, earned + taken, open_credit + mine.paid - taken
            locked += on_chain.deposit - on_chain.redeemed
        escrow = await octo.balance(channels.contract.address)
        wallets = {name: await octo.balance(wallet_of(town, name)) for name in town.nodes}
    # In the stores, and on the chain.
    assert spent == earned + open_credit
    assert sum(wallets[name] - GRANTED for name in bobs) == earned
    assert GRANTED - wallets["client"] == earned + escrow
    orphaned = escrow - locked  # opened in the moment of a death: it is asked back, and is nobody's until then
    assert 0 <= orphaned <= town.deaths["client"] * AT_ONCE * DEPOSIT
    # Nothing is paid twice: each answer once, and at most its whole price for one that a death cut short.
    cut_short = AT_ONCE * town.deaths.total()
    assert town.done * town.price <= spent <= (town.done + cut_short) * town.price
    assert open_credit <= cut_short * town.price


def wallet_of(town: Town, name: str) -> bytes:
    return bytes.fromhex(town.nodes[name].remote.get("/api/v1/status")["wallet"][2:])


async def run(folder: Path, *, tasks: int, kills: int, seed: int) -> None:
    async with open_town(folder) as town:
        await until(town.buy)
        await trade(town, tasks=tasks, kills=kills, chance=random.Random(seed))
        await settle(town)
        await add_up(town)
        assert town.deaths.total() == kills
        print(town.deaths, town.refusals)


async def test_sixty_paid_tasks_with_random_deaths_add_up(tmp_path):
    await run(tmp_path, tasks=60, kills=8, seed=1)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
async def test_a_thousand_paid_tasks_with_random_deaths_add_up(tmp_path):
    await run(tmp_path, tasks=1_000, kills=40, seed=2)
