"""One SQLite file, one thread per connection, many callers: the event loop never waits for a disk.

Lives here: connections, transactions, group commit, and what SQLite's errors mean to a user. Knows no
table: `node.store` says what is written. Writes that wait together share one transaction and one fsync.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import shutil
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from inference.models.database import keep_log
from market.errors import DiskFull, NodeMisconfigured, OctoError, StepNotAllowed

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], Any]

GROUP_LIMIT = 256
"""Saves in one transaction: beyond this the first caller waits longer than a disk takes to answer."""

_NEARLY_FULL_BYTES = 1 << 20
_BUSY_S = 5.0


class _Waiting(NamedTuple):
    job: Job
    answer: asyncio.Future[Any]


class _Outcome(NamedTuple):
    value: Any = None
    error: BaseException | None = None


class Lane:
    """A thread that owns one connection and does jobs in the order they came.

    With `grouped`, all jobs that wait are one transaction: none of their callers hears of success before
    the disk has everything. If one fails, the others are done again one by one, so none fails for another.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, *, grouped: bool, name: str) -> None:
        self._path = path
        self._connection = connection
        self._grouped = grouped
        self._jobs: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """What `job` returns, once committed. A cancelled caller's job is still done, whole or not at all."""
        if self._closed:
            raise StepNotAllowed("the store is closed.")
        answer: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Waiting(job, answer))
        return await answer

    async def aclose(self) -> None:
        """Finish what waits, then close the connection."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        more = True
        while more:
            group, more = self._next_group()
            outcomes = self._commit(group) if self._grouped else [self._do(waiting.job) for waiting in group]
            with contextlib.suppress(RuntimeError):  # the loop is gone, and with it all who waited
                self._loop.call_soon_threadsafe(_answer, group, outcomes)
        self._connection.close()

    def _next_group(self) -> tuple[list[_Waiting], bool]:
        group: list[_Waiting] = []
        with contextlib.suppress(queue.Empty):
            while len(group) < GROUP_LIMIT:
                waiting = self._jobs.get(block=not group)
                if waiting is None:
                    return group, False
                group.append(waiting)
        return group, True

    def _commit(self, group: Sequence[_Waiting]) -> list[_Outcome]:
        if not group:
            return []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [_Outcome(value=waiting.job(self._connection)) for waiting in group]
            self._connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - handed to the caller who waits
            with contextlib.suppress(sqlite3.Error):  # SQLite rolls back by itself when a disk is full
                self._connection.execute("ROLLBACK")
            if len(group) == 1:
                return [_Outcome(error=_explain(error, self._path))]
            return [self._commit([waiting])[0] for waiting in group]
        return outcomes

    def _do(self, job: Job) -> _Outcome:
        try:
            return _Outcome(value=job(self._connection))
        except BaseException as error:  # noqa: BLE001 - handed to the caller who waits
            return _Outcome(error=_explain(error, self._path))


def connect(path: Path, *, limit_bytes: int, read_only: bool = False) -> sqlite3.Connection:
    """A connection in WAL mode whose commits are on the disk before they return (synchronous=FULL).

    Raises NodeMisconfigured if the file is no SQLite database or its file system cannot hold one.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
        mode = keep_log(connection, busy_s=_BUSY_S)
        connection.execute("PRAGMA synchronous = FULL")
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {max(1, limit_bytes // page_bytes)}")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
    except sqlite3.Error as error:
        raise _explain(error, path) from None
    if mode != "wal":
        connection.close()
        raise NodeMisconfigured(
            f"the file system under {path} cannot hold the node's database (no shared memory for SQLite's WAL).",
            next_step="Set OCTO_DATA_DIR to a folder on a local disk.",
        )
    return connection


def _answer(group: Sequence[_Waiting], outcomes: Sequence[_Outcome]) -> None:
    for waiting, outcome in zip(group, outcomes, strict=True):
        if waiting.answer.done():
            continue
        if outcome.error is None:
            waiting.answer.set_result(outcome.value)
        else:
            waiting.answer.set_exception(outcome.error)


def _explain(error: BaseException, path: Path) -> BaseException:
    """SQLite's error in our words; ours, and bugs, stay as they are."""
    if isinstance(error, OctoError) or not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", 0)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if code == sqlite3.SQLITE_FULL or (code & 0xFF == sqlite3.SQLITE_IOERR and _nearly_full(path)):
        return DiskFull(
            f"no room to write {path}; nothing that was saved before is lost.",
            next_step="Free space on that disk, then try again.",
        )
    if code & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return NodeMisconfigured(
            f"{path} is damaged or not a database ({name}).",
            next_step="Move it away or restore it from a back-up; the node starts with empty books otherwise.",
        )
    if code & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM):
        return NodeMisconfigured(
            f"{path} cannot be read or written ({name}).", next_step="Check the disk and the folder's owner and mode."
        )
    return error


def _nearly_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _NEARLY_FULL_BYTES
    except OSError:
        return False
