"""The public, read-only content listener: public roots and their blocks, to anyone, within limits per address.

Lives here: `/ipfs/{cid}` (a file with ranges, or one raw block) and `/routing/v1/providers/{cid}`. Runs on a
port of its own, never on the private API's: it knows no key, no cookie, no CORS, and writes nothing.
Sources: https://specs.ipfs.tech/http-gateways/trustless-gateway/ , https://specs.ipfs.tech/routing/http-routing-v1/
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from inference.models.cid import DAG_CBOR, RAW, parse_cid
from inference.models.store import OpenFile, Store
from market.errors import BlockInvalid, ContentUnavailable, EncodingInvalid
from market.values import value

_log = structlog.get_logger()

_RAW_TYPE = "application/vnd.ipld.raw"
_PIECE_BYTES = 1024 * 1024
_WRITE_TIMEOUT_S = 60.0
_FOREVER = "public, max-age=29030400, immutable"


@value
class ContentLimits:
    """Per address (an IPv6 /64 counts as one), except `streams_total`. Requests beyond them get 429."""

    requests_per_s: float = 200.0
    burst: int = 400
    streams: int = 16
    streams_total: int = 256
    addresses: int = 10_000


def content_app(
    store: Store,
    *,
    limits: ContentLimits | None = None,
    advertised: Callable[[], Sequence[str]] = tuple,
    peer: str = "",
    clock: Callable[[], float] = time.monotonic,
) -> web.Application:
    """The listener's application. `advertised` gives the multiaddrs under which others reach it, `peer` our id."""
    door = _Door(limits or ContentLimits(), clock)
    content = _Content(store, door, advertised, peer)
    app = web.Application(middlewares=[door.middleware], client_max_size=1024)
    app.router.add_get("/ipfs/{cid}", content.ipfs)  # add_get answers HEAD too
    app.router.add_get("/routing/v1/providers/{cid}", content.providers)
    return app


class _Door:
    """Token bucket and stream count for each address; the oldest addresses are forgotten first."""

    def __init__(self, limits: ContentLimits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._streams: dict[str, int] = {}

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if not self._admit(_visitor(request)):
            raise _too_many()
        try:
            return await handler(request)
        except EncodingInvalid as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        except (ContentUnavailable, BlockInvalid):
            raise web.HTTPNotFound(text="This node does not serve that CID.\n") from None

    def _admit(self, visitor: str) -> bool:
        now, limits = self._clock(), self._limits
        tokens, then = self._buckets.pop(visitor, (float(limits.burst), now))
        tokens = min(float(limits.burst), tokens + (now - then) * limits.requests_per_s)
        self._buckets[visitor] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > limits.addresses:
            self._buckets.popitem(last=False)
        return tokens >= 1

    @asynccontextmanager
    async def stream(self, request: web.Request) -> AsyncIterator[None]:
        visitor = _visitor(request)
        own = self._streams.get(visitor, 0)
        if own >= self._limits.streams or sum(self._streams.values()) >= self._limits.streams_total:
            raise _too_many()
        self._streams[visitor] = own + 1
        try:
            yield
        finally:
            self._streams[visitor] -= 1
            if not self._streams[visitor]:
                del self._streams[visitor]


class _Content:
    def __init__(self, store: Store, door: _Door, advertised: Callable[[], Sequence[str]], peer: str) -> None:
        self._store = store
        self._door = door
        self._advertised = advertised
        self._peer = peer

    async def ipfs(self, request: web.Request) -> web.StreamResponse:
        cid = request.match_info["cid"]
        codec = parse_cid(cid).codec
        raw = request.query.get("format") == "raw" or _RAW_TYPE in request.headers.get("Accept", "")
        if request.query.get("format", "raw") != "raw":
            raise web.HTTPNotAcceptable(text="Only format=raw, or a whole file, is served here.\n")
        async with self._door.stream(request):
            if raw or codec == DAG_CBOR:
                return await self._block(request, cid)
            try:
                async with self._store.open_file(cid, public_only=True) as file:
                    return await self._file(request, cid, file)
            except ContentUnavailable:
                if codec != RAW:
                    raise
                return await self._block(request, cid)  # a leaf by itself is its own bytes

    async def _block(self, request: web.Request, cid: str) -> web.StreamResponse:
        data = await self._store.read_block(cid, public_only=True)
        headers = _headers(cid, raw=True)
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=data, content_type=_RAW_TYPE, headers=headers)

    async def _file(self, request: web.Request, cid: str, file: OpenFile) -> web.StreamResponse:
        headers = {**_headers(cid, raw=False), "Accept-Ranges": "bytes"}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        start, stop = _range(request, file.size_bytes)
        partial = stop - start != file.size_bytes or "Range" in request.headers
        if partial:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size_bytes}"
        response = web.StreamResponse(status=206 if partial else 200, headers=headers)
        response.content_type = "application/octet-stream"
        response.content_length = stop - start
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        try:
            for offset in range(start, stop, _PIECE_BYTES):
                piece = await file.read(offset, min(_PIECE_BYTES, stop - offset))
                async with asyncio.timeout(_WRITE_TIMEOUT_S):  # a reader that stopped reading frees its stream
                    await response.write(piece)
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        return response

    async def providers(self, request: web.Request) -> web.StreamResponse:
        """Who has a CID: ourselves, if we serve it. Clients ask for every leaf, so the answer is one look-up."""
        cid = request.match_info["cid"]
        found = []
        if await self._serves(cid):
            found.append(
                {
                    "Schema": "peer",
                    "ID": self._peer,
                    "Addrs": list(self._advertised()),
                    "Protocols": ["transport-ipfs-gateway-http"],
                }
            )
        if "application/x-ndjson" in request.headers.get("Accept", ""):
            lines = "".join(json.dumps(record) + "\n" for record in found)
            return web.Response(text=lines, content_type="application/x-ndjson")
        if not found:
            raise ContentUnavailable(f"{cid} is not served here.")
        return web.json_response({"Providers": found})

    async def _serves(self, cid: str) -> bool:
        return await self._store.in_thread(self._store.serves, cid)


def _headers(cid: str, *, raw: bool) -> dict[str, str]:
    name = f"{cid}.bin"
    return {
        "Cache-Control": _FOREVER,
        "ETag": f'"{cid}.raw"' if raw else f'"{cid}"',
        "Content-Disposition": f'attachment; filename="{name}"',  # never rendered by a browser
        "X-Content-Type-Options": "nosniff",
        "X-Ipfs-Path": f"/ipfs/{cid}",
        "Vary": "Accept",
    }


def _range(request: web.Request, size: int) -> tuple[int, int]:
    """(first byte, one after the last) of one range; anything else is 416."""
    try:
        start, stop, _ = request.http_range.indices(size)
    except ValueError:
        start = stop = size
    if start >= stop and ("Range" in request.headers):
        raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"})
    return start, stop


def _visitor(request: web.Request) -> str:
    try:
        address = ipaddress.ip_address(request.remote or "")
    except ValueError:
        return "unknown"
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


def _too_many() -> web.HTTPTooManyRequests:
    return web.HTTPTooManyRequests(headers={"Retry-After": "1"}, text="Too many requests from this address.\n")
