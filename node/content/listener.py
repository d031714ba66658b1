"""The public, read-only content listener: roots and blocks by CID, within limits per address.

    GET /ipfs/{cid}[/{path}]             a file (ranges, sendfile), a directory's names, or with format=raw one block
    GET /routing/v1/providers/{cid}      who has it: we, if we serve it
    GET /catalogs/{creator}/{name}       the newest signed catalog that we know

Lives here: which question gets which answer. Public roots are for everybody; the rest is for the holder of a ticket
whose peer `may_read`, and for nobody else even exists. It runs on a port of its own, never on the private API's: it
knows no key, no cookie, no CORS, and writes nothing.
Sources: https://specs.ipfs.tech/http-gateways/trustless-gateway/ , https://specs.ipfs.tech/routing/http-routing-v1/ ,
https://specs.ipfs.tech/http-gateways/path-gateway/
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import structlog
from aiohttp import web

from inference.models.cid import DAG_CBOR, RAW, Cid, parse_cid
from inference.models.paths import bring_with, find_entry, list_entries
from inference.models.store import Store
from market.errors import BlockInvalid, ContentUnavailable, EncodingInvalid
from node.content.asking import RAW_TYPE, attachment, content_path, form_of, names_in
from node.content.door import ContentLimits, Door, TooMany, visitor_of
from node.content.replies import FOREVER, UNSHARED, Reply, on_conditions, refuse, whole, with_headers
from node.content.sending import PATIENCE_S, send
from node.content.shelf import CatalogOf, Rule, no_catalog, nobody
from node.content.tickets import Tickets

log = structlog.get_logger()

_METHODS = ("GET", "HEAD")
_PROBE = "bafkqaaa"
"""The CID of nothing, its own identity: clients ask for it to learn whether this is a trustless gateway."""
_LISTING_BLOCKS = 256
"""Shards that one listing may read; a path into a larger directory still reads one per level."""
_LISTING_AGE = "public, max-age=604800"  # our own format: not for ever
_ROUTING_AGE = "public, max-age=60"
_NO_ROUTE_AGE = "public, max-age=15"
_CATALOG_AGE = "public, max-age=60"
_WALLET = re.compile(r"0x[0-9a-fA-F]{40}")
_CATALOG_NAME_LIMIT = 128
_NOT_HERE = "This node does not serve that CID.\n"


class Content:
    """One node's answers. `advertised` gives the multiaddrs under which others reach us, `peer` our id."""

    def __init__(
        self,
        store: Store,
        *,
        peer: str = "",
        advertised: Callable[[], Sequence[str]] = tuple,
        tickets: Tickets | None = None,
        may_read: Rule = nobody,
        catalog: CatalogOf = no_catalog,
        limits: ContentLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.door = Door(limits or ContentLimits(), clock)
        self._store = store
        self._peer = peer
        self._advertised = advertised
        self._tickets = tickets
        self._may_read = may_read
        self._catalog = catalog
        self._patience_s = patience_s

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Decide and send; the file and the stream's place are held until the last byte is out."""
        async with AsyncExitStack() as held:
            reply = await self._decide(request, held)
            return await send(request, reply, in_thread=self._store.in_thread, patience_s=self._patience_s)

    async def _decide(self, request: web.BaseRequest, held: AsyncExitStack) -> Reply:
        try:
            self.door.knock(visitor_of(request.remote))
            return await self._route(request, held)
        except TooMany as error:
            return refuse(429, "Too many requests from this address.\n", {"Retry-After": str(error.retry_s)})
        except EncodingInvalid as error:
            return refuse(400, f"{error}\n")
        except (ContentUnavailable, BlockInvalid):
            if "only-if-cached" in request.headers.get("Cache-Control", ""):
                return refuse(412, "")
            return refuse(404, _NOT_HERE)
        except Exception:
            log.exception("content_request_failed")
            return refuse(500, "Something went wrong here.\n")

    async def _route(self, request: web.BaseRequest, held: AsyncExitStack) -> Reply:
        path = request.rel_url.raw_path
        ours = path.startswith(("/ipfs/", "/routing/v1/providers/", "/catalogs/"))
        if not ours:
            return refuse(404, "There is nothing here but /ipfs, /routing/v1/providers and /catalogs.\n")
        if request.method not in _METHODS:
            return refuse(405, "This listener only reads.\n", {"Allow": ", ".join(_METHODS)})
        match names_in(path):
            case ("ipfs", root, *_) as names:
                return await self._ipfs(request, root, names, held)
            case ("routing", "v1", "providers", cid):
                return await self._providers(request, cid)
            case ("catalogs", creator, name):
                return await self._signed_catalog(request, creator, name)
        return refuse(404, "There is nothing here.\n")

    async def _ipfs(self, request: web.BaseRequest, root: str, names: tuple[str, ...], held: AsyncExitStack) -> Reply:
        form = form_of(request.query.get("format"), request.headers.get("Accept", ""))
        if form is None:
            return refuse(406, "Only format=raw, or a whole file, is served here.\n")
        if request.headers.get("Service-Worker") == "script":
            return refuse(400, "Nothing here is a service worker.\n")
        if root == _PROBE and len(names) == 2:
            return whole({"Content-Type": RAW_TYPE, "Cache-Control": FOREVER, "ETag": f'"{_PROBE}"'}, b"")
        shown = _Shown(self._store, content_path(names), public_only=not self._is_reader(request))
        held.enter_context(self.door.stream(visitor_of(request.remote)))
        cid = parse_cid(root)
        for name in names[2:]:
            shown.roots.append(cid)
            cid = await bring_with(find_entry(cid, name), shown.block)
        shown.roots.append(cid)
        negotiated = "format" not in request.query
        if form == "raw":
            reply, size = await shown.raw(cid, negotiated=negotiated)
        else:
            reply, size = await shown.plain(cid, names[-1] if len(names) > 2 else f"{cid}.bin", held)
        if negotiated:
            reply = with_headers(reply, Vary="Accept")
        return on_conditions(request.headers, reply, size)

    def _is_reader(self, request: web.BaseRequest) -> bool:
        """Whether the request carries a ticket of somebody who may read all. Anything else is as no ticket."""
        said = request.headers.getall("Authorization", [])
        if self._tickets is None or len(said) != 1:
            return False
        scheme, _, text = said[0].partition(" ")
        peer = self._tickets.check(text.strip()) if scheme.lower() == "bearer" else None
        return peer is not None and self._may_read(peer)

    async def _providers(self, request: web.BaseRequest, text: str) -> Reply:
        """Clients ask for every leaf, so the answer is one look-up."""
        cid = str(parse_cid(text))
        if not await self._store.in_thread(self._store.serves, cid):
            return refuse(404, _NOT_HERE, {"Cache-Control": _NO_ROUTE_AGE, "Vary": "Accept"})
        record = {
            "Schema": "peer",
            "ID": self._peer,
            "Addrs": list(self._advertised()),
            "Protocols": ["transport-ipfs-gateway-http"],
        }
        lines = "application/x-ndjson" in request.headers.get("Accept", "")
        body = json.dumps(record if lines else {"Providers": [record]}).encode() + b"\n"
        headers = {
            "Content-Type": "application/x-ndjson" if lines else "application/json",
            "Cache-Control": _ROUTING_AGE,
            "Vary": "Accept",
            "X-Content-Type-Options": "nosniff",
        }
        return whole(headers, body)

    async def _signed_catalog(self, request: web.BaseRequest, creator: str, name: str) -> Reply:
        if not _WALLET.fullmatch(creator) or len(name) > _CATALOG_NAME_LIMIT:
            raise EncodingInvalid("A catalog is named by its creator's wallet (0x and 40 hex digits) and a short name.")
        data = await self._catalog(bytes.fromhex(creator[2:]), name)
        headers = {
            "Content-Type": "application/vnd.ipld.dag-cbor",
            "Cache-Control": _CATALOG_AGE,
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "Content-Disposition": attachment(f"{name}.cbor"),
            "X-Content-Type-Options": "nosniff",
            "Accept-Ranges": "bytes",
        }
        return on_conditions(request.headers, whole(headers, data), len(data))


def content_app(store: Store, **options: Any) -> web.Application:
    """The same answers as an application, to be mounted in another server; `open_content` is the stricter way."""
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", Content(store, **options).answer)
    return app


class _Shown:
    """What one request may see of the store, and how it is labelled."""

    def __init__(self, store: Store, path: str, *, public_only: bool) -> None:
        self.roots: list[Cid] = []
        self._store = store
        self._path = path
        self._public_only = public_only
        self._blocks_read = 0

    async def block(self, cid: Cid) -> bytes:
        return await self._store.read_block(str(cid), public_only=self._public_only)

    async def raw(self, cid: Cid, *, negotiated: bool) -> tuple[Reply, int]:
        data = await self.block(cid)
        headers = self._headers(f'"{cid}.raw"', RAW_TYPE, f"{cid}.bin")
        if negotiated:  # so that a cache that ignores Vary still keeps blocks and files apart
            headers["Content-Location"] = f"{self._path}?format=raw"
        return whole(headers, data), len(data)

    async def plain(self, cid: Cid, name: str, held: AsyncExitStack) -> tuple[Reply, int]:
        """A file, a leaf by itself (its own bytes), a DAG-CBOR block, or the names in a directory."""
        kind = "application/vnd.ipld.dag-cbor" if cid.codec == DAG_CBOR else "application/octet-stream"
        headers = self._headers(f'"{cid}"', kind, name)
        if cid.codec != DAG_CBOR:
            opening = self._store.open_file(str(cid), public_only=self._public_only)
            try:
                file = await held.enter_async_context(opening)
            except ContentUnavailable:
                pass
            else:
                return Reply(status=200, headers=headers, file=file), file.size_bytes
        if cid.codec in (RAW, DAG_CBOR):
            data = await self.block(cid)
            return whole(headers, data), len(data)
        return await self._listing(cid)

    async def _listing(self, cid: Cid) -> tuple[Reply, int]:
        entries = await bring_with(list_entries(cid), self._counted_block)
        said = {"Path": self._path, "Entries": [{"Name": name, "Cid": str(below)} for name, below in entries.items()]}
        data = json.dumps(said).encode() + b"\n"
        headers = self._headers(f'"DirIndex-1_CID-{cid}"', "application/json", f"{cid}.json")
        if self._public_only:
            headers["Cache-Control"] = _LISTING_AGE
        return whole(headers, data), len(data)

    async def _counted_block(self, cid: Cid) -> bytes:
        self._blocks_read += 1
        if self._blocks_read > _LISTING_BLOCKS:
            raise ContentUnavailable("This directory is too large to list; ask for its files by path.")
        return await self.block(cid)

    def _headers(self, tag: str, kind: str, name: str) -> dict[str, str]:
        return {
            "Content-Type": kind,
            "Cache-Control": FOREVER if self._public_only else UNSHARED,
            "ETag": tag,
            "Accept-Ranges": "bytes",
            "Content-Disposition": attachment(name),
            "X-Content-Type-Options": "nosniff",
            "X-Ipfs-Path": self._path,
            "X-Ipfs-Roots": ",".join(str(root) for root in self.roots),
        }
