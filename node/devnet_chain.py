"""The chain of a devnet: started in the devnet's folder, with our contracts for its network, and a faucet.

Knows chains and contracts; of the nodes only what each of them is told about it. On anvil the deployer is a key
made here and given gas by anvil's own method; the money it gets goes to the nodes through the faucet, as on the
embedded chain (`node.faucet_door`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from contracts.anvil import open_anvil
from contracts.chain import open_chain
from contracts.deploy import deploy
from contracts.deployments import Deployment, deployment_to_json, read_deployment
from contracts.devchain import DEPLOYMENT_FILE, open_devchain
from contracts.faucet import Faucet
from contracts.sender import SendTerms, open_sender
from contracts.wallet import new_secret
from market.errors import NodeMisconfigured
from market.signing import Secp256k1Signer
from market.values import value
from node.cleaning import Note
from node.faucet_door import open_faucet_door
from node.folder import write_whole

Kind = Literal["embedded", "anvil", "none"]

CHALLENGE_S = 60
"""A devnet is for trying: nobody waits a day to see a channel close."""
_FOLDER = "chain"
# Settles soon, and the smallest sums: on a devnet one wants to see it.
_SETTLING = 'settle_after_s = 5\nsettle_at = "0.01"\nsettle_dust = "0"\n'


@value
class DevnetChain:
    kind: str
    url: str
    deployment: Deployment
    deployment_file: str

    def facts(self) -> dict[str, Any]:
        """What the ready file says of it."""
        return {
            "rpc": self.url,
            "chain_id": self.deployment.chain_id,
            "contracts": {name: one.address for name, one in self.deployment.contracts.items()},
        }

    def config(self) -> str:
        """A node's settings for it, in TOML (whose strings are JSON's)."""
        url, file = json.dumps(self.url), json.dumps(self.deployment_file)
        return f"[chain]\nurl = {url}\ndeployment = {file}\nfaucet = true\n{_SETTLING}"


NO_CHAIN: dict[str, Any] = {"rpc": None, "chain_id": None, "contracts": None}


def kept_network(kind: Kind, root: Path) -> str | None:
    """The network of the chain that an earlier devnet left in this folder. Anvil keeps nothing."""
    path = root / _FOLDER / DEPLOYMENT_FILE
    return read_deployment(path).network if kind == "embedded" and path.exists() else None


@asynccontextmanager
async def open_devnet_chain(kind: Kind, root: Path, *, network: str, note: Note) -> AsyncIterator[DevnetChain | None]:
    """A chain of this kind in a folder of `root` until the end of the block; None for kind "none".

    Raises NodeMisconfigured with what is missing.
    """
    async with AsyncExitStack() as stack:
        match kind:
            case "none":
                yield None
            case "embedded":
                yield await stack.enter_async_context(_embedded(root / _FOLDER, network, note))
            case "anvil":
                yield await stack.enter_async_context(_anvil(root / _FOLDER, network, note))


@asynccontextmanager
async def _embedded(folder: Path, network: str, note: Note) -> AsyncIterator[DevnetChain]:
    async with AsyncExitStack() as stack:
        opening = open_devchain(folder, network=network, challenge_s=CHALLENGE_S)
        try:
            running = await stack.enter_async_context(opening)
        except NodeMisconfigured as error:
            raise NodeMisconfigured(error.message, next_step="Or leave the chain out: --chain none.") from None
        note(running.pid)
        yield DevnetChain(
            kind="embedded",
            url=running.url,
            deployment=running.deployment,
            deployment_file=str(running.deployment_file),
        )


@asynccontextmanager
async def _anvil(folder: Path, network: str, note: Note) -> AsyncIterator[DevnetChain]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # noqa: ASYNC240 - once, before anything runs
    deployer = Secp256k1Signer(new_secret())
    async with (
        open_anvil(rich=deployer.address) as running,
        open_chain(running.url, chain_id=running.chain_id) as chain,
        open_sender(chain, deployer, SendTerms(poll_s=0.1)) as sender,
    ):
        note(running.pid)
        deployment = await deploy(chain, sender, network=network, challenge_s=CHALLENGE_S)
        file = folder / DEPLOYMENT_FILE
        write_whole(file, deployment_to_json(deployment).encode())
        async with open_faucet_door(running.url, Faucet(chain, sender, deployment)) as url:
            yield DevnetChain(kind="anvil", url=url, deployment=deployment, deployment_file=str(file))
