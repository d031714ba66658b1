"""A request's way from orders to an answer: room, purchase, counting; then all at once, or as a stream.

Nothing waits on the way to the first piece: headers, the opening and the first piece leave in one write. Until
then no header is sent, so that what fails before it gets a status code of its own. Knows HTTP, not what is said.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog
from aiohttp import web

from market.buyer import Order, WorkOrder
from market.errors import OctoError
from market.reception import Outcome
from market.taking import Part, Shown
from market.work import Work, work_of
from node.api.answers import Answer, Event, gathered, open_answers
from node.api.errors import error_event, too_many, unknown_error
from node.api.guard import CALLER
from node.api.limits import ApiLimits, Slots, read_body
from node.api.metrics import Metrics
from node.node import Node

log = structlog.get_logger()

EVENT_STREAM: Mapping[str, str] = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold the stream back
}
_INLINE_BYTES = 256 * 1024
"""Larger answers are written down in a thread: 1 MB of base64 in JSON takes some milliseconds."""


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer all at once."""

    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class Form(Protocol):
    """How what was bought is told: `whole` all at once, the rest in a stream, piece by piece."""

    stream_headers: Mapping[str, str]

    def whole(self, answers: Sequence[Answer]) -> Whole: ...

    def opening(self) -> bytes: ...

    def piece(self, index: int, shown: Shown) -> bytes:
        """Nothing for a piece that shows nothing yet."""

    def finish(self, index: int, outcome: Outcome) -> bytes: ...

    def closing(self, outcomes: Sequence[Outcome]) -> bytes: ...

    def broken(self, error: OctoError) -> bytes | None:
        """How a stream that had begun tells of an error; None: by ending without its end."""


class WholeOnly:
    """For forms that never stream."""

    stream_headers: Mapping[str, str] = {}

    def opening(self) -> bytes:
        return b""

    def piece(self, index: int, shown: Shown) -> bytes:  # noqa: ARG002 - the port's shape
        return b""

    def finish(self, index: int, outcome: Outcome) -> bytes:  # noqa: ARG002
        return b""

    def closing(self, outcomes: Sequence[Outcome]) -> bytes:  # noqa: ARG002
        return b""

    def broken(self, error: OctoError) -> bytes | None:  # noqa: ARG002
        return None


