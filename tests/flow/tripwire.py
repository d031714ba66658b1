"""Steps of a payment, counted as they happen; at a chosen one the process ends by SIGKILL, as if the power went.

Every wrapper here stands around a part that goes in as an argument: books, notes, network, and the chain's endpoint.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from market.channel import ChannelState

Step = tuple[str, int]
"""What is about to happen or has just happened, and for which time."""


class Tripwire:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.wanted: Step | None = None
        self._armed = False
        self._counts: Counter[str] = Counter()

    def arm(self, wanted: Step | None) -> None:
        """Count from here on, and end at `wanted`."""
        self.steps, self.wanted, self._armed, self._counts = [], wanted, True, Counter()

    def disarm(self) -> list[Step]:
        self._armed = False
        return self.steps

    def step(self, name: str) -> None:
        if not self._armed:
            return
        self._counts[name] += 1
        step = (name, self._counts[name])
        self.steps.append(step)
        if step == self.wanted:
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedBooks:
    """Books that a process may die before, and after, writing into."""

    def __init__(self, books, wire: Tripwire) -> None:
        self._books = books
        self._wire = wire

    async def save(self, channel, *, receipts=()) -> None:
        receipts = tuple(receipts)
        what = []
        if channel is not None:
            is_open = channel.state is ChannelState.OPEN
            what = ["voucher" if is_open and channel.voucher is not None else f"{channel.state} channel"]
        if receipts:
            what.append("receipt")
        await self._within(" and ".join(what), self._books.save(channel, receipts=receipts))

    async def _within(self, what: str, saving) -> None:
        self._wire.step(f"before saving: {what}")
        await saving
        self._wire.step(f"after saving: {what}")

    async def channels(self):
        return await self._books.channels()

    async def receipts(self, *, task):
        return await self._books.receipts(task=task)


class WatchedKeeper:
    def __init__(self, keeper, name: str, wire: Tripwire) -> None:
        self._keeper = keeper
        self._name = name
        self._wire = wire

    async def load(self):
        return await self._keeper.load()

    async def save(self, data: bytes) -> None:
        self._wire.step(f"before keeping: {self._name}")
        await self._keeper.save(data)
        self._wire.step(f"after keeping: {self._name}")


class WatchedConversation:
    def __init__(self, conversation, wire: Tripwire) -> None:
        self.peer = conversation.peer
        self.task = conversation.task
        self._conversation = conversation
        self._wire = wire

    async def send(self, body) -> None:
        self._wire.step(f"before sending: {body.kind}")
        await self._conversation.send(body)
        self._wire.step(f"after sending: {body.kind}")

    async def receive(self, timeout_s: float):
        message = await self._conversation.receive(timeout_s)
        self._wire.step(f"heard: {message.body.kind}")
        return message

    async def aclose(self) -> None:
        await self._conversation.aclose()


class WatchedNetwork:
    def __init__(self, network, wire: Tripwire) -> None:
        self.peer = network.peer
        self._network = network
        self._wire = wire

    async def open_conversation(self, peer, task):
        return WatchedConversation(await self._network.open_conversation(peer, task), self._wire)

    async def announce(self, offer) -> None:
        await self._network.announce(offer)

    def offers(self):
        return self._network.offers()


@asynccontextmanager
async def open_watched_chain(url: str, wire: Tripwire, *, lag_s: float) -> AsyncIterator[str]:
    """The chain's endpoint through a door of our own: each transaction may be the last thing that we do. The
    first dozen answers come `lag_s` late."""
    late = iter(range(12))

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        if next(late, None) is not None:
            await asyncio.sleep(lag_s)
        is_transaction = b"eth_sendRawTransaction" in body
        if is_transaction:
            wire.step("before a transaction")
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
            answered = await response.read()
        if is_transaction:
            wire.step("after a transaction")
        return web.Response(body=answered, status=response.status, content_type="application/json")

    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    async with aiohttp.ClientSession() as session:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
