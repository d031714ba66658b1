"""A whole node as a process of its own, with real engines, that also counts what it holds: for tests that run long."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import uvloop
from forks import Forked

from inference.models.draft import Wishes
from node.logs import open_logs
from node.running import RunningNode
from node.settings import Api, Content, EngineSettings, Limits, Mesh, Settings
from node.wiring import open_node
from tests.inference import onnx_kit

MODEL_FILE = Path(__file__).resolve().parents[2] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_0.gguf"
CONTEXT = 1024
COLOURS = "colours"
TEXT_WORKER, EMBEDDER = "inference.worker", "inference.work.child"


@dataclass(frozen=True)
class NodeTerms:
    """`workers` 0: it only buys. `embeds`: a toy embedding model is served too."""

    name: str
    folder: Path
    workers: int = 0
    slots: int = 16
    embeds: bool = False
    join: tuple[str, ...] = ()

    def settings(self, **changes: Any) -> Settings:
        return Settings(
            data_dir=self.folder,
            network="octo-soak",
            join=self.join,
            api=Api(port=0),
            mesh=Mesh(listen=("/ip4/127.0.0.1/tcp/0",)),
            content=Content(host="127.0.0.1"),
            engine=EngineSettings(workers=self.workers or None, slots=self.slots, context=CONTEXT),
            limits=Limits(requests=256),
            **{"provide": bool(self.workers), **changes},
        )


def main(pipe: Connection, terms: NodeTerms) -> None:
    with open_logs(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(pipe, terms))


async def _run(pipe: Connection, terms: NodeTerms) -> None:
    async with AsyncExitStack() as stack:
        serve = (await _add_embedder(terms),) if terms.embeds else ()
        node = await stack.enter_async_context(open_node(terms.settings(serve=serve), prepared=[MODEL_FILE]))
        pipe.send(("ready", {"address": node.addresses()[0], "url": node.url, "key": str(node.first_api_key)}))
        while True:
            try:
                name, _ = await asyncio.to_thread(pipe.recv)
            except EOFError:  # who started us is gone
                return
            if name == "end":
                break
            pipe.send(("done", await _books(node) if name == "books" else _census()))
    pipe.send(("done", None))


async def _add_embedder(terms: NodeTerms) -> str:
    files = onnx_kit.write_model(
        terms.folder.with_name(COLOURS),
        model_onnx=onnx_kit.pooling_embedder(),
        tokenizer_json=onnx_kit.tokenizer_json(),
    )
    async with open_node(terms.settings(provide=False)) as node:
        return str((await node.desk.add(str(files), wishes=Wishes(name=COLOURS, modality="embedding")))["model"])


async def _books(node: RunningNode) -> dict[str, Any]:
    load = node.providing.load()
    return {
        "balances": asdict(await node.balances()),
        "channels": [dict(channel) for channel in await node.channels()],
        "busy": load.running + load.waiting,
        "workers": node.providing.worker_pids(),
    }


def _census() -> dict[str, Any]:
    """What this process holds at the moment, garbage aside."""
    gc.collect()
    tasks = Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks() if task.get_coro() is not None)
    tasks[_run.__qualname__] = 0  # that is us
    return {"tasks": +tasks, "objects": Counter(type(thing).__name__ for thing in gc.get_objects())}


@dataclass(frozen=True)
class Reading:
    own_bytes: int
    handles: int
    threads: int


def own_bytes(pid: int) -> int:
    """Resident memory less what files lie behind: pages of files come and go with the system's mood."""
    memory = psutil.Process(pid).memory_info()
    return memory.rss - memory.shared


class SoakNode:
    """Seen from outside."""

    def __init__(self, terms: NodeTerms, process: Forked, facts: dict[str, str]) -> None:
        self.terms = terms
        self.process = process
        self.address, self.url, self.key = facts["address"], facts["url"], facts["key"]
        self.pid = process.pid

    async def workers(self, module: str) -> list[int]:
        """Its engines' processes that run a module of ours and have loaded their model."""
        return [pid for pid in (await self.books())["workers"] if _runs(pid, module)]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def reading(self) -> Reading:
        process = psutil.Process(self.pid)
        return Reading(own_bytes(self.pid), process.num_fds(), process.num_threads())

    async def books(self) -> dict[str, Any]:
        return await self.process.call("books")

    async def census(self) -> dict[str, Any]:
        return await self.process.call("census")

    async def end(self) -> None:
        """In order, as at a SIGTERM."""
        await self.process.call("end")

    def log(self) -> str:
        return self.terms.folder.with_suffix(".log").read_text(errors="replace")


def _runs(pid: int, module: str) -> bool:
    try:
        return module in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


async def start_node(terms: NodeTerms) -> SoakNode:
    terms.folder.mkdir(parents=True, mode=0o700)
    process = Forked(main, terms, log=terms.folder.with_suffix(".log"))
    return SoakNode(terms, process, await process.ready())
