"""A whole node as a process of its own, which buys from itself: for tests that kill it with tasks in its queue."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from math import inf
from multiprocessing.connection import Connection
from pathlib import Path

from forks import Forked

from market.testing import ScriptedEngine
from node.cli.remote import Remote, find_node
from node.settings import Api, Content, Mesh, Settings
from node.wiring import open_node

ANSWER = "It takes a while to say all this, byte by byte."
MODEL_FILE = Path(__file__).resolve().parents[2] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"


@dataclass(frozen=True)
class Terms:
    """`answers`: so many its engine gives whole; from then on it comes to half of each."""

    folder: Path
    delay_s: float
    answers: float = inf


class Halting(ScriptedEngine):
    def __init__(self, terms: Terms) -> None:
        super().__init__(ANSWER, delay_s=terms.delay_s)
        self._whole = terms.answers

    async def generate(self, job):
        self._whole -= 1
        halts = self._whole < 0
        said = 0
        async with aclosing(super().generate(job)) as stream:
            async for generated in stream:
                yield generated
                said += len(generated.tokens)
                if halts and said > len(ANSWER) // 2:
                    await asyncio.Event().wait()


def main(pipe: Connection, terms: Terms) -> None:
    asyncio.run(_run(pipe, terms))


async def _run(pipe: Connection, terms: Terms) -> None:
    settings = Settings(
        data_dir=terms.folder,
        network="octo-queue",
        api=Api(port=0),
        mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",)),
        content=Content(host="127.0.0.1"),
    )
    async with open_node(settings, engine=Halting(terms), prepared=[MODEL_FILE]):
        pipe.send(("ready", None))
        await asyncio.to_thread(pipe.poll, None)


class QueueNode:
    def __init__(self, terms: Terms, process: Forked) -> None:
        self._terms = terms
        self.process = process

    @property
    def remote(self) -> Remote:
        return find_node(self._terms.folder)


async def start_node(terms: Terms) -> QueueNode:
    process = Forked(main, terms, log=terms.folder.with_suffix(".log"))
    await process.ready()
    return QueueNode(terms, process)
