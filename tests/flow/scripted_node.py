"""A whole node as a process of its own, on a chain. Its engine says what it is told; everything else is real."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from forks import Forked
from pydantic import SecretStr

from market.money import OCTO, format_octo
from market.testing import ScriptedEngine
from node.cli.remote import Remote, find_node
from node.settings import Api, ChainSettings, Content, Mesh, Payment, Prices, Settings
from node.wiring import open_node

ANSWER = "What the engine says is short, but long enough for three receipts."
TICK = 24
DEPOSIT = OCTO // 5
MODEL_FILE = Path(__file__).resolve().parents[2] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"


@dataclass(frozen=True)
class NodeTerms:
    """All of it survives the node's death. `listen` is a multiaddr, with a port from the second start on."""

    name: str
    folder: Path
    chain: str
    deployment: Path
    provides: bool
    listen: str = "/ip4/127.0.0.1/tcp/0"
    join: tuple[str, ...] = ()

    def settings(self) -> Settings:
        return Settings(
            data_dir=self.folder,
            network="octo-thousand",
            provide=self.provides,
            join=self.join,
            api=Api(port=0),
            mesh=Mesh(listen=(self.listen,)),
            content=Content(host="127.0.0.1"),
            prices=Prices(input="10", output="100"),
            # Channels that run dry every thirty tasks, and a provider that asks for its money at once.
            payment=Payment(
                tick_tokens=TICK, deposit=format_octo(DEPOSIT), deposit_cap="1", credit="1", prepaid_per_day="10"
            ),
            chain=ChainSettings(
                url=SecretStr(self.chain), deployment=self.deployment, faucet=True, settle_at="0", settle_dust="0"
            ),
        )


def main(pipe: Connection, terms: NodeTerms) -> None:
    asyncio.run(_run(pipe, terms))


async def _run(pipe: Connection, terms: NodeTerms) -> None:
    engine = ScriptedEngine(ANSWER, delay_s=0.003) if terms.provides else None
    async with open_node(terms.settings(), engine=engine, prepared=[MODEL_FILE]) as node:
        pipe.send(("ready", node.addresses()[0]))
        await asyncio.to_thread(pipe.poll, None)


class ScriptedNode:
    def __init__(self, terms: NodeTerms, process: Forked, address: str) -> None:
        self.terms = terms
        self.address = address
        self.process = process

    @property
    def remote(self) -> Remote:
        """Its API, as its owner's command line reaches it."""
        return find_node(self.terms.folder)


async def start_node(terms: NodeTerms) -> ScriptedNode:
    process = Forked(main, terms, log=terms.folder.with_suffix(".log"))
    return ScriptedNode(terms, process, await process.ready())
