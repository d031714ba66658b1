"""What runs inside the devnet chain's process: the EVM, its server, our contracts, the faucet."""

from __future__ import annotations

import asyncio
import fcntl
import json
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from contracts.chain import Chain, open_chain
from contracts.deploy import deploy
from contracts.deployments import Deployment, check_deployment, deployment_to_json, read_deployment
from contracts.devchain import DEPLOYMENT_FILE, EvmTerms
from contracts.evm import Evm
from contracts.evm_rpc import EvmRpc
from contracts.evm_serving import BlockMaker, open_server
from contracts.evm_store import EvmStore
from contracts.faucet import METHOD, Faucet
from contracts.sender import Sender, SendTerms, open_sender
from contracts.wallet import new_secret
from market.errors import NodeMisconfigured
from market.signing import Secp256k1Signer

Extra = dict[str, Callable[..., Awaitable[Any]]]
ServedOn = Callable[[int], AbstractAsyncContextManager[tuple[str, BlockMaker]]]


async def run(terms: EvmTerms) -> None:
    """Until SIGTERM or SIGINT. Says on stdout, in one line of JSON, when it can be used."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        stack.enter_context(_only_one(terms.folder))
        store = EvmStore(terms.folder / "chain.db")
        stack.callback(store.close)
        _check_same(store, terms.chain_id)
        deployer = _deployer(store)
        # A new chain begins a minute ago: its first blocks, with our contracts, need not wait a second each.
        set_up = not (terms.folder / DEPLOYMENT_FILE).exists()
        evm = Evm(store, chain_id=terms.chain_id, rich=deployer.address, now=int(time.time()) - 60)
        rpc = EvmRpc(evm)
        rpc.skew_s = -60 if set_up else 0
        extra = _controls(evm, rpc) if terms.controls else {}

        def served_on(port: int) -> AbstractAsyncContextManager[tuple[str, BlockMaker]]:
            return open_server(evm, rpc, port=port, at_once=terms.controls or set_up, extra=extra)

        url, maker = await _served(stack, store, served_on, wanted=terms.port)
        chain = await stack.enter_async_context(open_chain(url, chain_id=terms.chain_id, genesis=evm.genesis))
        sender = await stack.enter_async_context(open_sender(chain, deployer, SendTerms(poll_s=0.1)))
        deployment = await _deployment(terms, chain, sender)
        rpc.skew_s, maker.at_once = 0, terms.controls
        extra[METHOD] = Faucet(chain, sender, deployment).answer
        print(json.dumps({"url": url, "chain_id": terms.chain_id}), flush=True)  # noqa: T201 - the parent waits for it
        await stopping.wait()


async def _served(
    stack: AsyncExitStack, store: EvmStore, served_on: ServedOn, *, wanted: int
) -> tuple[str, BlockMaker]:
    """On the port that was asked for; else on that of last time, so that wallets find it again; else on any."""
    kept = int.from_bytes(store.meta("port") or b"", "big")
    try:
        url, maker = await stack.enter_async_context(served_on(wanted or kept))
    except NodeMisconfigured:
        if wanted:
            raise
        url, maker = await stack.enter_async_context(served_on(0))
    store.keep_meta("port", int(url.rpartition(":")[2]).to_bytes(2, "big"))
    return url, maker


async def _deployment(terms: EvmTerms, chain: Chain, sender: Sender) -> Deployment:
    path = terms.folder / DEPLOYMENT_FILE
    if path.exists():
        deployment = read_deployment(path)
        await check_deployment(chain, deployment)
        if deployment.network != terms.network:
            raise NodeMisconfigured(
                f"the chain in {terms.folder} is of network {deployment.network!r}, not {terms.network!r}.",
                next_step="Use another folder.",
            )
        return deployment
    deployment = await deploy(chain, sender, network=terms.network, challenge_s=terms.challenge_s)
    fresh = path.with_suffix(".new")
    fresh.write_text(deployment_to_json(deployment))
    fresh.replace(path)
    return deployment


def _controls(evm: Evm, rpc: EvmRpc) -> Extra:
    async def mine() -> str:
        evm.mine(rpc.now())
        return hex(evm.head.block_number)

    async def increase_time(seconds: Any) -> str:
        ahead_s = max(0, evm.head.timestamp - rpc.now())  # blocks at once run ahead of the clock
        rpc.skew_s += ahead_s + (int(seconds, 16) if isinstance(seconds, str) else int(seconds))
        return hex(rpc.skew_s)

    return {"evm_mine": mine, "evm_increaseTime": increase_time}


def _deployer(store: EvmStore) -> Secp256k1Signer:
    """A key nobody else has: well-known development keys get robbed as soon as a port is open by mistake."""
    secret = store.meta("deployer")
    if secret is None:
        secret = new_secret()
        store.keep_meta("deployer", secret)
    return Secp256k1Signer(secret)


def _check_same(store: EvmStore, chain_id: int) -> None:
    kept = store.meta("chain_id")
    if kept is not None and int(kept) != chain_id:
        raise NodeMisconfigured(f"this chain has the id {int(kept)}, not {chain_id}.", next_step="Use another folder.")
    store.keep_meta("chain_id", str(chain_id).encode())


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with (folder / "chain.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NodeMisconfigured(
                f"another process runs the chain in {folder}.", next_step="Stop it, or use another folder."
            ) from None
        yield
