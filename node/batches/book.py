"""Files, batches, their lines and single tasks in one SQLite file. What was answered is on the disk before it counts.

Lives here: tables and questions. Knows no HTTP and no provider; contents of files are `node.batches.vault`'s.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from market.errors import NodeMisconfigured, RequestInvalid
from node.batches.records import STEPS, Answered, Batch, Line, Reply, Status, StoredFile, check_step
from node.batches.task_book import TASK_TABLES, TaskBook
from node.database import Lane, connect

_LIMIT_BYTES = 16 << 30
_SCHEMA = 2
_TABLES = """
CREATE TABLE IF NOT EXISTS files (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS lines (batch TEXT NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL,
    request BLOB, status INTEGER, reply BLOB, PRIMARY KEY (batch, number)) WITHOUT ROWID;
"""


class Book:
    """Use `open_book`."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.tasks = TaskBook(lane)

    # ---- files ----

    async def add_file(self, file: StoredFile, *, files_limit: int, bytes_limit: int) -> None:
        """Raises RequestInvalid if there are too many already."""

        def write(connection: sqlite3.Connection) -> None:
            held = [_file(body) for (body,) in connection.execute("SELECT body FROM files")]
            if len(held) >= files_limit or sum(other.size for other in held) + file.size > bytes_limit:
                raise RequestInvalid(
                    f"this node keeps at most {files_limit} files of {bytes_limit} bytes together.",
                    next_step="DELETE /v1/files/{id} removes those that are no longer needed.",
                    param="file",
                )
            _put_file(connection, file)

        await self._lane.run(write)

    async def files(self) -> Sequence[StoredFile]:
        """Oldest first."""
        return await self._lane.run(
            lambda c: [_file(body) for (body,) in c.execute("SELECT body FROM files ORDER BY seq")]
        )

    async def file(self, id: str) -> StoredFile | None:
        row = await self._lane.run(lambda c: c.execute("SELECT body FROM files WHERE id = ?", (id,)).fetchone())
        return _file(row[0]) if row else None

    async def remove_file(self, id: str) -> bool:
        return await self._lane.run(lambda c: c.execute("DELETE FROM files WHERE id = ?", (id,)).rowcount > 0)

    # ---- batches ----

    async def add_batch(self, batch: Batch, *, open_limit: int) -> None:
        """Raises RequestInvalid if too many are open."""

        def write(connection: sqlite3.Connection) -> None:
            if len(_open(connection)) >= open_limit:
                raise RequestInvalid(
                    f"{open_limit} batches are under way, the most that this node takes.",
                    next_step="Wait for one to end, or cancel one.",
                )
            connection.execute(
                "INSERT INTO batches (id, status, body) VALUES (?, ?, ?)", (batch.id, batch.status, _text(batch))
            )

        await self._lane.run(write)

    async def batches(self) -> Sequence[Batch]:
        """Newest first."""
        return await self._lane.run(
            lambda c: [_batch(body) for (body,) in c.execute("SELECT body FROM batches ORDER BY seq DESC LIMIT 10000")]
        )

    async def batch(self, id: str) -> Batch | None:
        return await self._lane.run(lambda c: _find(c, id))

    async def open_batches(self) -> Sequence[Batch]:
        """Those that are not at their end, oldest first."""
        return await self._lane.run(_open)

    async def step(self, id: str, status: Status, now_s: int, **facts: Any) -> Batch:
        """Bring a batch to its next status. Raises StepNotAllowed."""

        def write(connection: sqlite3.Connection) -> Batch:
            before = _known(connection, id)
            check_step(before.status, status)
            return _put(connection, _stepped(before, status, now_s, **facts))

        return await self._lane.run(write)

    async def add_lines(self, id: str, lines: Sequence[Line]) -> None:
        """Adding the same again changes nothing: a validation that was cut off begins anew."""
        rows = [(id, line.number, line.custom_id, line.body) for line in lines]
        await self._lane.run(
            lambda c: c.executemany(
                "INSERT OR IGNORE INTO lines (batch, number, custom_id, request) VALUES (?, ?, ?, ?)", rows
            )
        )

    async def next_line(self, id: str, after: int) -> Line | None:
        """The first one after that number that has no reply yet."""
        row = await self._lane.run(
            lambda c: c.execute(
                "SELECT number, custom_id, request FROM lines WHERE batch = ? AND number > ? AND status IS NULL"
                " ORDER BY number LIMIT 1",
                (id, after),
            ).fetchone()
        )
        return Line(number=row[0], custom_id=row[1], body=row[2]) if row else None

    async def save_reply(self, id: str, number: int, reply: Reply) -> None:
        """The reply, and the batch's counts, in one; of two replies to a line the first one stays."""

        def write(connection: sqlite3.Connection) -> None:
            written = connection.execute(
                "UPDATE lines SET status = ?, reply = ?, request = NULL"
                " WHERE batch = ? AND number = ? AND status IS NULL",
                (reply.status, reply.body, id, number),
            ).rowcount
            if not written:
                return
            batch = _known(connection, id)
            counted = replace(
                batch,
                completed=batch.completed + reply.ok,
                failed=batch.failed + (not reply.ok),
                tokens_in=batch.tokens_in + reply.tokens_in,
                tokens_out=batch.tokens_out + reply.tokens_out,
                amount=batch.amount + reply.amount,
            )
            _put(connection, counted)

        await self._lane.run(write)

    async def answered(self, id: str, after: int, count: int) -> Sequence[Answered]:
        """The next `count` lines after that number, with what came of them."""
        rows = await self._lane.run(
            lambda c: c.execute(
                "SELECT number, custom_id, status, reply FROM lines WHERE batch = ? AND number > ?"
                " ORDER BY number LIMIT ?",
                (id, after, count),
            ).fetchall()
        )
        return [
            Answered(
                number=number,
                custom_id=custom_id,
                reply=Reply(status=status, body=reply) if status is not None else None,
            )
            for number, custom_id, status, reply in rows
        ]

    async def finish(self, id: str, status: Status, now_s: int, files: Mapping[str, StoredFile]) -> Batch:
        """The end: its files (`output`, `error`) are there, its lines no longer needed."""

        def write(connection: sqlite3.Connection) -> Batch:
            before = _known(connection, id)
            check_step(before.status, status)
            for file in files.values():
                _put_file(connection, file)
            connection.execute("DELETE FROM lines WHERE batch = ?", (id,))
            ids = {name: file.id for name, file in files.items()}
            return _put(connection, _stepped(before, status, now_s, **ids))

        return await self._lane.run(write)


@asynccontextmanager
async def open_book(path: Path) -> AsyncIterator[Book]:
    """Raises NodeMisconfigured for a file that is damaged, or of a newer version than this."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # prompts lie in it
    connection = connect(path, limit_bytes=_LIMIT_BYTES)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA:
            raise NodeMisconfigured(f"{path} was written by a newer octo-node.", next_step="Update octo-node.")
        connection.executescript(_TABLES + TASK_TABLES)
        connection.execute(f"PRAGMA user_version = {_SCHEMA}")
    except BaseException:
        connection.close()
        raise
    lane = Lane(path, connection, grouped=True, name="octo-batches")
    try:
        yield Book(lane)
    finally:
        await lane.aclose()


def _stepped(before: Batch, status: Status, now_s: int, **facts: Any) -> Batch:
    return replace(before, status=status, times={**before.times, str(status): now_s}, **facts)


def _open(connection: sqlite3.Connection) -> list[Batch]:
    marks = ",".join("?" * len(STEPS))
    query = f"SELECT body FROM batches WHERE status IN ({marks}) ORDER BY seq"  # noqa: S608 - marks alone
    return [_batch(body) for (body,) in connection.execute(query, tuple(STEPS))]


def _known(connection: sqlite3.Connection, id: str) -> Batch:
    found = _find(connection, id)
    assert found is not None, "batches are never removed"
    return found


def _find(connection: sqlite3.Connection, id: str) -> Batch | None:
    row = connection.execute("SELECT body FROM batches WHERE id = ?", (id,)).fetchone()
    return _batch(row[0]) if row else None


def _put(connection: sqlite3.Connection, batch: Batch) -> Batch:
    connection.execute("UPDATE batches SET status = ?, body = ? WHERE id = ?", (batch.status, _text(batch), batch.id))
    return batch


def _put_file(connection: sqlite3.Connection, file: StoredFile) -> None:
    connection.execute("INSERT OR REPLACE INTO files (id, body) VALUES (?, ?)", (file.id, _text(file)))


def _text(record: Batch | StoredFile) -> str:
    return json.dumps(asdict(record))


def _batch(body: str) -> Batch:
    plain = json.loads(body)
    return Batch(**{**plain, "status": Status(plain["status"])})


def _file(body: str) -> StoredFile:
    return StoredFile(**json.loads(body))
