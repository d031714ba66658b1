"""OpenAI's API: GET /v1/models, POST /v1/chat/completions. From a request to orders, from events to an answer.

Nothing waits on the way to the first token: headers, the opening and the first piece leave in one write. Until
then no header is sent, so that what fails before it gets a status code of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import structlog
from aiohttp import web

from market.errors import ModelUnknown, OctoError
from market.reception import Outcome
from market.taking import Delta
from market.task import Privacy
from node.api.answers import Event, open_answers
from node.api.errors import error_event, too_many, unknown_error
from node.api.limits import ApiLimits, Slots, read_body
from node.api.metrics import Metrics
from node.api.openai_chunks import Answer, Form, model_object, model_objects
from node.api.openai_shapes import parse_chat
from node.node import Node

log = structlog.get_logger()

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold the stream back
}


class OpenAi:
    """`privacy` holds for requests that name none; `random` gives seeds and ids; `now_s` is Unix time."""

    def __init__(
        self,
        node: Node,
        *,
        limits: ApiLimits,
        metrics: Metrics,
        privacy: Privacy,
        random: Callable[[int], bytes],
        now_s: Callable[[], float],
    ) -> None:
        self._node = node
        self._limits = limits
        self._metrics = metrics
        self._slots = Slots(limits.requests)
        self._privacy = privacy
        self._random = random
        self._now_s = now_s

    def routes(self) -> list[web.RouteDef]:
        """Under /v1 and without it: people give SDKs either as the base URL."""
        return [
            route
            for base in ("/v1", "")
            for route in (
                web.get(f"{base}/models", self.models),
                web.get(f"{base}/models/{{id:.+}}", self.model),
                web.post(f"{base}/chat/completions", self.chat),
            )
        ]

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": model_objects(self._node.catalog.on_offer())})

    async def model(self, request: web.Request) -> web.Response:
        """One model, by name, CID or `default`."""
        name = request.match_info["id"]
        wanted = self._node.catalog.resolve(name)
        for model in self._node.catalog.on_offer():
            if model.model == wanted:
                return web.json_response(model_object(model, name=name))
        raise ModelUnknown("nobody offers that model now.", next_step="GET /v1/models lists what is on offer.")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        began_s = time.perf_counter()
        asked = parse_chat(await read_body(request, self._limits))
        model = self._node.catalog.resolve(asked.model)
        orders = asked.orders(model, privacy=self._privacy, random=self._random)
        form = Form(
            id=f"chatcmpl-{self._random(12).hex()}",
            created=int(self._now_s()),
            model=asked.model,
            choices=len(orders),
            include_usage=asked.include_usage,
        )
        with self._slots.slot() as room:
            if not room:
                return too_many(f"{self._limits.requests} requests are under way, the most that this node takes.")
            async with open_answers(self._node.buyer, orders) as answers:
                events = self._counted(answers, began_s)
                if asked.stream:
                    return await self._stream(request, form, events)
                return await self._whole(form, events, choices=len(orders))

    async def _counted(self, events: AsyncIterator[Event], began_s: float) -> AsyncIterator[Event]:
        first = True
        async for index, item in events:
            if first:
                self._metrics.first_token(time.perf_counter() - began_s)
                first = False
            if isinstance(item, Outcome):
                self._metrics.bought(item.tokens_in, item.tokens_out)
                log.info(
                    "answered",
                    model=item.model,
                    provider=item.provider,
                    receipt=item.receipt,
                    tokens_in=item.tokens_in,
                    tokens_out=item.tokens_out,
                    amount=item.amount,
                    first_token_ms=item.first_token_ms,
                    total_ms=item.total_ms,
                )
            yield index, item

    # ---- at once ----

    async def _whole(self, form: Form, events: AsyncIterator[Event], *, choices: int) -> web.Response:
        texts: list[list[str]] = [[] for _ in range(choices)]
        outcomes: dict[int, Outcome] = {}
        async for index, item in events:
            if isinstance(item, Delta):
                texts[index].append(item.text)
            else:
                outcomes[index] = item
        answers = [Answer(text="".join(texts[index]), outcome=outcomes[index]) for index in range(choices)]
        headers = {
            "x-octo-receipt": ", ".join(answer.outcome.receipt for answer in answers),
            "x-octo-provider": ", ".join(answer.outcome.provider for answer in answers),
        }
        return web.json_response(form.whole(answers), headers=headers)

    # ---- as a stream ----

    async def _stream(self, request: web.Request, form: Form, events: AsyncIterator[Event]) -> web.StreamResponse:
        first = await anext(events)
        response = web.StreamResponse(headers=_STREAM_HEADERS)
        await response.prepare(request)
        try:
            await self._write(response, await self._pieces(response, form, first, events))
        except (ConnectionError, TimeoutError) as error:
            # Nobody reads: leaving cancels the purchase. A reader that stopped reading frees its slot, too.
            log.info("reader_gone", why=type(error).__name__)
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _pieces(
        self, response: web.StreamResponse, form: Form, first: Event, events: AsyncIterator[Event]
    ) -> bytes:
        """Write the answer as it comes; returns what stands at its end. Raises for a reader that is gone or stuck."""
        outcomes: dict[int, Outcome] = {}
        try:
            await self._write(response, form.opening() + _piece(form, *first, outcomes))
            async for index, item in events:
                await self._write(response, _piece(form, index, item, outcomes))
        except (ConnectionError, TimeoutError):
            raise
        except OctoError as error:
            log.info("answer_broke_off", code=error.code, fault=error.fault)
            return error_event(error)
        except Exception:
            log.exception("answer_failed")
            return error_event(unknown_error())
        return form.closing([outcomes[index] for index in sorted(outcomes)])

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        """Each piece leaves at once: aiohttp waits only for a reader that is 64 KiB behind."""
        if data:
            async with asyncio.timeout(self._limits.write_timeout_s):
                await response.write(data)


def _piece(form: Form, index: int, item: Delta | Outcome, outcomes: dict[int, Outcome]) -> bytes:
    if isinstance(item, Outcome):
        outcomes[index] = item
        return form.finish(index, item)
    return form.delta(index, item.text) if item.text else b""  # a token whose text is still held back
