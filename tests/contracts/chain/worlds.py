"""Two real chains, one suite: the embedded devnet chain and anvil, each with our contracts on it.

Each test brings wallets of its own, so that one chain serves them all.
"""

import itertools
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from contracts.abi import Abi
from contracts.anvil import find_anvil, open_anvil
from contracts.chain import Chain, open_chain
from contracts.contract import Call
from contracts.deploy import deploy
from contracts.deployments import Deployment
from contracts.devchain import open_devchain
from contracts.faucet import ask_faucet
from contracts.rpc import Rpc, open_rpc
from contracts.sender import Sender, SendTerms, open_sender
from contracts.tokens import Token
from market.money import OCTO
from market.signing import Secp256k1Signer

NETWORK = "octo-test"
CHALLENGE_S = 3600
QUICK = SendTerms(poll_s=0.02, taken_after_s=0.3, bump_after_s=1.0, patience_s=120)
CHAIN_IDS = itertools.count(31_400)


@dataclass
class World:
    """One chain with our contracts. `rpc` asks it what only a test may."""

    kind: str
    url: str
    chain: Chain
    deployment: Deployment
    rpc: Rpc
    rich: Sender | None = None

    @property
    def octo(self) -> Token:
        return Token(self.chain, self.deployment, "Octo")

    async def mine(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            await self.rpc.call("evm_mine")

    async def pass_time(self, seconds: int) -> None:
        await self.rpc.call("evm_increaseTime", seconds)
        await self.mine()

    async def wallet(self, *, gas: bool = True, octo: int = 1_000 * OCTO, octo_a: int = 0) -> Secp256k1Signer:
        """A wallet of its own, with money."""
        signer = Secp256k1Signer(secrets.token_bytes(32))
        if self.rich is None:
            if gas:
                await ask_faucet(self.url, signer.address)
            return signer
        if gas:
            await self.rich.send(Call(to=signer.address, data=b"", amount=10**18, what="gas", abi=Abi(())))
        for token, amount in (("Octo", octo), ("OctoA", octo_a or 10_000 * OCTO)):
            if gas and amount:
                await self.rich.send(Token(self.chain, self.deployment, token).transfer(signer.address, amount))
        return signer


@asynccontextmanager
async def anvil_world(**options: object) -> AsyncIterator[World]:
    deployer = Secp256k1Signer(secrets.token_bytes(32))
    async with AsyncExitStack() as stack:
        anvil = await stack.enter_async_context(open_anvil(rich=deployer.address, **options))
        chain = await stack.enter_async_context(open_chain(anvil.url))
        rich = await stack.enter_async_context(open_sender(chain, deployer, QUICK))
        deployment = await deploy(chain, rich, network=NETWORK, challenge_s=CHALLENGE_S)
        rpc = await stack.enter_async_context(open_rpc(anvil.url))
        yield World("anvil", anvil.url, chain, deployment, rpc, rich)


@asynccontextmanager
async def devchain_world(folder: Path, **options: object) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        options = {"network": NETWORK, "challenge_s": CHALLENGE_S, "controls": True} | options
        devchain = await stack.enter_async_context(open_devchain(folder, **options))
        chain = await stack.enter_async_context(open_chain(devchain.url))
        rpc = await stack.enter_async_context(open_rpc(devchain.url))
        yield World("devchain", devchain.url, chain, devchain.deployment, rpc)


def needs_anvil() -> None:
    if find_anvil() is None:
        pytest.skip("anvil is not installed: npm ci in contracts/")
