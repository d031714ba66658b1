"""Content listeners on loopback, listeners that lie, and sources in memory that count what they give."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from inference.models.cid import RAW, parse_cid
from inference.models.http_client import open_http_client
from inference.models.sources import HttpSource
from inference.models.store import Store
from inference.models.unixfs import PROFILE_2025, Profile, build_file
from market.errors import ContentUnavailable
from market.ports import ContentSource
from node.content.door import ContentLimits
from node.content.listener import content_app
from tests.inference.models import store_kit

MIB = 1024 * 1024
put, seeded = store_kit.put, store_kit.seeded
Then = Callable[[asyncio.StreamWriter], Awaitable[None]]
PLENTY = ContentLimits(requests_per_s=1e9, burst=10**9)


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """A real listener on loopback; yields its base URL."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def sources(*apps: web.Application, timeout_s: float = 20.0) -> AsyncIterator[list[HttpSource]]:
    """One HTTP source for each application, all listening."""
    async with open_http_client() as client:
        stack = [serving(app) for app in apps]
        urls = [await one.__aenter__() for one in stack]
        try:
            yield [HttpSource(url, client, timeout_s=timeout_s) for url in urls]
        finally:
            for one in stack:
                await one.__aexit__(None, None, None)


class Counter:
    """Counts the file bytes that a listener hands out and the requests it sees."""

    def __init__(self) -> None:
        self.bytes = 0
        self.requests = 0


def counted_app(store: Store, counter: Counter, *, pause_s: float = 0.0) -> web.Application:
    """Counts, and waits `pause_s` before each answer."""
    app = content_app(store, limits=PLENTY)

    async def note(request: web.Request, response: web.StreamResponse) -> None:
        await asyncio.sleep(pause_s)
        counter.requests += 1
        if response.status == 206:
            counter.bytes += response.content_length or 0

    app.on_response_prepare.append(note)
    return app


def liar_app(store: Store, bend: Callable[[web.Request, bytes], bytes]) -> web.Application:
    """A listener that serves `store`, every body bent by `bend` first."""

    async def ipfs(request: web.Request) -> web.StreamResponse:
        cid = request.match_info["cid"]
        if request.query.get("format") == "raw":
            return web.Response(body=bend(request, await store.read_block(cid)))
        span = request.http_range
        data = store.path_of(str(parse_cid(cid))).read_bytes()[span]
        headers = {"Content-Range": f"bytes {span.start}-{span.stop - 1}/*"}
        return web.Response(status=206, body=bend(request, data), headers=headers)

    app = web.Application()
    app.router.add_get("/ipfs/{cid}", ipfs)
    return app


def zeros_app(store: Store, *, pause_s: float = 0.0, piece: bytes = bytes(65536)) -> web.Application:
    """Good inner nodes, but leaves and ranges of nothing but zeros: as fast as they are read, or a drip."""

    async def ipfs(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if request.query.get("format") == "raw":
            block = await store.read_block(cid := request.match_info["cid"])
            if parse_cid(cid).codec != RAW:
                return web.Response(body=block)
            left = len(block)
        else:
            span = request.http_range
            response.set_status(206)
            response.headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/*"
            left = span.stop - span.start
        response.content_length = left
        await response.prepare(request)
        while left > 0:
            await response.write(piece[:left])
            left -= len(piece)
            await asyncio.sleep(pause_s)
        return response

    app = web.Application()
    app.router.add_get("/ipfs/{cid}", ipfs)
    return app


class Watched:
    """A source that says how many bytes of ranges it has given so far, before each piece."""

    def __init__(self, source: ContentSource, watch: Callable[[int], None]) -> None:
        self.name = source.name
        self.given = 0
        self._source = source
        self._watch = watch

    async def block(self, cid: str) -> bytes:
        return await self._source.block(cid)

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes | memoryview]:
        async with contextlib.aclosing(self._source.read_range(root, start, length)) as pieces:
            async for piece in pieces:
                self._watch(self.given)
                self.given += len(piece)
                yield piece


class DagSource:
    """A file in memory by blocks and by ranges, either of which it may lack. `seen`: CIDs and offsets asked for."""

    def __init__(
        self,
        name: str,
        *,
        blocks: Mapping[str, bytes] | None = None,
        data: bytes | None = None,
        pause_s: float = 0.0,
        bend: Callable[[bytes], bytes] = bytes,
    ) -> None:
        self.name = name
        self.seen: list[str | int] = []
        self.most_at_once = 0
        self._at_once = 0
        self._blocks = blocks
        self._data = data
        self._pause_s = pause_s
        self._bend = bend

    async def block(self, cid: str) -> bytes:
        self.seen.append(cid)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(self._pause_s)
        finally:
            self._at_once -= 1
        if self._blocks is None or cid not in self._blocks:
            raise ContentUnavailable(f"{self.name} has no block {cid}.")
        return self._bend(self._blocks[cid])

    async def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        self.seen.append(start)
        if self._data is None:
            raise ContentUnavailable(f"{self.name} has blocks only.")
        for at in range(start, min(start + length, len(self._data)), 65_536):
            await asyncio.sleep(self._pause_s)
            yield self._bend(self._data[at : min(at + 65_536, start + length)])


def slow_clock() -> Callable[[], float]:
    """A thousandth of the loop's time: nobody is too slow by it, whatever the machine does, and nobody's work is taken
    over."""
    time = asyncio.get_running_loop().time
    began = time()
    return lambda: began + (time() - began) / 1000


def blocks_of(path: Path, profile: Profile = PROFILE_2025) -> tuple[str, dict[str, bytes]]:
    """(root, every block by CID) of a file."""
    dag, data = build_file(path, profile), path.read_bytes()
    blocks = {str(cid): block for cid, block in dag.nodes}
    blocks |= {str(leaf.cid): data[leaf.offset : leaf.offset + leaf.length] for leaf in dag.leaves}
    return str(dag.root), blocks


@asynccontextmanager
async def answering(
    *answers: bytes, then: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
) -> AsyncIterator[str]:
    """A server that gives these bytes, one after the other, whatever is asked (the last again and again); then `then`
    has the connection, else it is closed. Yields its URL."""
    left = list(answers)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()
            if then is not None:
                await then(writer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
