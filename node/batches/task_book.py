"""Single tasks in the batches' SQLite file. What was taken, and what came of it, is on the disk before it counts.

Lives here: tables and questions. Knows no HTTP and no provider; audio, images and results are the vault's.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from market.errors import RequestInvalid
from market.task import Mode
from node.batches.tasks import RANK, Task, TaskLimits, TaskStatus, check_task_step
from node.database import Lane

TASK_TABLES = """
CREATE TABLE IF NOT EXISTS tasks (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL, rank INTEGER NOT NULL, due_s REAL NOT NULL, expires_s INTEGER NOT NULL, ended_s INTEGER,
    input_bytes INTEGER NOT NULL, result_bytes INTEGER NOT NULL, key BLOB UNIQUE, digest BLOB NOT NULL, request BLOB,
    body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS tasks_in_line ON tasks (status, rank, seq);
"""


class Submitted(NamedTuple):
    """A task as it was handed in first; `same`: this request is that one."""

    task: Task
    same: bool


class Taken(NamedTuple):
    task: Task
    request: bytes


class TaskBook:
    """`Book.tasks`."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    async def find_key(self, key: bytes, digest: bytes) -> Submitted | None:
        """What was handed in under an idempotency key."""
        return await self._lane.run(lambda c: _under(c, key, digest))

    async def add(
        self, task: Task, request: bytes, *, key: bytes | None, digest: bytes, limits: TaskLimits
    ) -> Submitted:
        """The task itself, or the one that holds its key already. Raises RequestInvalid if too many wait."""

        def write(c: sqlite3.Connection) -> Submitted:
            if key is not None and (held := _under(c, key, digest)) is not None:
                return held
            count, size = c.execute(
                "SELECT count(*), coalesce(sum(input_bytes), 0) FROM tasks WHERE ended_s IS NULL"
            ).fetchone()
            if count >= limits.waiting or size + task.input_bytes > limits.waiting_bytes:
                raise QueueFull(
                    f"{count} tasks with {size} bytes of input are waiting; {limits.waiting} and {limits.waiting_bytes}"
                    " bytes are the most that this node takes.",
                    next_step="Wait for some to end, or cancel some.",
                )
            c.execute(
                "INSERT INTO tasks (id, status, rank, due_s, expires_s, input_bytes, result_bytes, key, digest,"
                " request, body) VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?)",
                (task.id, task.status, RANK[task.mode], task.due_s, task.expires_s, task.input_bytes, key, digest,
                 request, _text(task)),
            )  # fmt: skip
            return Submitted(task, same=True)

        return await self._lane.run(write)

    async def task(self, id: str) -> Task | None:
        return await self._lane.run(lambda c: _find(c, id))

    async def tasks(self, *, limit: int, after: str = "", status: str = "") -> Sequence[Task]:
        """The newest first; those that came before the one named `after`."""

        def read(c: sqlite3.Connection) -> list[Task]:
            before = c.execute("SELECT seq FROM tasks WHERE id = ?", (after,)).fetchone() if after else None
            rows = c.execute(
                "SELECT body FROM tasks WHERE seq < ? AND (? = '' OR status = ?) ORDER BY seq DESC LIMIT ?",
                (before[0] if before else 2**62, status, status, limit),
            )
            return [_task(body) for (body,) in rows]

        return await self._lane.run(read)

    async def position(self, id: str) -> int:
        """How many are taken from the queue before this one; it is 0 for the next, and for one that does not wait."""

        def read(c: sqlite3.Connection) -> int:
            own = c.execute("SELECT rank, seq FROM tasks WHERE id = ? AND status = 'queued'", (id,)).fetchone()
            if own is None:
                return 0
            rank, seq = own
            first = 0 if rank == RANK[Mode.REALTIME] else 1  # realtime has a line of its own
            query = "SELECT count(*) FROM tasks WHERE status = 'queued' AND rank >= ? AND (rank, seq) < (?, ?)"
            return int(c.execute(query, (first, rank, seq)).fetchone()[0])

        return await self._lane.run(read)

    # ---- the crew's ----

    async def next_due(self, ranks: Sequence[int]) -> float | None:
        """When the next one of these ranks may run; None if none waits."""
        found = await self._lane.run(
            lambda c: c.execute(
                "SELECT min(due_s) FROM tasks WHERE status = 'queued' AND rank BETWEEN ? AND ?", (ranks[0], ranks[-1])
            ).fetchone()[0]
        )
        return None if found is None else float(found)

    async def take(self, ranks: Sequence[int], now_s: float) -> Taken | None:
        """The first in line that may run now; it runs then, and that was one more attempt."""

        def write(c: sqlite3.Connection) -> Taken | None:
            row = c.execute(
                "SELECT body, request FROM tasks WHERE status = 'queued' AND rank BETWEEN ? AND ? AND due_s <= ?"
                " ORDER BY rank, seq LIMIT 1",
                (ranks[0], ranks[-1], now_s),
            ).fetchone()
            if row is None:
                return None
            task = _stepped(_task(row[0]), TaskStatus.RUNNING, int(now_s))
            return Taken(_put(c, replace(task, attempts=task.attempts + 1)), row[1])

        return await self._lane.run(write)

    async def step(self, id: str, status: TaskStatus, now_s: float, **facts: Any) -> Task:
        """Bring a task to its next status; one that is over keeps nothing of its input. Raises StepNotAllowed."""

        def write(c: sqlite3.Connection) -> Task:
            before = _find(c, id)
            check_task_step(before.status if before else TaskStatus.CANCELLED, status)
            assert before is not None
            return _put(c, _stepped(before, status, int(now_s), **facts))

        return await self._lane.run(write)

    async def line_up_again(self, *, died: bool) -> int:
        """Tasks that ran wait again: the node stopped, or `died`. How many those were."""

        def write(c: sqlite3.Connection) -> int:
            rows = c.execute("SELECT body FROM tasks WHERE status = 'running'").fetchall()
            for (body,) in rows:
                task = _task(body)
                queued_s = task.times.get(str(TaskStatus.QUEUED), task.created_s)
                _put(c, _stepped(task, TaskStatus.QUEUED, queued_s, deaths=task.deaths + died))
            return len(rows)

        return await self._lane.run(write)

    async def late(self, now_s: float) -> Sequence[str]:
        """Ids of those that wait and have expired."""
        query = "SELECT id FROM tasks WHERE status = 'queued' AND expires_s <= ?"
        return await self._lane.run(lambda c: [id for (id,) in c.execute(query, (now_s,))])

    async def surplus(self, now_s: float, limits: TaskLimits) -> Sequence[str]:
        """Ids of those that are over and need not be kept: too old, or beyond number and size, the newest kept."""
        query = (
            "SELECT id FROM (SELECT id, ended_s, row_number() OVER newest AS number, sum(result_bytes) OVER newest AS"
            " size FROM tasks WHERE ended_s IS NOT NULL WINDOW newest AS (ORDER BY seq DESC))"
            " WHERE ended_s + ? <= ? OR number > ? OR size > ?"
        )
        named = (limits.keep_s, now_s, limits.kept, limits.kept_bytes)
        return await self._lane.run(lambda c: [id for (id,) in c.execute(query, named)])

    async def remove(self, id: str) -> bool:
        return await self._lane.run(lambda c: c.execute("DELETE FROM tasks WHERE id = ?", (id,)).rowcount > 0)

    async def files(self) -> Sequence[str]:
        """Names of all that belongs into the vault."""

        def read(c: sqlite3.Connection) -> list[str]:
            waiting = c.execute("SELECT id FROM tasks WHERE ended_s IS NULL").fetchall()
            with_result = c.execute("SELECT id FROM tasks WHERE result_bytes > 0").fetchall()
            return [input_file(id) for (id,) in waiting] + [result_file(id) for (id,) in with_result]

        return await self._lane.run(read)


class QueueFull(RequestInvalid):
    code, http_status, retry = "queue_full", 429, True


def input_file(id: str) -> str:
    return f"{id}-input"


def result_file(id: str) -> str:
    return f"{id}-result"


def _under(c: sqlite3.Connection, key: bytes, digest: bytes) -> Submitted | None:
    row = c.execute("SELECT body, digest FROM tasks WHERE key = ?", (key,)).fetchone()
    return Submitted(_task(row[0]), same=row[1] == digest) if row else None


def _stepped(before: Task, status: TaskStatus, now_s: int, **facts: Any) -> Task:
    return replace(before, status=status, times={**before.times, str(status): now_s}, **facts)


def _find(c: sqlite3.Connection, id: str) -> Task | None:
    row = c.execute("SELECT body FROM tasks WHERE id = ?", (id,)).fetchone()
    return _task(row[0]) if row else None


def _put(c: sqlite3.Connection, task: Task) -> Task:
    c.execute(
        "UPDATE tasks SET status = ?, due_s = ?, ended_s = ?, result_bytes = ?, body = ?,"
        " request = CASE WHEN ? THEN NULL ELSE request END WHERE id = ?",
        (task.status, task.due_s, task.ended_s, task.result_bytes, _text(task), task.is_over, task.id),
    )
    return task


def _text(task: Task) -> str:
    return json.dumps(asdict(task))


def _task(body: str) -> Task:
    plain = json.loads(body)
    return Task(**{**plain, "status": TaskStatus(plain["status"]), "mode": Mode(plain["mode"])})
