"""Events of a task on their way to one reader: over a WebSocket (RFC 6455), or as server-sent events.

A reader that stops reading is left after `write_timeout_s`; it may come again, with the number of the last event that
it saw. Nothing is taken from it: a socket that says anything is closed. Knows no queue.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, cast

import structlog
from aiohttp import WSCloseCode, web

from market.errors import RequestInvalid
from market.talk import stop_tasks
from node.api.answering import EVENT_STREAM
from node.api.errors import error_event, unknown_error
from node.api.limits import ApiLimits
from node.api.octo_facts import DONE

Event = Mapping[str, Any]
Events = AsyncIterator[Event | None]
"""None: nothing happened for a while."""

HEARTBEAT_S = 20.0
HEARD_LIMIT_BYTES = 1024

log = structlog.get_logger()


def after_of(request: web.Request) -> int:
    """The number after which a reader goes on: `?after=`, or what a browser sends by itself. Raises RequestInvalid."""
    text = request.query.get("after", request.headers.get("Last-Event-ID", "0"))
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise RequestInvalid("after should be the seq of an event.", param="after")
    return int(text)


async def follow(request: web.Request, limits: ApiLimits, events: Events) -> web.StreamResponse:
    async with aclosing(cast(AsyncGenerator[Event | None], events)):
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await _by_socket(request, limits, events)
        return await _by_stream(request, limits, events)


async def _by_stream(request: web.Request, limits: ApiLimits, events: Events) -> web.StreamResponse:
    response = web.StreamResponse(headers=EVENT_STREAM)
    await response.prepare(request)
    try:
        async for event in events:
            async with asyncio.timeout(limits.write_timeout_s):
                await response.write(_sent(event))
        await response.write(DONE)
    except (ConnectionError, TimeoutError) as error:
        log.info("reader_gone", why=type(error).__name__)
        if request.transport is not None:
            request.transport.abort()
    except Exception:
        log.exception("events_failed")
        await response.write(error_event(unknown_error()))
    return response


def _sent(event: Event | None) -> bytes:
    if event is None:
        return b": still at it\n\n"
    id = b"id: %d\n" % event["seq"] if "seq" in event else b""
    return id + b"data: " + _text(event).encode() + b"\n\n"


async def _by_socket(request: web.Request, limits: ApiLimits, events: Events) -> web.StreamResponse:
    socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=HEARD_LIMIT_BYTES, compress=False)
    await socket.prepare(request)
    telling = asyncio.create_task(_tell(request, socket, limits, events))
    try:
        async for message in socket:
            log.info("socket_spoke", kind=message.type.name)
            await socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"nothing is taken here")
    finally:
        await stop_tasks(telling)
    return socket


async def _tell(request: web.Request, socket: web.WebSocketResponse, limits: ApiLimits, events: Events) -> None:
    try:
        code = WSCloseCode.OK
        try:
            async for event in events:
                if event is not None:
                    async with asyncio.timeout(limits.write_timeout_s):
                        await socket.send_str(_text(event))
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            log.exception("events_failed")
            code = WSCloseCode.INTERNAL_ERROR
        async with asyncio.timeout(limits.write_timeout_s):
            await socket.close(code=code)
    except (ConnectionError, TimeoutError) as error:
        log.info("reader_gone", why=type(error).__name__)
        if request.transport is not None:
            request.transport.abort()  # a closing frame would wait behind all that it did not read


def _text(event: Event) -> str:
    return json.dumps(event, separators=(",", ":"))
