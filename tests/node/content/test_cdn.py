"""A cache in front of the content listener: nginx where it is installed, and the rules of RFC 9111 in a few lines."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from inference.models.store import Store
from market.identity import PeerId
from node.clock import SystemClock
from node.content.tickets import Tickets
from tests.inference.models.store_kit import put
from tests.node.content.kit import ABSENT, DATA, LEAF, add_folder, ask, listening

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin") or shutil.which("nginx")


class Cache:
    """What a shared cache may keep: what says `public` and an age, by URL and by what Vary names; nothing else."""

    def __init__(self, origin: str, http: aiohttp.ClientSession) -> None:
        self.asked: list[str] = []
        self._origin = origin
        self._http = http
        self._kept: dict[str, list[tuple[dict[str, str], tuple[int, dict[str, str], bytes]]]] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        for varied, (status, headers, body) in self._kept.get(request.path_qs, []):
            if all(request.headers.get(name, "") == text for name, text in varied.items()):
                return _part(request, status, headers, body)
        self.asked.append(request.path_qs)
        passed = {k: v for k, v in request.headers.items() if k in ("Accept", "Authorization")}
        async with self._http.get(self._origin + request.path_qs, headers=passed) as response:
            status, headers, body = response.status, dict(response.headers), await response.read()
        said = headers.get("Cache-Control", "")
        if re.search(r"\bpublic\b", said) and int(re.findall(r"max-age=(\d+)", said)[0]) > 0:
            names = [name.strip() for name in headers.get("Vary", "").split(",") if name.strip()]
            varied = {name: request.headers.get(name, "") for name in names}
            self._kept.setdefault(request.path_qs, []).append((varied, (status, headers, body)))
        return _part(request, status, headers, body)


def _part(request: web.Request, status: int, headers: dict[str, str], body: bytes) -> web.Response:
    kept = {k: v for k, v in headers.items() if k in ("ETag", "Content-Type", "Cache-Control")}
    span = request.http_range if status == 200 else slice(None)
    if span == slice(None) or span.start is None:
        return web.Response(status=status, headers=kept, body=body)
    return web.Response(status=206, headers=kept, body=body[span])


@asynccontextmanager
async def caching(origin: str) -> AsyncIterator[tuple[str, Cache]]:
    async with aiohttp.ClientSession() as http:
        cache, app = Cache(origin, http), web.Application()
        app.router.add_get("/{any:.*}", cache.answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}", cache
        finally:
            await runner.cleanup()


async def test_a_cache_answers_the_second_time_ranges_too_and_keeps_blocks_and_files_apart(
    store: Store, tmp_path: Path
) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    folder = await add_folder(store, {"a.gguf": root}, public=True)
    async with listening(store) as origin, caching(origin) as (url, cache):
        for _ in range(2):
            for target in (f"/ipfs/{root}", f"/ipfs/{folder}/a.gguf"):
                assert (await ask(url, target)).body == DATA
                assert (await ask(url, target, headers={"Range": "bytes=5-9"})).body == DATA[5:10]
            raw = await ask(url, f"/ipfs/{root}", headers={"Accept": "application/vnd.ipld.raw"})
            assert raw.body == await store.read_block(root)
            assert (await ask(url, f"/ipfs/{LEAF}?format=raw")).status == 200
            assert (await ask(url, f"/routing/v1/providers/{root}")).status == 200
        assert len(cache.asked) == len(set(cache.asked)) + 1  # /ipfs/{root} twice: for either Accept


async def test_a_cache_keeps_neither_what_a_ticket_opened_nor_that_something_was_not_there(
    store: Store, tmp_path: Path
) -> None:
    root = await put(store, tmp_path, DATA)
    tickets = Tickets(b"s" * 32, SystemClock())
    ticket = {"Authorization": f"Bearer {tickets.issue(PeerId('friend'))}"}
    async with listening(store, tickets=tickets, may_read=lambda _: True) as origin, caching(origin) as (url, _):
        for _ in range(2):
            assert (await ask(url, f"/ipfs/{root}")).status == 404
            assert (await ask(url, f"/ipfs/{root}", headers=ticket)).body == DATA
            assert (await ask(url, f"/ipfs/{ABSENT}")).status == 404
        await store.set_public(root)
        assert (await ask(url, f"/ipfs/{root}")).body == DATA


_CONFIG = """
daemon off; error_log {folder}/error.log; pid {folder}/pid; worker_processes 1; {user}
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  proxy_cache_path {folder}/cache keys_zone=k:1m;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      slice 1m;
      proxy_cache k; proxy_cache_key $uri$is_args$args$slice_range; proxy_set_header Range $slice_range;
      proxy_http_version 1.1; proxy_pass {origin}; add_header X-Cache $upstream_cache_status always;
    }}
  }}
}}
"""


@asynccontextmanager
async def nginx(origin: str, folder: Path) -> AsyncIterator[str]:
    """A real nginx that fetches and keeps slices of 1 MiB, as a CDN does with large files."""
    assert NGINX is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=port, origin=origin, user=user))
    process = await asyncio.create_subprocess_exec(NGINX, "-p", str(folder), "-c", str(config))
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except ConnectionError:
                    await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.heavy
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx-light)")
async def test_nginx_in_front_serves_ranges_from_slices_that_it_fetched_once(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    async with listening(store) as origin, nginx(origin, tmp_path / "nginx") as url:
        first = await ask(url, f"/ipfs/{root}")
        assert (first.status, first.body, first.headers["x-cache"]) == (200, DATA, "MISS")
    async with listening(store) as origin, nginx(origin, tmp_path / "nginx2") as url:
        assert (await ask(url, f"/ipfs/{root}", headers={"Range": "bytes=1048570-1048580"})).status == 206
        assert (await ask(url, f"/ipfs/{root}")).body == DATA
        await store.remove(root)  # from here on only the cache has it
        assert (await ask(origin, f"/ipfs/{root}")).status == 404
        again = await ask(url, f"/ipfs/{root}")
        assert (again.body, again.headers["x-cache"]) == (DATA, "HIT")
        part = await ask(url, f"/ipfs/{root}", headers={"Range": "bytes=1048570-1048580"})
        assert (part.status, part.body, part.headers["x-cache"]) == (206, DATA[1048570:1048581], "HIT")
        assert (await ask(url, f"/ipfs/{root}", headers={"If-None-Match": first.headers["etag"]})).status == 304
        assert (await ask(url, f"/ipfs/{ABSENT}")).status == 404
