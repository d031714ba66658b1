"""The faucet that anvil has not: a door before a chain's endpoint. It answers octo_faucet, and hands on the rest.

So a node asks for play money in the same words on every devnet. Like the embedded chain it talks to programs on
this machine only: a browser sends an Origin, or a Host that is a name (DNS rebinding), and gets no answer.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from contracts.faucet import METHOD, Faucet
from market.errors import OctoError
from node.listening import open_site

BODY_LIMIT_BYTES = 1 << 20
TIMEOUT_S = 15.0
_LOCAL = {"127.0.0.1", "localhost", "::1"}
_REFUSED = -32000


class _Door:
    def __init__(self, session: aiohttp.ClientSession, url: str, faucet: Faucet) -> None:
        self._session = session
        self._url = url
        self._faucet = faucet

    async def handle(self, request: web.Request) -> web.Response:
        if (
            "Origin" in request.headers
            or urlsplit(f"//{request.host}").hostname not in _LOCAL
            or request.content_type != "application/json"
        ):
            return web.json_response(_error(None, "for programs on this machine only"), status=403)
        raw = await request.read()
        try:
            asked = json.loads(raw)
        except (ValueError, RecursionError):
            asked = None
        if isinstance(asked, dict) and asked.get("method") == METHOD:
            return web.json_response(await self._draw(asked))
        try:
            async with self._session.post(
                self._url, data=raw, headers={"Content-Type": "application/json"}, allow_redirects=False
            ) as answer:
                return web.Response(body=await answer.read(), status=answer.status, content_type="application/json")
        except (aiohttp.ClientError, TimeoutError, OSError):
            return web.Response(status=502)

    async def _draw(self, asked: dict[str, Any]) -> dict[str, Any]:
        params = asked.get("params")
        try:
            given = await self._faucet.answer(params[0] if isinstance(params, list) and params else None)
        except OctoError as error:
            return _error(asked.get("id"), str(error))
        return {"jsonrpc": "2.0", "id": asked.get("id"), "result": given}


def _error(number: Any, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "error": {"code": _REFUSED, "message": message}}


@asynccontextmanager
async def open_faucet_door(url: str, faucet: Faucet) -> AsyncIterator[str]:
    """A URL on loopback that serves the chain at `url` with `faucet` on top, until the end of the block."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        app = web.Application(client_max_size=BODY_LIMIT_BYTES)
        app.router.add_post("/", _Door(session, url, faucet).handle)
        async with open_site(app, host="127.0.0.1", ports=(0,), setting="chain") as door:
            yield door