Settle = Callable[[Sequence[Answer]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request, understood: what is bought for it (nothing, if all is known) and how it is told."""

    orders: Sequence[Order | WorkOrder]
    form: Form
    stream: bool = False
    settle: Settle | None = None
    """Hears of all answers before they are told; for forms that do not stream."""


class Watch(Protocol):
    """Somebody who looks on while an answer is gathered."""

    def shown(self, index: int, item: Shown) -> None: ...

    def progress(self, percent: int) -> None:
        """What the provider says of itself."""


Prepare = Callable[[bytes], Awaitable[Prepared]]
"""From a JSON body; raises RequestInvalid or ModelUnknown."""


class Answering:
    def __init__(self, node: Node, *, limits: ApiLimits, metrics: Metrics) -> None:
        self._node = node
        self._limits = limits
        self._metrics = metrics
        self._slots = Slots(limits.requests)

    def route(self, prepare: Prepare) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """The handler of a route whose requests are JSON."""

        async def handler(request: web.Request) -> web.StreamResponse:
            began_s = time.perf_counter()
            return await self.respond(request, await prepare(await read_body(request, self._limits)), began_s)

        return handler

    async def respond(self, request: web.Request, prepared: Prepared, began_s: float) -> web.StreamResponse:
        with self._slots.slot() as room:
            if not room:
                return too_many(f"{self._limits.requests} requests are under way, the most that this node takes.")
            async with self._open(prepared.orders, began_s, request[CALLER]) as events:
                if prepared.stream:
                    return await self._stream(request, prepared.form, events)
                answers = await gathered(events, choices=len(prepared.orders))
        whole = await _written(prepared, answers)
        return web.Response(
            body=whole.body,
            content_type=whole.content_type,
            charset="utf-8" if whole.content_type.startswith(("text/", "application/json")) else None,
            headers={**octo_headers([answer.outcome for answer in answers]), **whole.headers},
        )

    async def whole(
        self, prepared: Prepared, whose: str, watch: Watch | None = None
    ) -> tuple[Whole, Sequence[Outcome]]:
        """The same without HTTP, and beside the slots: whoever calls keeps to a limit of its own. `whose` is
        `node.api.guard.CALLER`."""
        async with self._open(prepared.orders, time.perf_counter(), whose, watch) as events:
            answers = await gathered(_watched(events, watch), choices=len(prepared.orders))
        return await _written(prepared, answers), [answer.outcome for answer in answers]

    @asynccontextmanager
    async def _open(
        self, orders: Sequence[Order | WorkOrder], began_s: float, whose: str, watch: Watch | None = None
    ) -> AsyncIterator[AsyncIterator[Event]]:
        orders = [replace(order, whose=whose) for order in orders]
        async with open_answers(self._node.buyer, orders, watch.progress if watch else None) as events:
            yield self._counted(events, orders, began_s)

    async def _counted(
        self, events: AsyncIterator[Event], orders: Sequence[Order | WorkOrder], began_s: float
    ) -> AsyncIterator[Event]:
        first = True
        async for index, item in events:
            order = orders[index]
            work = work_of(order.request) if isinstance(order, WorkOrder) else Work.CHAT
            if first:
                if work is Work.CHAT:
                    self._metrics.first_token(time.perf_counter() - began_s)
                first = False
            if isinstance(item, Outcome):
                self._metrics.bought(work, item.tokens_in, item.tokens_out)
                log.info(
                    "answered",
                    work=str(work),
                    model=item.model,
                    provider=item.provider,
                    receipt=item.receipt,
                    units_in=item.tokens_in,
                    units_out=item.tokens_out,
                    amount=item.amount,
                    first_ms=item.first_token_ms,
                    total_ms=item.total_ms,
                )
            yield index, item

    # ---- as a stream ----

    async def _stream(self, request: web.Request, form: Form, events: AsyncIterator[Event]) -> web.StreamResponse:
        first = await anext(events)
        response = web.StreamResponse(headers=form.stream_headers)
        await response.prepare(request)
        try:
            await self._pieces(request, response, form, first, events)
        except (ConnectionError, TimeoutError) as error:
            # Nobody reads: leaving cancels the purchase. A reader that stopped reading frees its slot, too.
            log.info("reader_gone", why=type(error).__name__)
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _pieces(
        self,
        request: web.Request,
        response: web.StreamResponse,
        form: Form,
        first: Event,
        events: AsyncIterator[Event],
    ) -> None:
        """Write the answer as it comes. Raises for a reader that is gone or stuck."""
        outcomes: dict[int, Outcome] = {}
        try:
            await self._write(response, form.opening() + _piece(form, *first, outcomes))
            async for index, item in events:
                await self._write(response, _piece(form, index, item, outcomes))
            last: bytes | None = form.closing([outcomes[index] for index in sorted(outcomes)])
        except (ConnectionError, TimeoutError):
            raise
        except OctoError as error:
            log.info("answer_broke_off", code=error.code, fault=error.fault)
            last = form.broken(error)
        except Exception:
            log.exception("answer_failed")
            last = form.broken(unknown_error())
        if last is not None:
            await self._write(response, last)
        elif request.transport is not None:
            request.transport.abort()  # sound that just ended would pass for all of it

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        """Each piece leaves at once: aiohttp waits only for a reader that is 64 KiB behind."""
        if data:
            async with asyncio.timeout(self._limits.write_timeout_s):
                await response.write(data)


async def _watched(events: AsyncIterator[Event], watch: Watch | None) -> AsyncIterator[Event]:
    async for index, item in events:
        if watch is not None and not isinstance(item, Outcome):
            watch.shown(index, item)
        yield index, item


async def _written(prepared: Prepared, answers: Sequence[Answer]) -> Whole:
    form = prepared.form
    if prepared.settle is not None:
        await prepared.settle(answers)
    size = sum(len(item.data) for answer in answers for item in answer.shown if isinstance(item, Part))
    if size <= _INLINE_BYTES:
        return form.whole(answers)
    return await asyncio.to_thread(form.whole, answers)


def _piece(form: Form, index: int, item: Shown | Outcome, outcomes: dict[int, Outcome]) -> bytes:
    if isinstance(item, Outcome):
        outcomes[index] = item
        return form.finish(index, item)
    return form.piece(index, item)


def octo_headers(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The receipt, who served it and what it cost, for who does not look into the body."""
    if not outcomes:  # nothing was bought
        return {"x-octo-amount": "0"}
    return {
        "x-octo-receipt": ", ".join(outcome.receipt for outcome in outcomes),
        "x-octo-provider": ", ".join(outcome.provider for outcome in outcomes),
        "x-octo-amount": str(sum(outcome.amount for outcome in outcomes)),
    }


def told_as_event(error: OctoError) -> bytes:
    """`Form.broken` of every stream of server-sent events."""
    return error_event(error)
