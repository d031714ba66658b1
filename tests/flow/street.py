"""A street: a chain, one shop, and customers that come and go, each trader a process of its own (`trader.py`)."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from forks import Forked
from trader import NETWORK, Keys, Terms, start_trader

from contracts.chain import Chain, open_chain
from contracts.channels import Channels
from contracts.devchain import Devchain, open_devchain
from contracts.faucet import ask_faucet
from contracts.rpc import Rpc, open_rpc
from contracts.tokens import Token
from market.channel import Channel
from market.money import OCTO
from node.store import open_store

CHALLENGE_S = 3600


class Street:
    """A chain and one shop, whose keeper may die; customers come and go. `lives` numbers them; `chain_lag_s`: how late
    the chain's first answers come to who starts from now on."""

    def __init__(self, folder: Path, devchain: Devchain, chain: Chain, rpc: Rpc) -> None:
        self.folder = folder
        self.devchain = devchain
        self.rpc = rpc
        self.octo = Token(chain, devchain.deployment, "Octo")
        self.channels = Channels(chain, devchain.deployment)
        self.lives = itertools.count(1)
        self.chain_lag_s = 0.0
        self._payee: Forked | None = None
        self._address = ""
        self._later = AsyncExitStack()

    @property
    def payee(self) -> Forked:
        assert self._payee is not None
        return self._payee

    async def open_shop(self, *, funded: bool = True, away_limit: int = OCTO) -> None:
        if funded:
            await ask_faucet(self.devchain.url, Keys("bob").wallet.address)
        self._payee = await self._start("bob", away_limit=away_limit)
        self._address = await self._payee.call("address")

    async def reopen_shop(self) -> None:
        """After the keeper's death: the same folder, the same address."""
        self._payee = await self._start("bob", listen=self._address.partition("/p2p/")[0])

    async def customer(self, name: str, *, funded: bool = True) -> Forked:
        if funded:
            await ask_faucet(self.devchain.url, Keys(name).wallet.address)
        return await self._start(name, provider="bob", join=(self._address,))

    async def _start(self, name: str, **terms) -> Forked:
        return await start_trader(
            Terms(
                name=name,
                folder=self.folder / name,
                chain=self.devchain.url,
                deployment=self.devchain.deployment_file,
                chain_lag_s=self.chain_lag_s,
                **terms,
            )
        )

    @asynccontextmanager
    async def chain_away(self) -> AsyncIterator[None]:
        """Its process is killed, and started again at the end of the block."""
        os.kill(self.devchain.pid, signal.SIGKILL)
        yield
        self.devchain = await self._later.enter_async_context(
            open_devchain(self.folder / "chain", network=NETWORK, challenge_s=CHALLENGE_S, controls=True)
        )

    async def close(self) -> None:
        if self._payee is not None:
            await self._payee.kill()
        await self._later.aclose()

    async def books_on_disk(self, name: str) -> dict[bytes, Channel]:
        """As a process left them that is dead."""
        async with open_store(self.folder / name / "node.db") as store:
            return {channel.id: channel for channel in await store.channels()}

    async def octo_of(self, name: str) -> int:
        return await self.octo.balance(Keys(name).wallet.address)

    async def in_escrow(self) -> int:
        return await self.octo.balance(self.channels.contract.address)

    async def pass_time(self, seconds: int) -> None:
        await self.rpc.call("evm_increaseTime", seconds)
        await self.rpc.call("evm_mine")


@asynccontextmanager
async def open_street(folder: Path, **shop) -> AsyncIterator[Street]:
    async with AsyncExitStack() as stack:
        devchain = await stack.enter_async_context(
            open_devchain(folder / "chain", network=NETWORK, challenge_s=CHALLENGE_S, controls=True)
        )
        chain = await stack.enter_async_context(open_chain(devchain.url))
        rpc = await stack.enter_async_context(open_rpc(devchain.url))
        street = Street(folder, devchain, chain, rpc)
        try:
            await street.open_shop(**shop)
            yield street
        finally:
            await street.close()
