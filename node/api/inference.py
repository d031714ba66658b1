"""/api/v1/inference: any kind of work, handed in once, durable from then on, asked after or listened to.

Lives here: the routes, and what a task becomes when its turn comes. The queue is `node.batches.task_desk`'s, the kinds
of work are `inference_request`'s. There are no webhooks: to call whatever URL a client names, a node would have to tell
strangers' servers from what stands behind its own firewall, by addresses that change between a look-up and a call.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from pydantic import Field

from market.errors import ModelUnknown, OctoError, RequestInvalid, StepNotAllowed
from market.talk import stop_tasks
from market.work import BLOB_LIMIT_BYTES, Work
from node.api.answering import Answering
from node.api.bodies import Shape, parse_body, parse_fields
from node.api.clerk import Clerk
from node.api.errors import error_body, refusal, too_many, unknown_error
from node.api.guard import CALLER
from node.api.inference_events import events_of, task_object
from node.api.inference_input import sort_out
from node.api.inference_request import Ask, InferenceBody, prepare
from node.api.inference_stream import after_of, follow
from node.api.inference_watch import TaskWatch
from node.api.limits import ApiLimits, Slots, read_body
from node.api.multipart import read_form
from node.api.octo_facts import to_json
from node.batches.records import Reply
from node.batches.task_book import Submitted
from node.batches.task_desk import TaskDesk
from node.batches.tasks import Task, TaskStatus
from node.batches.telling import Story
from node.node import Node

log = structlog.get_logger()

LIST_LIMIT = 100
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class _Form(Shape):
    """A form with the file beside it; `request` is what would be the body."""

    request: str = Field(min_length=2)


class InferenceApi:
    def __init__(self, node: Node, *, clerk: Clerk, answering: Answering, limits: ApiLimits) -> None:
        self._node = node
        self._clerk = clerk
        self._answering = answering
        self._limits = limits
        self._uploads = Slots(limits.uploads)
        self._listeners = Slots(limits.listeners)

    @property
    def _desk(self) -> TaskDesk:
        return self._node.batches.tasks

    def routes(self) -> list[web.RouteDef]:
        base = "/api/v1/inference"
        return [
            web.post(base, self.submit),
            web.get(base, self.tasks),
            web.get(f"{base}/{{id}}", self.task),
            web.delete(f"{base}/{{id}}", self.remove),
            web.post(f"{base}/{{id}}/cancel", self.cancel),
            web.get(f"{base}/{{id}}/content", self.content),
            web.get(f"{base}/{{id}}/stream", self.stream),
        ]

    # ---- handing in ----

    async def submit(self, request: web.Request) -> web.StreamResponse:
        if request.content_type == "multipart/form-data":
            with self._uploads.slot() as room:
                if not room:
                    return too_many(f"{self._limits.uploads} files are under way, the most that this node takes.")
                asked, submitted = await self._uploaded(request)
        else:
            asked = parse_body(InferenceBody, await read_body(request, self._limits))
            submitted = await self._submitted(request, asked, b"")
        if not submitted.same:
            return refusal(
                422,
                "idempotency_key_reused",
                "another request came with that Idempotency-Key.",
                next_step="Use a new key for a new request.",
            )
        return await self._answered(request, asked, submitted.task)

    async def _uploaded(self, request: web.Request) -> tuple[InferenceBody, Submitted]:
        """The slot holds until the file is on the disk."""
        file = bytearray()

        async def keep(data: bytes) -> None:
            file.extend(data)

        upload = await read_form(request, self._limits, keep, limit_bytes=BLOB_LIMIT_BYTES)
        if not upload.size:
            raise RequestInvalid("file: it is empty.", param="file")
        asked = parse_body(InferenceBody, parse_fields(_Form, upload.fields).request.encode())
        return asked, await self._submitted(request, asked, bytes(file))

    async def _submitted(self, request: web.Request, asked: InferenceBody, file: bytes) -> Submitted:
        """Understood as far as it can be, then on the disk. The same request under the same key is one task."""
        whose = request[CALLER]
        key = _key_of(request, whose)
        work, given, blob = sort_out(asked, file, self._works_of)
        kept = asked.kept(work, given)
        digest = hashlib.sha256(hashlib.sha256(kept).digest() + hashlib.sha256(blob).digest()).digest()
        if key is not None and (held := await self._desk.submitted(key, digest)) is not None:
            return held
        await prepare(self._ask(kept, blob, whose))
        return await self._desk.submit(
            work=str(work),
            model=asked.model,
            mode=asked.mode,
            whose=whose,
            request=kept,
            blob=blob,
            expires_in_s=asked.expires_in_s,
            metadata=asked.metadata,
            key=key,
            digest=digest,
        )

    async def _answered(self, request: web.Request, asked: InferenceBody, task: Task) -> web.StreamResponse:
        """202 for what is not done, unless the client stays to listen or to wait; that it hangs up ends nothing."""
        if not asked.stream and not asked.wait_s:
            return await self._told(task)
        with self._listeners.slot() as room:
            if not room:  # it is in the queue all the same
                return await self._told(task)
            if asked.stream:
                return await follow(request, self._limits, events_of(self._desk, task.id, 0))
            try:
                async with asyncio.timeout(asked.wait_s):
                    async for _ in events_of(self._desk, task.id, 0):
                        pass
            except TimeoutError:
                log.debug("waited_in_vain", task=task.id)
        return await self._told(await self._desk.task(task.id) or task)

    async def _told(self, task: Task) -> web.Response:
        headers = {"Location": f"/api/v1/inference/{task.id}"}
        status = 200 if task.is_over else 202
        return web.json_response(await task_object(self._desk, task), status=status, headers=headers)

    # ---- asking after, listening, leaving ----

    async def tasks(self, request: web.Request) -> web.Response:
        """The newest first."""
        text, status = request.query.get("limit", "20"), request.query.get("status", "")
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
        if not 1 <= limit <= LIST_LIMIT:
            raise RequestInvalid(f"limit should be a number from 1 to {LIST_LIMIT}.", param="limit")
        if status and status not in set(TaskStatus):
            raise RequestInvalid(f"status should be one of {', '.join(TaskStatus)}.", param="status")
        found = await self._desk.tasks(limit=limit + 1, after=request.query.get("after", ""), status=status)
        shown = [await task_object(self._desk, task, whole=False) for task in found[:limit]]
        return web.json_response({"object": "list", "data": shown, "has_more": len(found) > limit})

    async def task(self, request: web.Request) -> web.Response:
        task = await self._desk.task(request.match_info["id"])
        return _not_found() if task is None else web.json_response(await task_object(self._desk, task))

    async def content(self, request: web.Request) -> web.StreamResponse:
        """What came of it, as the /v1 route of that work answers it."""
        task = await self._desk.task(request.match_info["id"])
        if task is None:
            return _not_found()
        if task.status is not TaskStatus.DONE:
            return refusal(409, "not_now", f"the task is {task.status}: there is no result.")
        return web.FileResponse(self._desk.result(task), headers={"Content-Type": task.result_type})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """As a WebSocket, or as server-sent events."""
        id, after = request.match_info["id"], after_of(request)
        if await self._desk.task(id) is None:
            return _not_found()
        with self._listeners.slot() as room:
            if not room:
                return too_many(f"{self._limits.listeners} listen already, the most that this node takes.")
            return await follow(request, self._limits, events_of(self._desk, id, after))

    async def cancel(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        if await self._desk.task(id) is None:
            return _not_found()
        try:
            return web.json_response(await task_object(self._desk, await self._desk.cancel(id)))
        except StepNotAllowed as error:
            return refusal(409, "not_now", error.message)

    async def remove(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        if not await self._desk.remove(id):
            return _not_found()
        return web.json_response({"id": id, "object": "inference", "deleted": True})

    # ---- the crew ----

    @asynccontextmanager
    async def working_off(self, _app: web.Application) -> AsyncIterator[None]:
        """While the application runs, tasks are worked off: from when the node is ready."""
        crew = asyncio.create_task(self._crew())
        try:
            yield
        finally:
            await stop_tasks(crew)

    async def _crew(self) -> None:
        while not self._node.status().get("ready", True):  # noqa: ASYNC110 - a node's readiness has no event
            await asyncio.sleep(0.2)
        await self._desk.run(self.perform)

    async def perform(self, task: Task, request: bytes, blob: bytes, story: Story) -> Reply:
        """Buy what was asked for; what cannot be had yet may be had later."""
        try:
            prepared = await prepare(self._ask(request, blob, task.whose))
            watch = TaskWatch(story, prepared.orders)
            whole, outcomes = await self._answering.whole(prepared, task.whose, watch)
        except OctoError as error:
            later = error.retry or isinstance(error, ModelUnknown)
            return Reply(status=error.http_status, body=to_json(error_body(error)), retry=later)
        except Exception:
            log.exception("task_failed", task=task.id)
            return Reply(status=500, body=to_json(error_body(unknown_error())))
        return Reply(
            status=200,
            body=whole.body,
            content_type=whole.content_type,
            receipts=[outcome.receipt for outcome in outcomes],
            tokens_in=sum(outcome.tokens_in for outcome in outcomes),
            tokens_out=sum(outcome.tokens_out for outcome in outcomes),
            amount=sum(outcome.amount for outcome in outcomes),
        )

    def _ask(self, kept: bytes, blob: bytes, whose: str) -> Ask:
        body = parse_body(InferenceBody, kept)
        return Ask(node=self._node, clerk=self._clerk, body=body, blob=blob, whose=whose)

    def _works_of(self, name: str) -> Collection[Work]:
        """What the model is offered for now."""
        model = self._clerk.resolve(name)
        offers = (offered for checked in self._node.offers() for offered in checked.offer.models)
        return {work for offered in offers if offered.model == model for work in offered.works}


def _key_of(request: web.Request, whose: str) -> bytes | None:
    """Of the header Idempotency-Key; only its hash is kept, and each caller has keys of its own.

    Source: the IETF's draft "The Idempotency-Key HTTP Header Field"."""
    given = request.headers.getall("Idempotency-Key", [])
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise RequestInvalid(
            "Idempotency-Key: it should be 1 to 255 printable characters without spaces.", param="Idempotency-Key"
        )
    return hashlib.sha256(whose.encode() + b"\0" + given[0].encode()).digest()


def _not_found() -> web.Response:
    return refusal(
        404, "task_not_found", "this node holds no such task.", next_step="GET /api/v1/inference lists them."
    )
