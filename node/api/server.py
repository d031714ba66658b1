"""The private HTTP API: one aiohttp application, one listener. What it answers is in the modules beside it.

Around every request, from the outside in: errors become HTTP, the guard checks who comes, the handler answers.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from market.errors import ModelUnknown, NodeMisconfigured, OctoError
from market.task import Privacy
from node.api.admin import Admin
from node.api.errors import error_response, http_refusal, unknown_error
from node.api.guard import OPEN_ROUTES, Guard, Handler
from node.api.limits import ApiLimits
from node.api.metrics import Metrics
from node.api.openai import OpenAi
from node.node import Node

_SHUTDOWN_TIMEOUT_S = 1.0  # aiohttp waits this long twice: to end by themselves, and after cancelling
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - names, to be replaced
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}

log = structlog.get_logger()


def create_api(
    node: Node,
    *,
    limits: ApiLimits | None = None,
    allowed_hosts: Sequence[str] = (),
    privacy: Privacy = Privacy.SHARED,
    random: Callable[[int], bytes] = os.urandom,
    now_s: Callable[[], float] = time.time,
) -> web.Application:
    """The application. `allowed_hosts` are further names under which this node may be reached; `privacy` holds for
    requests that name none. Serve it with `handler_cancellation=True`, as `open_api` does."""
    limits = limits or ApiLimits()
    metrics = Metrics()
    edge = _Edge(node, limits, metrics)
    guard = Guard(node, limits=limits, allowed_hosts=allowed_hosts, clock=time.monotonic)
    openai = OpenAi(node, limits=limits, metrics=metrics, privacy=privacy, random=random, now_s=now_s)
    app = web.Application(middlewares=[edge.middleware, guard.middleware], client_max_size=limits.body_bytes)
    app.add_routes([*openai.routes(), *Admin(node, metrics=metrics).routes()])
    app.on_response_prepare.append(_add_headers)
    return app


@asynccontextmanager
async def open_api(
    node: Node,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    limits: ApiLimits | None = None,
    allowed_hosts: Sequence[str] = (),
    privacy: Privacy = Privacy.SHARED,
) -> AsyncIterator[str]:
    """Listen until the end of the block; yields the base URL (`http://127.0.0.1:8080`, without /v1).

    Port 0 takes any free one. Raises NodeMisconfigured if the port is in use or the address is not ours.
    """
    names = allowed_hosts if host in _WILDCARDS else (*allowed_hosts, host)
    app = create_api(node, limits=limits, allowed_hosts=names, privacy=privacy)
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,  # a reader that hangs up ends its handler, and that ends its purchase
        shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, OverflowError) as error:
            raise _cannot_listen(error, host, port) from None
        bound_host, bound_port = runner.addresses[0][:2]
        url = _url(str(bound_host), int(bound_port))
        log.info("api_open", url=url)
        yield url
    finally:
        await runner.cleanup()


class _Edge:
    """The outermost middleware: answers what went wrong, counts and logs every request in one line."""

    def __init__(self, node: Node, limits: ApiLimits, metrics: Metrics) -> None:
        self._node = node
        self._limits = limits
        self._metrics = metrics

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        began_s = time.perf_counter()
        status = 499  # nginx's word for: the client closed the request
        try:
            response = await self._answer(request, handler)
            status = response.status
        finally:
            self._note(request, status, began_s)
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ModelUnknown as error:
            return error_response(error, on_offer=[model.name for model in self._node.catalog.on_offer()])
        except OctoError as error:
            return error_response(error)
        except web.HTTPException as error:
            return http_refusal(error, body_bytes=self._limits.body_bytes)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("request_failed", route=_route(request))
            return error_response(unknown_error())

    def _note(self, request: web.Request, status: int, began_s: float) -> None:
        route = _route(request)
        self._metrics.answered(route, status)
        if request.path not in OPEN_ROUTES:
            log.info(
                "http_request",
                method=request.method if route else "",
                route=route,
                status=status,
                ms=round((time.perf_counter() - began_s) * 1000),
            )


def _route(request: web.Request) -> str:
    """The route's pattern; empty if there is none: the path itself is the caller's text."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else ""


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    for name, text in _HEADERS.items():
        response.headers.setdefault(name, text)


def _cannot_listen(error: OSError | OverflowError, host: str, port: int) -> NodeMisconfigured:
    where = f"port {port} on {host}"
    if isinstance(error, OverflowError):
        return NodeMisconfigured(f"{port} is not a port.", next_step="Choose one from 0 to 65535 as api.port.")
    if error.errno == errno.EADDRINUSE:
        return NodeMisconfigured(
            f"{where} is in use by another program.",
            next_step="Stop it, or choose another port as api.port (OCTO_API__PORT); 0 takes any free one.",
        )
    if error.errno == errno.EACCES:
        return NodeMisconfigured(f"{where} is not allowed to us.", next_step="Choose a port above 1023 as api.port.")
    return NodeMisconfigured(
        f"cannot listen on {where}: {error.strerror or error}.",
        next_step="api.host (OCTO_API__HOST) should be an address of this machine.",
    )


def _url(host: str, port: int) -> str:
    host = _WILDCARDS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
