"""The private HTTP API: one aiohttp application, one listener. What it answers is in the modules beside it.

Around every request, from the outside in: errors become HTTP, the guard checks who comes, the handler answers.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from market.errors import ModelUnknown, OctoError
from market.task import Privacy
from node.api.admin import Admin
from node.api.answering import Answering
from node.api.chain import ChainApi
from node.api.clerk import Clerk
from node.api.errors import error_response, http_refusal, unknown_error
from node.api.guard import OPEN_ROUTES, Guard, Handler
from node.api.inference import InferenceApi
from node.api.kept import KeptApi
from node.api.limits import ApiLimits
from node.api.metrics import Metrics
from node.api.models import ModelsApi
from node.api.openai import OpenAi
from node.api.quantize import QuantizeApi
from node.listening import is_wildcard, open_site
from node.node import Node

_SHUTDOWN_TIMEOUT_S = 1.0  # aiohttp waits this long twice: to end by themselves, and after cancelling
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
    metrics = Metrics(node.counts)
    edge = _Edge(node, limits, metrics)
    guard = Guard(node, limits=limits, allowed_hosts=allowed_hosts, clock=time.monotonic)
    clerk = Clerk(node, privacy=privacy, random=random, now_s=now_s)
    answering = Answering(node, limits=limits, metrics=metrics)
    openai = OpenAi(node, clerk=clerk, answering=answering, limits=limits)
    app = web.Application(middlewares=[edge.middleware, guard.middleware], client_max_size=limits.body_bytes)
    chain = ChainApi(node, limits=limits)
    models = ModelsApi(node, limits=limits)
    app.add_routes([*openai.routes(), *Admin(node, metrics=metrics).routes(), *chain.routes(), *models.routes()])
    inference = InferenceApi(node, clerk=clerk, answering=answering, limits=limits)
    app.add_routes(inference.routes())
    app.add_routes([*QuantizeApi(node, limits=limits).routes(), *KeptApi(node).routes()])
    app.on_response_prepare.append(_add_headers)
    app.cleanup_ctx.append(openai.working_off)
    app.cleanup_ctx.append(inference.working_off)
    return app


@asynccontextmanager
async def open_api(
    node: Node,
    *,
    host: str = "127.0.0.1",
    ports: Sequence[int] = (8080,),
    limits: ApiLimits | None = None,
    allowed_hosts: Sequence[str] = (),
    privacy: Privacy = Privacy.SHARED,
) -> AsyncIterator[str]:
    """Listen until the end of the block; yields the base URL (`http://127.0.0.1:8080`, without /v1).

    The first free one of `ports` is taken; 0 is any. Raises NodeMisconfigured if none is free or the
    address is not ours.
    """
    names = allowed_hosts if is_wildcard(host) else (*allowed_hosts, host)
    app = create_api(node, limits=limits, allowed_hosts=names, privacy=privacy)
    async with open_site(app, host=host, ports=ports, setting="api") as url:
        log.info("api_open", url=url)
        yield url


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
