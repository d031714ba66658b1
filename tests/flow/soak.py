"""A market of three processes under load: clients that ask, a killer among the engines' workers, and a reader of what
the processes hold."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from forks import until
from soak_node import COLOURS, EMBEDDER, TEXT_WORKER, NodeTerms, SoakNode, own_bytes, start_node
from soak_questions import Answer, Question, agrees, ask, ask_in_a_batch, questions

CLIENTS = 32
WORKERS = 2
BATCH_LINES = 12
KILL_EVERY_S = (0.5, 2.5)
KILL_EVERY_TASKS = 8
"""At least so many end between two deaths. A provider that keeps more than every tenth prepayment is asked no more
(`node.standing`), and on a slow machine a death every second would be all there is to see."""
EMBEDDER_SHARE = 0.04
"""A job of an embedder's ends with its worker, where a text goes on with the next."""
LOADING_SHARE = 0.1
"""Of the deaths; the others are of workers that have loaded, or a slow machine would never see any at work."""
STOP_EVERY_S = 60.0
WATCHDOG_S = 45.0
"""Who is stopped is busy soon, is missed 20 s later, and a new worker needs a moment."""
READ_EVERY_S = 3.0
PROVIDERS = ("provider-1", "provider-2")


class Soak:
    """`ends` counts answers, `kinds` them by question and end, `readings` are (tasks done, what was read)."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.folder = folder
        self.nodes: dict[str, SoakNode] = {}
        self.asked: list[Question] = questions(COLOURS)
        self.known: dict[int, Answer] = {}
        self.ends: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.receipts: list[str] = []
        self.slowest_s = 0.0
        self.kills: Counter[str] = Counter()
        self.stopped: dict[int, psutil.Process] = {}
        self.spared = 0
        """A worker that lives through all of it: what leaks in one shows in none that is killed."""
        self.children: set[psutil.Process] = set()
        self.readings: dict[str, list[tuple[float, float]]] = {}
        self._chance = random.Random(seed)

    def session(self) -> aiohttp.ClientSession:
        gateway = self.nodes["gateway"]
        return aiohttp.ClientSession(
            gateway.url,
            headers={"Authorization": f"Bearer {gateway.key}"},
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )

    # ---- in quiet ----

    async def learn(self) -> None:
        """What each question's answer is."""
        async with self.session() as session:
            for at, question in enumerate(self.asked):
                self.known[at] = await ask(session, replace(question, leave_after=0))
                assert self.known[at].end == "whole", (question.kind, self.known[at])
                self.receipts += self.known[at].receipts

    async def repeat(self) -> None:
        """All questions again: everything is back, and says the same."""
        async with self.session() as session:
            for at, question in enumerate(self.asked):
                answer = await ask(session, question)
                assert answer.end != "refused", (question.kind, answer)
                assert agrees(answer, self.known[at], question), question.kind
                self.receipts += answer.receipts

    async def quiet(self) -> None:
        """Nothing runs any more, every worker is back, and every voucher has arrived."""

        async def is_quiet() -> bool:
            books = {name: await node.books() for name, node in self.nodes.items()}
            earned = sum(books[name]["balances"]["earned"] for name in PROVIDERS)
            workers = [len(await self.nodes[name].workers(TEXT_WORKER)) for name in PROVIDERS]
            idle = not any(book["busy"] for book in books.values()) and workers == [WORKERS] * len(PROVIDERS)
            return idle and books["gateway"]["balances"]["spent"] == earned

        await until(is_quiet, 60, every_s=0.5)

    async def census(self) -> dict[str, dict[str, Any]]:
        return {name: await node.census() | {"reading": node.reading()} for name, node in self.nodes.items()}

    # ---- under load ----

    async def load(self, duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        reading = asyncio.create_task(self._read())
        async with self.session() as session, asyncio.TaskGroup() as group:
            group.create_task(self._kill(end_s))
            group.create_task(self._hand_in(session, end_s))
            for _ in range(CLIENTS - 1):
                group.create_task(self._ask(session, end_s))
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    async def _ask(self, session: aiohttp.ClientSession, end_s: float) -> None:
        while (began_s := time.monotonic()) < end_s:
            at = self._chance.randrange(len(self.asked))
            self._note(at, await ask(session, self.asked[at]))
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)

    async def _hand_in(self, session: aiohttp.ClientSession, end_s: float) -> None:
        lines = [at for at, q in enumerate(self.asked) if q.path.endswith("chat/completions") and not q.streams]
        while time.monotonic() < end_s:
            picked = self._chance.sample(lines, BATCH_LINES)
            for at, answer in zip(picked, await ask_in_a_batch(session, [self.asked[n] for n in picked]), strict=True):
                self._note(at, answer, where="batch")

    def _note(self, at: int, answer: Answer, *, where: str = "") -> None:
        question = self.asked[at]
        self.ends[answer.end] += 1
        self.kinds[f"{where or question.kind}: {answer.code or answer.end}"] += 1
        self.receipts += answer.receipts
        if not agrees(answer, self.known[at], question):
            self.wrong.append(f"{question.kind}: {answer.said!r} is not {self.known[at].said!r}")

    async def _kill(self, end_s: float) -> None:
        next_stop_s = time.monotonic() + STOP_EVERY_S / 4
        due = 0
        while (now_s := time.monotonic()) < end_s:
            await asyncio.sleep(self._chance.uniform(*KILL_EVERY_S))
            if self.ends.total() < due:
                continue
            due = self.ends.total() + KILL_EVERY_TASKS
            if self._chance.random() < LOADING_SHARE:
                children = [child.pid for name in PROVIDERS for child in self.nodes[name].children()]
            else:
                module = EMBEDDER if self._chance.random() < EMBEDDER_SHARE else TEXT_WORKER
                children = [pid for name in PROVIDERS for pid in await self.nodes[name].workers(module)]
            children = [pid for pid in children if pid != self.spared and pid not in self.stopped]
            if not children:
                continue
            with suppress(psutil.NoSuchProcess):
                victim = psutil.Process(self._chance.choice(children))
                if next_stop_s < now_s < end_s - WATCHDOG_S:
                    victim.suspend()
                    self.stopped[victim.pid] = victim
                    self.kills["stopped"] += 1
                    next_stop_s += STOP_EVERY_S
                else:
                    victim.kill()
                    self.kills["killed"] += 1

    async def _read(self) -> None:
        while True:
            done = sum(self.ends.values())
            self.readings.setdefault("spared worker", []).append((done, own_bytes(self.spared)))
            for name, node in self.nodes.items():
                self.readings.setdefault(name, []).append((done, node.reading().own_bytes))
                self.children |= set(node.children())
            await asyncio.sleep(READ_EVERY_S)

    # ---- at the end ----

    async def end(self) -> None:
        """All nodes, the gateway first."""
        for node in self.nodes.values():
            self.children |= set(node.children())
        for name in ("gateway", *PROVIDERS):
            await self.nodes[name].end()


@asynccontextmanager
async def open_soak(folder: Path, *, seed: int) -> AsyncIterator[Soak]:
    soak = Soak(folder, seed=seed)
    try:
        first = await start_node(NodeTerms("provider-1", folder / "provider-1", workers=WORKERS))
        soak.nodes["provider-1"] = first
        for terms in (
            NodeTerms("provider-2", folder / "provider-2", workers=WORKERS, embeds=True, join=(first.address,)),
            NodeTerms("gateway", folder / "gateway", join=(first.address,)),
        ):
            soak.nodes[terms.name] = await start_node(terms)
        soak.spared = min(await first.workers(TEXT_WORKER))
        await until(lambda: _all_heard(soak), 30)
        yield soak
    finally:
        for node in soak.nodes.values():
            await node.process.kill()


async def _all_heard(soak: Soak) -> bool:
    async with soak.session() as session, session.get("/api/v1/offers") as response:
        offers = (await response.json())["offers"]
    return COLOURS in {m["name"] for o in offers for m in o["models"]} and len(offers) == len(PROVIDERS)
