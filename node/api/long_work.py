"""An answer that takes long: server-sent events while it is worked on, the result at the end.

`{"progress": …}` a few times a second, then one `{"done": …}` or an error, then `[DONE]`. A caller that hangs up
cancels. Knows HTTP and shapes; what is done comes in as a function.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web

from inference.models.progress import OnProgress, Progress
from market.errors import OctoError
from node.api.errors import error_event, unknown_error
from node.api.limits import ApiLimits

_EVERY_S = 0.1
_QUIET_S = 15.0
"""A comment goes out when nothing happens for so long: a client's read does not time out meanwhile."""

log = structlog.get_logger()


async def answer_with_progress(
    request: web.Request, limits: ApiLimits, work: Callable[[OnProgress], Awaitable[Any]]
) -> web.StreamResponse:
    """Errors before the first event are plain HTTP errors, like everywhere."""
    latest = _Latest()
    task = asyncio.ensure_future(work(latest.put))
    try:
        await asyncio.wait([task, asyncio.ensure_future(latest.wait())], return_when=asyncio.FIRST_COMPLETED)
        if task.done() and task.exception() is not None:
            task.result()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        await response.prepare(request)
        async for event in _events(task, latest):
            async with asyncio.timeout(limits.write_timeout_s):
                await response.write(event)
    except (ConnectionError, TimeoutError) as error:
        log.info("reader_gone", why=type(error).__name__)
        if request.transport is not None:
            request.transport.abort()
    finally:
        latest.put(None)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    return response


class _Latest:
    """The newest progress; what nobody read in time is overwritten."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._progress: Progress | None = None

    def put(self, progress: Progress | None) -> None:
        self._progress = progress
        self._news.set()

    async def wait(self) -> None:
        await self._news.wait()

    def take(self) -> Progress | None:
        self._news.clear()
        progress, self._progress = self._progress, None
        return progress


async def _events(task: asyncio.Future[Any], latest: _Latest) -> AsyncIterator[bytes]:
    while not task.done():
        news = asyncio.ensure_future(latest.wait())
        done, _ = await asyncio.wait([task, news], timeout=_QUIET_S, return_when=asyncio.FIRST_COMPLETED)
        news.cancel()
        if not done:
            yield b": still at it\n\n"
        elif (progress := latest.take()) is not None:
            yield _event({"progress": _progress(progress)})
            await asyncio.wait([task], timeout=_EVERY_S)
    try:
        yield _event({"done": task.result()})
    except OctoError as error:
        yield error_event(error)
    except Exception:
        log.exception("model_work_failed")
        yield error_event(unknown_error())
    yield b"data: [DONE]\n\n"


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "what": progress.what,
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
        "rate_bytes_per_s": progress.rate_bytes_per_s,
        "eta_s": progress.eta_s,
        "sources": dict(progress.sources),
    }


def _event(told: Any) -> bytes:
    return b"data: " + json.dumps(told, separators=(",", ":")).encode() + b"\n\n"
