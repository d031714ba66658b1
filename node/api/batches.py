"""POST /v1/files and POST /v1/batches: requests handed in as a file, worked off in the mode `async`, and polled.

Source: OpenAI's API reference, "Files" and "Batch". What becomes of them is `node.batches.desk`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from aiohttp import web
from pydantic import Field

from market.errors import RequestInvalid, StepNotAllowed
from node.api.bodies import Shape, parse_body, parse_fields
from node.api.errors import refusal, too_many
from node.api.guard import CALLER
from node.api.limits import ApiLimits, Slots, read_body
from node.api.multipart import read_form
from node.batches.desk import BatchDesk
from node.batches.records import Batch, Status, StoredFile
from node.node import Node

R = TypeVar("R", Batch, StoredFile)

LIST_LIMIT = 1_000
_Small = Annotated[str, Field(max_length=512)]


class _Expiry(Shape):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3_600, le=2_592_000)]


class FileBody(Shape):
    purpose: Literal["batch"]
    expires_after: _Expiry | None = None


class BatchBody(Shape):
    input_file_id: Annotated[str, Field(min_length=1, max_length=128)]
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], _Small], Field(max_length=16)] | None = None


class BatchesApi:
    def __init__(self, node: Node, *, limits: ApiLimits) -> None:
        self._node = node
        self._limits = limits
        self._uploads = Slots(limits.uploads)

    @property
    def _desk(self) -> BatchDesk:
        return self._node.batches

    def routes(self, base: str) -> list[web.RouteDef]:
        return [
            web.post(f"{base}/files", self.upload),
            web.get(f"{base}/files", self.files),
            web.get(f"{base}/files/{{id}}", self.file),
            web.delete(f"{base}/files/{{id}}", self.remove_file),
            web.get(f"{base}/files/{{id}}/content", self.content),
            web.post(f"{base}/batches", self.create),
            web.get(f"{base}/batches", self.batches),
            web.get(f"{base}/batches/{{id}}", self.batch),
            web.post(f"{base}/batches/{{id}}/cancel", self.cancel),
        ]

    # ---- files ----

    async def upload(self, request: web.Request) -> web.Response:
        with self._uploads.slot() as room:
            if not room:
                return too_many(f"{self._limits.uploads} files are under way, the most that this node takes.")
            async with self._desk.incoming() as (id, incoming):
                upload = await read_form(
                    request, self._limits, incoming.write, limit_bytes=self._desk.limits.file_bytes
                )
                asked = parse_fields(FileBody, upload.fields)
                if not upload.size:
                    raise RequestInvalid("file: it is empty.", param="file")
        lasts_s = asked.expires_after.seconds if asked.expires_after is not None else None
        file = await self._desk.add_file(
            id, name=upload.filename or "file.jsonl", size=upload.size, expires_in_s=lasts_s
        )
        return web.json_response(file_object(file))

    async def files(self, request: web.Request) -> web.Response:
        files = [file for file in await self._desk.files() if request.query.get("purpose") in (None, file.purpose)]
        if request.query.get("order", "desc") != "asc":
            files.reverse()
        return web.json_response(_page(request, files, [file_object(file) for file in files], standard=LIST_LIMIT))

    async def file(self, request: web.Request) -> web.Response:
        file = await self._desk.file(request.match_info["id"])
        return _not_found("file") if file is None else web.json_response(file_object(file))

    async def remove_file(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        if not await self._desk.remove_file(id):
            return _not_found("file")
        return web.json_response({"id": id, "object": "file", "deleted": True})

    async def content(self, request: web.Request) -> web.StreamResponse:
        file = await self._desk.file(request.match_info["id"])
        if file is None:
            return _not_found("file")
        return web.FileResponse(self._desk.content(file), headers={"Content-Type": "application/jsonl"})

    # ---- batches ----

    async def create(self, request: web.Request) -> web.Response:
        asked = parse_body(BatchBody, await read_body(request, self._limits))
        batch = await self._desk.create(
            endpoint=asked.endpoint,
            input=asked.input_file_id,
            metadata=asked.metadata or {},
            whose=request[CALLER],
        )
        return web.json_response(batch_object(batch))

    async def batches(self, request: web.Request) -> web.Response:
        batches = await self._desk.batches()
        return web.json_response(_page(request, batches, [batch_object(batch) for batch in batches], standard=20))

    async def batch(self, request: web.Request) -> web.Response:
        batch = await self._desk.batch(request.match_info["id"])
        return _not_found("batch") if batch is None else web.json_response(batch_object(batch))

    async def cancel(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        if await self._desk.batch(id) is None:
            return _not_found("batch")
        try:
            return web.json_response(batch_object(await self._desk.cancel(id)))
        except StepNotAllowed as error:
            return refusal(409, "not_now", error.message)


def file_object(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": file.created_s,
        "expires_at": file.expires_s,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def batch_object(batch: Batch) -> dict[str, Any]:
    times = {f"{status}_at": batch.times.get(status) for status in Status if status is not Status.VALIDATING}
    errors = {"object": "list", "data": list(batch.problems)} if batch.problems else None
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": errors,
        "input_file_id": batch.input,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output or None,
        "error_file_id": batch.error or None,
        "created_at": batch.times[Status.VALIDATING],
        "expires_at": batch.expires_s,
        **times,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": batch.tokens_in,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": batch.tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": batch.tokens_in + batch.tokens_out,
        },
        "metadata": dict(batch.metadata) or None,
        "octo": {"amount": batch.amount},
    }


def _page(
    request: web.Request, records: Sequence[R], objects: Sequence[Mapping[str, Any]], *, standard: int
) -> dict[str, Any]:
    """A page of a list: `limit` of them, after the one named by `after`."""
    text = request.query.get("limit", str(standard))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    if not 1 <= limit <= 10_000:
        raise RequestInvalid("limit should be a number from 1 to 10000.", param="limit")
    after = request.query.get("after")
    start = next((at + 1 for at, record in enumerate(records) if record.id == after), 0) if after else 0
    shown = list(objects[start : start + min(limit, LIST_LIMIT)])
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + len(shown) < len(objects),
    }


def _not_found(what: str) -> web.Response:
    return refusal(
        404,
        f"{what}_not_found",
        f"this node holds no such {what}.",
        next_step=f"GET /v1/{what}{'es' if what == 'batch' else 's'} lists them.",
    )
