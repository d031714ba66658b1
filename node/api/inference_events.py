"""A task of /api/v1/inference as the API shows it: the object, and the stream of its events.

`seq` only grows; whoever comes again with the last one it saw gets what came after. Knows no socket.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from node.batches.task_desk import TaskDesk
from node.batches.tasks import Task, TaskStatus

INLINE_LIMIT_BYTES = 1024 * 1024
"""A larger result is fetched from `content`: many clients take no larger message from a WebSocket."""
_LOOK_S = 1.0
_JSON = "application/json"

Event = Mapping[str, Any]


def content_path(id: str) -> str:
    return f"/api/v1/inference/{id}/content"


async def task_object(desk: TaskDesk, task: Task, *, whole: bool = True) -> dict[str, Any]:
    """`whole`: with the result, if it is JSON and not too large."""
    told: dict[str, Any] = {
        "id": task.id,
        "object": "inference",
        "status": str(task.status),
        "progress": 100 if task.status is TaskStatus.DONE else desk.progress(task.id),
        "position": await desk.position(task.id) if task.status is TaskStatus.QUEUED else None,
        "work": task.work,
        "model": task.model,
        "mode": str(task.mode),
        "created_at": task.created_s,
        "started_at": task.times.get(str(TaskStatus.RUNNING)),
        "ended_at": task.ended_s,
        "expires_at": task.expires_s,
        "kept_until": None if task.ended_s is None else task.ended_s + desk.limits.keep_s,
        "again_at": int(task.due_s) if task.status is TaskStatus.QUEUED and task.attempts else None,
        "attempts": task.attempts,
        "error": task.error,
        "receipts": list(task.receipts),
        "usage": {"units_in": task.tokens_in, "units_out": task.tokens_out},
        "amount": task.amount,
        "metadata": dict(task.metadata) or None,
        "result": None,
        "content": None,
    }
    if task.status is TaskStatus.DONE:
        told["content"] = {"path": content_path(task.id), "type": task.result_type, "bytes": task.result_bytes}
        if whole and task.result_type == _JSON and task.result_bytes <= INLINE_LIMIT_BYTES:
            told["result"] = await _result(desk, task)
    return told


async def events_of(desk: TaskDesk, id: str, after: int) -> AsyncIterator[Event | None]:
    """First the `state`; then what comes after the number `after`; None now and then, while nothing does; last of all
    how it ended. A task that is removed meanwhile just ends."""
    with desk.story(id) as story:
        told: tuple[TaskStatus, int] | None = None
        while (task := await desk.task(id)) is not None and not task.is_over:
            position = await desk.position(id) if task.status is TaskStatus.QUEUED else 0
            if (task.status, position) != told:
                told = (task.status, position)
                yield {"type": "state", **await task_object(desk, task)}
            events = story.since(after)
            for event in events:
                after = event["seq"]
                yield event
            if not events and not story.is_over:
                yield None
            await story.wait(after, _LOOK_S)
        for event in story.since(after):
            yield event
        if task is not None:
            told_last = await task_object(desk, task)
            yield {"type": str(task.status), "seq": task.seq, "progress": told_last["progress"], "task": told_last}


async def _result(desk: TaskDesk, task: Task) -> Any:
    try:
        return json.loads(await asyncio.to_thread(desk.result(task).read_bytes))
    except OSError:  # removed in this moment
        return None
