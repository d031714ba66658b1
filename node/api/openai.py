"""OpenAI's API: which route is answered by what. Under /v1 and without it: people give SDKs either as the base URL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from market.errors import ModelUnknown, OctoError, RequestInvalid
from market.talk import stop_tasks
from market.task import Mode
from node.api.answering import Answering, Prepare, Prepared
from node.api.audio import Audio
from node.api.batches import BatchesApi
from node.api.clerk import Clerk
from node.api.completions import Completions
from node.api.embeddings import Embeddings
from node.api.errors import error_body, unknown_error
from node.api.guard import CALLER
from node.api.images import Images
from node.api.limits import ApiLimits, read_body
from node.api.octo_facts import to_json
from node.api.openai_chunks import ChatForm, model_object, model_objects
from node.api.openai_shapes import parse_chat
from node.api.rerank import Rerank
from node.batches.records import Reply
from node.node import Node

log = structlog.get_logger()


class OpenAi:
    def __init__(self, node: Node, *, clerk: Clerk, answering: Answering, limits: ApiLimits) -> None:
        self._node = node
        self._clerk = clerk
        self._answering = answering
        self._limits = limits
        unhurried = self._clerk.for_mode(Mode.ASYNC)
        self._of_batches: Mapping[str, Prepare] = {
            "/v1/chat/completions": Chat(unhurried).prepare,
            "/v1/completions": Completions(unhurried).prepare,
        }
        self._embeddings = Embeddings(self._clerk, node)
        self._embeddings_of_batches = Embeddings(unhurried, node)
        self._batches = BatchesApi(node, limits=limits)
        self._audio = Audio(self._clerk, self._answering, limits=limits)

    def routes(self) -> list[web.RouteDef]:
        answered = self._answering.route
        return [
            route
            for base in ("/v1", "")
            for route in (
                *self._batches.routes(base),
                web.get(f"{base}/models", self.models),
                web.get(f"{base}/models/{{id:.+}}", self.model),
                web.post(f"{base}/chat/completions", answered(Chat(self._clerk).prepare)),
                web.post(f"{base}/completions", answered(Completions(self._clerk).prepare)),
                web.post(f"{base}/embeddings", self.embeddings),
                web.delete(f"{base}/embeddings", self.forget_embeddings),
                web.post(f"{base}/rerank", answered(Rerank(self._clerk).prepare)),
                web.post(f"{base}/audio/transcriptions", self._audio.transcribe),
                web.post(f"{base}/audio/translations", self._audio.translate),
                web.post(f"{base}/audio/speech", answered(self._audio.prepare_speech)),
                web.post(f"{base}/images/generations", answered(Images(self._clerk).prepare)),
            )
        ]

    @asynccontextmanager
    async def working_off(self, _app: web.Application) -> AsyncIterator[None]:
        """While the application runs, batches are worked off: from when the node is ready."""
        crew = asyncio.create_task(self._crew())
        try:
            yield
        finally:
            await stop_tasks(crew)

    async def _crew(self) -> None:
        while not self._node.status().get("ready", True):  # noqa: ASYNC110 - a node's readiness has no event
            await asyncio.sleep(0.2)
        await self._node.batches.run(self.line)

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        began_s = time.perf_counter()
        body = await read_body(request, self._limits)
        return await self._answering.respond(request, await self._embeddings.prepare(body, request[CALLER]), began_s)

    async def forget_embeddings(self, request: web.Request) -> web.Response:
        """Those that the caller bought and this node keeps. OpenAI's API keeps none."""
        kept = self._node.answers.vectors
        return web.json_response({"deleted": await kept.forget(request[CALLER]) if kept is not None else 0})

    async def line(self, endpoint: str, body: bytes, whose: str) -> Reply:
        """One line of a batch: what POSTing it would answer, and whether that may go better later."""
        try:
            if endpoint == "/v1/embeddings":
                prepared = await self._embeddings_of_batches.prepare(body, whose)
            else:
                prepared = await self._of_batches[endpoint](body)
            if prepared.stream:
                raise RequestInvalid("stream: the lines of a batch are answered whole.", param="stream")
            whole, outcomes = await self._answering.whole(prepared, whose)
        except OctoError as error:
            later = error.retry or isinstance(error, ModelUnknown)
            return Reply(status=error.http_status, body=to_json(error_body(error)), retry=later)
        except Exception:
            log.exception("line_failed", endpoint=endpoint)
            return Reply(status=500, body=to_json(error_body(unknown_error())))
        return Reply(
            status=200,
            body=whole.body,
            tokens_in=sum(outcome.tokens_in for outcome in outcomes),
            tokens_out=sum(outcome.tokens_out for outcome in outcomes),
            amount=sum(outcome.amount for outcome in outcomes),
        )

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


class Chat:
    """POST /v1/chat/completions."""

    def __init__(self, clerk: Clerk) -> None:
        self._clerk = clerk

    async def prepare(self, data: bytes) -> Prepared:
        asked = parse_chat(data)
        tool_form = await asked.form(self._clerk)
        orders = await asked.orders(self._clerk, tool_form)
        form = ChatForm(
            new_id=self._clerk.new_id,
            created=self._clerk.now(),
            model=asked.model,
            choices=len(orders),
            include_usage=asked.include_usage,
            tokenizer=await self._clerk.tokenizer(orders[0].model) if asked.logprobs else None,
            toolbox=asked.toolbox(tool_form),
        )
        return Prepared(orders=orders, form=form, stream=bool(asked.stream))
