"""The content listener on a port: one server whose connections are counted, bounded in time and quiet about itself.

Lives here: aiohttp's server, told to be stricter. A public port hears garbage all day: it is answered in one line, and
not logged with a stack trace each time as aiohttp would.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from node.content.door import visitor_of
from node.content.listener import Content
from node.listening import open_site

_REQUEST_S = 30.0
"""From the connection, or the end of the last answer, to the last header of the next request. An idle connection that a
proxy keeps open ends by the same clock."""
_LINE_LIMIT_BYTES = 4096
_FIELD_LIMIT_BYTES = 4096
_FIELDS_LIMIT = 64
_SHUTDOWN_TIMEOUT_S = 2.0


@asynccontextmanager
async def open_content(
    content: Content, *, host: str, ports: Sequence[int], request_s: float = _REQUEST_S
) -> AsyncIterator[str]:
    """Listen on the first free one of `ports` until the end of the block; yields the base URL.

    A request that is not whole after `request_s` ends its connection. Raises NodeMisconfigured.
    """
    runner = web.ServerRunner(_Server(content, request_s), shutdown_timeout=_SHUTDOWN_TIMEOUT_S)
    async with open_site(runner, host=host, ports=ports, setting="content") as url:
        yield url


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,  # noqa: ARG002 - as the library calls it
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """The answer to what is no HTTP; the connection ends with it. The message names the library: it stays here."""
        if request.writer.output_size:
            raise ConnectionResetError("an answer is on its way already")
        headers = {"Server": "octo-node", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        response = web.Response(status=status, text="That is no request.\n", headers=headers)
        response.force_close()
        return response


class _Server(web.Server):
    def __init__(self, content: Content, request_s: float) -> None:
        super().__init__(content.answer, handler_cancellation=True)
        self._door = content.door
        self._request_s = request_s
        self._visitors: dict[web.RequestHandler, str] = {}

    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # the library takes None, its annotation does not say so
            keepalive_timeout=self._request_s,
            max_line_size=_LINE_LIMIT_BYTES,
            max_field_size=_FIELD_LIMIT_BYTES,
            max_headers=_FIELDS_LIMIT,
            lingering_time=1.0,
            auto_decompress=False,
        )

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        peer = transport.get_extra_info("peername")
        visitor = visitor_of(peer[0] if peer else None)
        if self._door.enter(visitor):
            self._visitors[handler] = visitor
        else:
            transport.abort()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        visitor = self._visitors.pop(handler, None)
        if visitor is not None:
            self._door.leave(visitor)
