"""A small market on one machine: a chain, providers and a client gateway, each a process of its own on loopback.

The first provider has the default model. The others are told its content id only, and pull it from the
first, block by block. What starts here ends here: the processes end when the block ends, when one of them
fails at start-up, and when this very process is killed (`node.cleaning`). Knows folders and the nodes' HTTP
API; nothing of their insides.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.api_keys import make_api_key
from node.cleaning import open_cleaning
from node.cli.exits import NodeAnswered, NodeNotRunning
from node.crew import Crew, Member, MemberFailed, Tell, open_crew
from node.devnet_chain import NO_CHAIN, DevnetChain, Kind, kept_network, open_devnet_chain
from node.folder import open_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`prices` are OCTO per million tokens as people write them, (in, out) for each provider.

    `data_dir` None means a temporary folder, removed at the end unless `keep`. `chain` none is the local ledger.
    """

    prices: tuple[tuple[str, str], ...]
    data_dir: Path | None = None
    keep: bool = False
    model: str = "default"
    workers: int = 1
    chain: Kind = "none"
    start_timeout_s: float = 120.0


class Devnet:
    """Use `open_devnet`."""

    def __init__(
        self, *, root: Path, api_key: str, model: str, providers: Sequence[Member], client: Member,
        chain: DevnetChain | None,
    ) -> None:  # fmt: skip
        self.root = root
        self.chain = chain
        self.api_key = api_key
        self.model = model
        self.providers = tuple(providers)
        self.client = client

    def facts(self) -> dict[str, Any]:
        """What `--ready-file` holds."""
        return {
            "gateway": self.client.url,
            "api_key": self.api_key,
            "model": self.model,
            "providers": [provider.facts() for provider in self.providers],
            "client": self.client.facts(),
            **(self.chain.facts() if self.chain is not None else NO_CHAIN),
        }


@asynccontextmanager
async def open_devnet(plan: Plan, *, tell: Tell) -> AsyncIterator[Devnet]:
    """All nodes up, the gateway seeing every provider's offer. `tell` takes lines for a person.

    Raises MemberFailed with the end of the log of a node that did not come up.
    """
    async with AsyncExitStack() as stack:
        root = _root(plan, stack)
        temporary = plan.data_dir is None and not plan.keep
        note = await stack.enter_async_context(open_cleaning(root if temporary else None))
        network = kept_network(plan.chain, root) or f"devnet-{secrets.token_hex(4)}"
        if plan.chain != "none":
            tell(f"Starting the chain ({plan.chain}) with our contracts")
        chain = await stack.enter_async_context(open_devnet_chain(plan.chain, root, network=network, note=note))
        config = chain.config() if chain is not None else ""
        crew = await stack.enter_async_context(
            open_crew(root, network=network, config=config, note=note, start_timeout_s=plan.start_timeout_s)
        )
        tell("Starting provider 1 with the default model" if plan.model == "default" else "Starting provider 1")
        first = await crew.start("provider-1", model=plan.model, prices=plan.prices[0], workers=plan.workers)
        if first.model is None:
            raise MemberFailed("provider 1 serves no model.", next_step=f"Its log says why: {first.log}")
        rest = plan.prices[1:]
        if rest:
            more = "provider 2" if len(rest) == 1 else f"providers 2 to {len(rest) + 1}"
            tell(f"Starting the gateway and {more}: pulling {first.model[:16]}… from provider 1, by its CID")
        key = _api_key(root / "client")
        join = first.multiaddrs[:1]
        try:
            async with asyncio.TaskGroup() as group:
                starting = [
                    group.create_task(
                        crew.start(f"provider-{n}", model=first.model, prices=prices, join=join, workers=plan.workers)
                    )
                    for n, prices in enumerate(rest, start=2)
                ]
                starting_client = group.create_task(crew.start("client", model="none", join=join))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        providers = [first, *(task.result() for task in starting)]
        devnet = Devnet(
            root=root, api_key=key, model=first.model, providers=providers, client=starting_client.result(), chain=chain
        )
        tell("Waiting until the gateway has heard every offer")
        await _all_offers_seen(devnet, crew, plan.start_timeout_s)
        crew.started(tell)
        yield devnet


def _root(plan: Plan, stack: AsyncExitStack) -> Path:
    if plan.data_dir is not None:
        plan.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return plan.data_dir.resolve()
    root = Path(tempfile.mkdtemp(prefix="octo-devnet-"))
    if not plan.keep:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
    return root


def _api_key(data_dir: Path) -> str:
    """A key of the gateway's, made before it starts: one from an earlier run is stored as a hash only."""
    with open_folder(data_dir) as folder:
        return make_api_key(folder)


async def _all_offers_seen(devnet: Devnet, crew: Crew, timeout_s: float) -> None:
    gateway = devnet.client.remote()
    missing = {provider.peer_id for provider in devnet.providers}
    try:
        async with asyncio.timeout(timeout_s):
            while missing:
                crew.check()
                with contextlib.suppress(NodeAnswered, NodeNotRunning):
                    seen = await asyncio.to_thread(gateway.get, "/api/v1/offers")
                    missing -= _who_offers(seen, devnet.model)
                if missing:
                    await asyncio.sleep(0.2)
    except TimeoutError:
        names = ", ".join(member.name for member in devnet.providers if member.peer_id in missing)
        raise MemberFailed(
            f"the gateway heard no offer of {names}, or saw no stake behind it, in {timeout_s:.0f} s.",
            next_step=f"The logs say more: {devnet.client.log}",
        ) from None


def _who_offers(seen: dict[str, Any], model: str) -> set[str]:
    """Those that may have any prompt: the stake behind an offer is looked up once the offer is heard."""
    vetted = [offer for offer in seen["offers"] if offer["unvetted"] is None]
    return {offer["peer"] for offer in vetted if any(m["model"] == model for m in offer["models"])}
