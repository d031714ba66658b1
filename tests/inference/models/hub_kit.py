"""A model hub and its CDN on loopback, and a plain web server, all of which can misbehave.

The routes and headers are those that huggingface_hub asks for (test_hub.py holds them against the real library).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from inference.models.remote import Patience
from inference.models.web_client import Web, open_web

COMMIT = "c0ffee" * 6 + "beef"
QUICK = Patience(tries=4, pause_s=0.01, longest_wait_s=5.0)
TOKEN = "hf_" + "Secret0123456789" * 2
MIB = 1024 * 1024


@dataclass
class Fault:
    """What goes wrong with one answer: another status, the body cut after some bytes or slow, headers replaced."""

    status: int = 0
    cut_after: int | None = None
    pause_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    endless: bool = False


@dataclass
class Asked:
    """A request as a server saw it."""

    host: str
    path: str
    range: str
    authorization: str


Faults = Callable[[int, web.Request], Fault | None]


class FileHost:
    """Serves bytes by path, with ranges. `faults` gets the number of the request (from 0) and may spoil its answer."""

    def __init__(self, *, ranges: bool = True, lengths: bool = True) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.faults: Faults = lambda number, request: None
        self.asked: list[Asked] = []
        self.sent_bytes = 0
        self._ranges = ranges
        self._lengths = lengths

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.answer)
        return app

    def note(self, request: web.Request) -> int:
        headers = request.headers
        self.asked.append(
            Asked(request.host, request.path_qs, headers.get("Range", ""), headers.get("Authorization", ""))
        )
        return len(self.asked) - 1

    async def answer(self, request: web.Request) -> web.StreamResponse:
        number = self.note(request)
        path = request.match_info["path"]
        if path not in self.files:
            return web.Response(status=404)
        return await self.send(request, self.files[path], self.etags.get(path, ""), self.faults(number, request))

    async def send(self, request: web.Request, data: bytes, etag: str, fault: Fault | None) -> web.StreamResponse:
        fault = fault or Fault()
        if fault.status:
            return web.Response(status=fault.status, headers=fault.headers, text="x" * 100)
        etag = etag or '"' + hashlib.sha256(data).hexdigest()[:16] + '"'
        headers, status = {"ETag": etag}, 200
        asked = request.http_range if self._ranges else slice(None)
        if asked.start is not None:
            if asked.start >= len(data):
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
            end = min(asked.stop or len(data), len(data))
            headers["Content-Range"] = f"bytes {asked.start}-{end - 1}/{len(data)}"
            data, status = data[asked.start : end], 206
        if self._lengths:
            headers["Content-Length"] = str(len(data))
        headers |= fault.headers
        response = web.StreamResponse(status=status, headers=headers)
        with contextlib.suppress(ConnectionError):  # the client may leave at any time
            await self._write(request, response, data, fault)
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes, fault: Fault) -> None:
        await response.prepare(request)
        cut = len(data) if fault.cut_after is None else fault.cut_after
        for start in range(0, cut, 256 * 1024):
            piece = data[start : min(start + 256 * 1024, cut)]
            await response.write(piece)
            self.sent_bytes += len(piece)
            await asyncio.sleep(fault.pause_s)
        while fault.endless:
            await response.write(bytes(MIB))
            self.sent_bytes += MIB
        if cut < len(data) and request.transport is not None:
            request.transport.abort()


class MockHub:
    """One repository, `owner/model`. Files over `lfs_from` bytes lie on the CDN behind signed URLs."""

    def __init__(self, files: dict[str, bytes], *, lfs_from: int = 1000) -> None:
        self.files = files
        self.commits = {"main": COMMIT, "v1": COMMIT, COMMIT: COMMIT}
        self.token = ""
        self.gated = False
        self.linked: dict[str, str] = {}
        self.cdn = FileHost()
        self.cdn_url = ""
        self.pages = FileHost()
        self.signatures: set[str] = set()
        self._lfs_from = lfs_from
        self._signed = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/models/{owner}/{name}/revision/{revision}", self._info)
        app.router.add_get("/{owner}/{name}/resolve/{revision}/{path:.*}", self._resolve)
        return app

    def cdn_app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/blob/{path:.*}", self._blob)
        return app

    def expire(self) -> None:
        """Every signed URL that is out there stops working."""
        self.signatures.clear()

    def listed(self, name: str) -> dict[str, object]:
        data = self.files[name]
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git}
        if len(data) >= self._lfs_from:
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _refusal(self, request: web.Request, *, metadata: bool) -> web.Response | None:
        if f"{request.match_info['owner']}/{request.match_info['name']}" != "owner/model":
            return web.Response(status=401, headers={"X-Error-Code": "RepoNotFound"})
        right = request.headers.get("Authorization") == f"Bearer {self.token}"
        if self.gated and not right and not metadata:
            return web.Response(status=401 if not self.token else 403, headers={"X-Error-Code": "GatedRepo"})
        if self.token and not right and not self.gated:
            return web.Response(status=401, headers={"X-Error-Code": "RepoNotFound"})
        if request.match_info["revision"] not in self.commits:
            return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        return None

    async def _info(self, request: web.Request) -> web.StreamResponse:
        fault = self.pages.faults(self.pages.note(request), request)
        if fault and fault.status:
            return web.Response(status=fault.status, headers=fault.headers)
        if refused := self._refusal(request, metadata=True):
            return refused
        answer: dict[str, object] = {"id": "owner/model", "modelId": "owner/model", "private": False, "tags": []}
        answer |= {"downloads": 0, "sha": self.commits[request.match_info["revision"]]}
        return web.json_response(answer | {"siblings": [self.listed(name) for name in self.files]})

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        fault = self.pages.faults(self.pages.note(request), request)
        if refused := self._refusal(request, metadata=False):
            return refused
        name = request.match_info["path"]
        if name not in self.files:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        entry = self.listed(name)
        linked = self.linked.get(name) or (entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"])  # type: ignore[index]
        headers = {"X-Repo-Commit": self.commits[request.match_info["revision"]]}
        headers |= {"X-Linked-Etag": f'"{linked}"', "X-Linked-Size": str(entry["size"])}
        if request.method == "HEAD":
            return web.Response(headers={**headers, "ETag": f'"{linked}"', "Content-Length": str(entry["size"])})
        if "lfs" not in entry:
            fault = fault or Fault()
            fault.headers |= headers
            return await self.pages.send(request, self.files[name], str(entry["blobId"]), fault)
        self._signed += 1
        signature = f"signature{self._signed}"
        self.signatures.add(signature)
        headers["Location"] = f"{self.cdn_url}/blob/{name}?X-Amz-Signature={signature}"
        return web.Response(status=302, headers=headers, text="Found. Redirecting")

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        number = self.cdn.note(request)
        fault = self.cdn.faults(number, request)
        if request.query.get("X-Amz-Signature") not in self.signatures:
            return web.Response(status=403, text="<Error>Request has expired</Error>")
        data = self.files[request.match_info["path"]]
        return await self.cdn.send(request, data, hashlib.sha256(data).hexdigest(), fault)


@asynccontextmanager
async def serving(
    app: web.Application, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A real server on loopback; yields its URL without a path."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, 0, ssl_context=tls).start()
        yield f"{'https' if tls else 'http'}://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving_hub(hub: MockHub) -> AsyncIterator[tuple[str, Web]]:
    """The hub's endpoint, its CDN under another port, and a client for both."""
    async with serving(hub.cdn_app()) as cdn, serving(hub.app()) as endpoint, open_web(silence_s=60.0) as client:
        hub.cdn_url = cdn
        yield endpoint, client
