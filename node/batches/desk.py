"""The desk where batches are handed in: files, batches, cancelling; and the crew that works them off. Single tasks
have a desk of their own beside it (`tasks`), over the same books and places.

A batch is a task of its own; the lines of all of them share a few places, taken in turn. A line is asked at least
once: one whose answer was not on the disk when the node died is asked (and paid) again.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path

import structlog

from market.errors import RequestInvalid, StepNotAllowed
from market.talk import stop_tasks
from node.batches.book import Book, open_book
from node.batches.records import Answered, Batch, BatchLimits, Line, Reply, Status, StoredFile
from node.batches.requests_file import BadFile, read_requests
from node.batches.task_desk import TaskDesk
from node.batches.tasks import TaskLimits
from node.batches.vault import Incoming, Vault

log = structlog.get_logger()

Answer = Callable[[str, bytes, str], Awaitable[Reply]]
"""What comes of a body sent to an endpoint by whoever handed the batch in; never raises an OctoError."""
_CHUNK_LINES = 500
_UNANSWERED: Mapping[Status, str] = {
    Status.EXPIRED: "this request could not be executed before the completion window expired.",
    Status.CANCELLED: "the batch was cancelled before this request was answered.",
}


class _Pace:
    """Of one batch. Once a line has waited in vain, the others do not wait for the same: a model that nobody serves
    would hold them up until the window closes. The first that goes well makes them patient again."""

    def __init__(self) -> None:
        self.patient = True


class BatchDesk:
    """Use `open_batches`."""

    def __init__(
        self,
        book: Book,
        vault: Vault,
        *,
        limits: BatchLimits,
        now_s: Callable[[], float],
        random: Callable[[int], bytes],
        single: tuple[Vault, TaskLimits],
    ) -> None:
        """`single`: where the files of single tasks lie, and how many of them there may be."""
        self.limits = limits
        self._book = book
        self._vault = vault
        self._now_s = now_s
        self._random = random
        self._arrived = asyncio.Event()
        self._working: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(limits.under_way)
        task_vault, task_limits = single
        self.tasks = TaskDesk(
            book.tasks, task_vault, limits=task_limits, places=self._places, now_s=now_s, random=random
        )

    # ---- files ----

    @asynccontextmanager
    async def incoming(self) -> AsyncIterator[tuple[str, Incoming]]:
        """A new file's id, and where its bytes go; `add_file` makes it known, or it is gone at the next start."""
        id = f"file-{self._random(12).hex()}"
        async with self._vault.incoming(id) as incoming:
            yield id, incoming

    async def add_file(self, id: str, *, name: str, size: int, expires_in_s: int | None) -> StoredFile:
        now_s = int(self._now_s())
        file = StoredFile(
            id=id,
            name=name,
            purpose="batch",
            size=size,
            created_s=now_s,
            expires_s=None if expires_in_s is None else now_s + expires_in_s,
        )
        try:
            await self._remove_expired()
            await self._book.add_file(file, files_limit=self.limits.files, bytes_limit=self.limits.files_bytes)
        except BaseException:
            await self._vault.remove(id)
            raise
        return file

    async def files(self) -> Sequence[StoredFile]:
        await self._remove_expired()
        return await self._book.files()

    async def file(self, id: str) -> StoredFile | None:
        file = await self._book.file(id)
        return None if file is None or self._is_expired(file) else file

    def content(self, file: StoredFile) -> Path:
        return self._vault.path(file.id)

    async def remove_file(self, id: str) -> bool:
        if not await self._book.remove_file(id):
            return False
        await self._vault.remove(id)
        return True

    async def _remove_expired(self) -> None:
        for file in await self._book.files():
            if self._is_expired(file):
                await self.remove_file(file.id)

    def _is_expired(self, file: StoredFile) -> bool:
        return file.expires_s is not None and file.expires_s <= self._now_s()

    # ---- batches ----

    async def create(self, *, endpoint: str, input: str, metadata: Mapping[str, str], whose: str = "") -> Batch:
        """`whose` tells callers apart. Raises RequestInvalid for an input that is no file of requests."""
        file = await self.file(input)
        if file is None or file.purpose != "batch":
            raise RequestInvalid(
                "input_file_id: there is no such file with the purpose batch.",
                next_step="Upload one with POST /v1/files.",
                param="input_file_id",
            )
        now_s = int(self._now_s())
        batch = Batch(
            id=f"batch_{self._random(12).hex()}",
            endpoint=endpoint,
            input=input,
            status=Status.VALIDATING,
            expires_s=now_s + self.limits.window_s,
            metadata=metadata,
            whose=whose,
            times={str(Status.VALIDATING): now_s},
        )
        await self._book.add_batch(batch, open_limit=self.limits.open_batches)
        self._arrived.set()
        return batch

    async def batches(self) -> Sequence[Batch]:
        return await self._book.batches()

    async def batch(self, id: str) -> Batch | None:
        return await self._book.batch(id)

    async def cancel(self, id: str) -> Batch:
        """What runs is stopped; what was answered is kept. Raises StepNotAllowed for one that is at its end."""
        batch = await self._book.step(id, Status.CANCELLING, int(self._now_s()))
        working = self._working.get(id)
        if working is not None:
            working.cancel()  # it is taken up again as what it is now
        self._arrived.set()
        return batch

    # ---- the crew ----

    async def run(self, answer: Answer) -> None:
        """Work off what is open and what comes, until cancelled."""
        try:
            while True:
                self._arrived.clear()
                for batch in await self._book.open_batches():
                    if batch.id not in self._working:
                        task = asyncio.create_task(self._see_through(batch.id, answer))
                        self._working[batch.id] = task
                        task.add_done_callback(partial(self._left, batch.id))
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.limits.again_s):
                        await self._arrived.wait()
        finally:
            await stop_tasks(*self._working.values())

    def _left(self, id: str, _task: asyncio.Task[None]) -> None:
        del self._working[id]
        self._arrived.set()

    async def _see_through(self, id: str, answer: Answer) -> None:
        try:
            batch = await self._book.batch(id)
            assert batch is not None
            if batch.status is Status.VALIDATING:
                batch = await self._validate(batch)
            if batch.status is Status.IN_PROGRESS:
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, batch.expires_s - self._now_s())):
                        await self._work_off(batch, answer)
                batch = await self._book.step(id, Status.FINALIZING, int(self._now_s()))
            if batch.status in (Status.FINALIZING, Status.CANCELLING):
                batch = await self._finish(batch)
            log.info("batch_ended", batch=id, status=str(batch.status), done=batch.completed, failed=batch.failed)
        except StepNotAllowed:
            log.info("batch_changed", batch=id)  # cancelled in the same moment: taken up again as that
        except Exception:
            log.exception("batch_stuck", batch=id)
            await asyncio.sleep(self.limits.again_s)

    async def _validate(self, batch: Batch) -> Batch:
        file = await self.file(batch.input)
        now_s = int(self._now_s())
        if file is None:
            gone = {"code": "file_not_found", "line": None, "message": "the input file is gone.", "param": None}
            return await self._book.step(batch.id, Status.FAILED, now_s, problems=[gone])
        lines = read_requests(self.content(file), batch.endpoint, self.limits)
        total = 0
        try:
            while chunk := await asyncio.to_thread(_chunk_of, lines):
                await self._book.add_lines(batch.id, chunk)
                total += len(chunk)
        except BadFile as bad:
            return await self._book.step(batch.id, Status.FAILED, now_s, problems=bad.problems)
        return await self._book.step(batch.id, Status.IN_PROGRESS, int(self._now_s()), total=total)

    async def _work_off(self, batch: Batch, answer: Answer) -> None:
        places = asyncio.Semaphore(self.limits.under_way)  # so that no batch stands in the common line more often
        pace = _Pace()
        async with asyncio.TaskGroup() as group:
            after = -1
            while True:
                await places.acquire()
                line = await self._book.next_line(batch.id, after)
                if line is None:
                    return
                after = line.number
                task = group.create_task(self._do(batch, line, answer, pace))
                task.add_done_callback(lambda _: places.release())

    async def _do(self, batch: Batch, line: Line, answer: Answer, pace: _Pace) -> None:
        for pause_s in (0.0, *self.limits.pauses_s):
            if pause_s and not pace.patient:
                break
            await asyncio.sleep(pause_s)
            async with self._places:
                reply = await answer(batch.endpoint, line.body, batch.whose)
            if not reply.retry:
                break
        pace.patient = not reply.retry
        await self._book.save_reply(batch.id, line.number, reply)

    async def _finish(self, batch: Batch) -> Batch:
        """Write the output files, then say so. Their ids follow from the batch's: done twice it is done once."""
        missing = batch.total - batch.completed - batch.failed
        cancelled = batch.status is Status.CANCELLING
        status = Status.CANCELLED if cancelled else Status.EXPIRED if missing else Status.COMPLETED
        files: dict[str, StoredFile] = {}
        for kind, wanted in (("output", True), ("error", False)):
            if not (batch.completed if wanted else batch.failed + missing):
                continue
            id = f"file-{batch.id}-{kind}"
            async with self._vault.incoming(id) as incoming:
                after = -1
                while rows := await self._book.answered(batch.id, after, _CHUNK_LINES):
                    after = rows[-1].number
                    told = (row for row in rows if (row.reply is not None and row.reply.ok) is wanted)
                    await incoming.write(b"".join(_told(batch.id, row, _UNANSWERED.get(status, "")) for row in told))
            files[kind] = StoredFile(
                id=id,
                name=f"{batch.id}_{kind}.jsonl",
                purpose="batch_output",
                size=incoming.size,
                created_s=int(self._now_s()),
            )
        return await self._book.finish(batch.id, status, int(self._now_s()), files)


