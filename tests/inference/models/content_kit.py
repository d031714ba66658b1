"""Content listeners on loopback, and listeners that lie."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from inference.models.cid import parse_cid
from inference.models.http_client import open_http_client
from inference.models.sources import HttpSource
from inference.models.store import Store
from node.content.door import ContentLimits
from node.content.listener import content_app

MIB = 1024 * 1024
PLENTY = ContentLimits(requests_per_s=1e9, burst=10**9)


def seeded(size: int, seed: str = "octo/unixfs/1") -> bytes:
    """The bytes that tests/vectors/unixfs.json speaks of."""
    start = seed.encode()
    return b"".join(hashlib.sha256(start + i.to_bytes(8, "big")).digest() for i in range((size + 31) // 32))[:size]


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


async def put(store: Store, folder: Path, data: bytes, **options: object) -> str:
    path = folder / f"in-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return await store.add(path, **options)  # type: ignore[arg-type]


class Counter:
    """Counts the file bytes that a listener hands out and the requests it sees."""

    def __init__(self) -> None:
        self.bytes = 0
        self.requests = 0


def counted_app(store: Store, counter: Counter) -> web.Application:
    app = content_app(store, limits=PLENTY)

    async def note(request: web.Request, response: web.StreamResponse) -> None:
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


def endless_app(store: Store, *, pause_s: float = 0.0, piece: bytes = bytes(65536)) -> web.Application:
    """Good blocks, but ranges that never end: zeros as fast as they are read, or a drip with `pause_s`."""

    async def ipfs(request: web.Request) -> web.StreamResponse:
        if request.query.get("format") == "raw":
            return web.Response(body=await store.read_block(request.match_info["cid"]))
        response = web.StreamResponse(status=206)
        response.headers["Content-Range"] = f"bytes {request.http_range.start}-99999999/*"
        await response.prepare(request)
        while True:
            await response.write(piece)
            await asyncio.sleep(pause_s)

    app = web.Application()
    app.router.add_get("/ipfs/{cid}", ipfs)
    return app