def _chunk_of(lines: Iterator[Line]) -> list[Line]:
    return list(islice(lines, _CHUNK_LINES))


def _told(batch: str, row: Answered, unanswered: str) -> bytes:
    id = f"{batch}_{row.number}".replace("batch_", "batch_req_", 1)
    head = json.dumps({"id": id, "custom_id": row.custom_id})[:-1].encode()
    if row.reply is None:
        code = "batch_expired" if "expired" in unanswered else "batch_cancelled"
        error = json.dumps({"code": code, "message": unanswered}).encode()
        return head + b', "response": null, "error": ' + error + b"}\n"
    response = b'{"status_code": %d, "request_id": "%s", "body": %s}' % (row.reply.status, id.encode(), row.reply.body)
    return head + b', "response": ' + response + b', "error": null}\n'


@asynccontextmanager
async def open_batches(
    folder: Path,
    *,
    limits: BatchLimits | None = None,
    task_limits: TaskLimits | None = None,
    now_s: Callable[[], float] = time.time,
    random: Callable[[int], bytes] = os.urandom,
) -> AsyncIterator[BatchDesk]:
    """The desk over what lies in `folder`, which this process alone may use."""
    vault = await asyncio.to_thread(Vault, folder / "files")
    task_vault = await asyncio.to_thread(Vault, folder / "tasks")
    async with open_book(folder / "queue.db") as book:
        await vault.keep_only({file.id for file in await book.files()})
        await task_vault.keep_only(set(await book.tasks.files()))
        yield BatchDesk(
            book,
            vault,
            limits=limits or BatchLimits(),
            now_s=now_s,
            random=random,
            single=(task_vault, task_limits or TaskLimits()),
        )
