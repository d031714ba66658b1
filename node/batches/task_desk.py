"""The desk where single tasks are handed in, and the crew that works them off: by mode, then in turn.

A task is asked at least once: one whose answer was not on the disk when the node died is asked (and paid) again. Tasks
that nobody waits for share their places with the lines of batches; those that somebody waits for have their own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from market.errors import OctoError, StepNotAllowed
from market.talk import stop_tasks
from market.task import Mode
from node.batches.records import Reply
from node.batches.task_book import Submitted, Taken, TaskBook, input_file, result_file
from node.batches.tasks import RANK, Task, TaskLimits, TaskStatus
from node.batches.telling import Story
from node.batches.vault import Vault

log = structlog.get_logger()

Perform = Callable[[Task, bytes, bytes, Story], Awaitable[Reply]]
"""What comes of a task, its request and its blob; tells the story meanwhile. Never raises an OctoError."""
_HURRIED = (RANK[Mode.REALTIME],)
_PATIENT = (RANK[Mode.BATCH], RANK[Mode.ASYNC])


class TaskDesk:
    """`BatchDesk.tasks`."""

    def __init__(
        self,
        book: TaskBook,
        vault: Vault,
        *,
        limits: TaskLimits,
        places: asyncio.Semaphore,
        now_s: Callable[[], float],
        random: Callable[[int], bytes],
    ) -> None:
        """`places` are shared by all that nobody waits for."""
        self.limits = limits
        self._book = book
        self._vault = vault
        self._now_s = now_s
        self._random = random
        self._lanes = {_HURRIED: asyncio.Semaphore(limits.hurried), _PATIENT: places}
        self._arrived = {ranks: asyncio.Event() for ranks in self._lanes}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._stories: dict[str, Story] = {}

    # ---- handing in, asking ----

    async def submitted(self, key: bytes, digest: bytes) -> Submitted | None:
        """What was handed in under that idempotency key."""
        return await self._book.find_key(key, digest)

    async def submit(
        self,
        *,
        work: str,
        model: str,
        mode: Mode,
        whose: str = "",
        request: bytes,
        blob: bytes = b"",
        expires_in_s: int,
        metadata: Mapping[str, str] | None = None,
        key: bytes | None = None,
        digest: bytes = b"",
    ) -> Submitted:
        """Once this returns, the task is on the disk. Raises QueueFull, DiskFull."""
        now_s = self._now_s()
        task = Task(
            id=f"task_{self._random(12).hex()}",
            work=work,
            model=model,
            mode=mode,
            status=TaskStatus.QUEUED,
            created_s=int(now_s),
            expires_s=int(now_s) + expires_in_s,
            due_s=now_s,
            times={str(TaskStatus.QUEUED): int(now_s)},
            metadata=metadata or {},
            whose=whose,
            input_bytes=len(request) + len(blob),
            blob=len(blob),
        )
        if blob:
            await self._put_file(input_file(task.id), blob)
        try:
            submitted = await self._book.add(task, request, key=key, digest=digest, limits=self.limits)
        except BaseException:
            await self._vault.remove(input_file(task.id))
            raise
        if submitted.task.id != task.id:
            await self._vault.remove(input_file(task.id))
        self._tell_crew()
        return submitted

    async def task(self, id: str) -> Task | None:
        return await self._book.task(id)

    async def tasks(self, *, limit: int, after: str = "", status: str = "") -> Sequence[Task]:
        return await self._book.tasks(limit=limit, after=after, status=status)

    async def position(self, id: str) -> int:
        return await self._book.position(id)

    def progress(self, id: str) -> int:
        """Of a task that runs, in percent."""
        story = self._stories.get(id)
        return story.progress if story is not None else 0

    def result(self, task: Task) -> Path:
        """The file that holds what came of it."""
        return self._vault.path(result_file(task.id))

    @contextmanager
    def story(self, id: str) -> Iterator[Story]:
        """What a task tells from now on. Look at the task itself afterwards: it may be over already."""
        story = self._stories.setdefault(id, Story())
        story.readers += 1
        try:
            yield story
        finally:
            story.readers -= 1
            self._put_away(id)

    async def cancel(self, id: str) -> Task:
        """What was receipted until now is paid. Raises StepNotAllowed for one that is over."""
        task = await self._end(id, TaskStatus.CANCELLED)
        running = self._running.get(id)
        if running is not None:
            running.cancel()
        return task

    async def remove(self, id: str) -> bool:
        """Cancelled, if it is not over; then nothing of it is left here. Receipts stay in the books."""
        with suppress(StepNotAllowed):
            await self.cancel(id)
        removed = await self._book.remove(id)
        for name in (input_file(id), result_file(id)):  # its end may just be about to remove the input
            await self._vault.remove(name)
        return removed

    # ---- the crew ----

    async def run(self, perform: Perform) -> None:
        """Work off what waits and what comes, until cancelled."""
        again = await self._book.line_up_again(died=True)
        if again:
            log.info("tasks_lined_up_again", tasks=again)
        try:
            async with asyncio.TaskGroup() as group:
                for ranks in self._lanes:
                    group.create_task(self._lane(ranks, perform))
                group.create_task(self._sweep())
        finally:
            await stop_tasks(*self._running.values())
            await self._book.line_up_again(died=False)

    def _tell_crew(self) -> None:
        for arrived in self._arrived.values():
            arrived.set()

    async def _lane(self, ranks: tuple[int, ...], perform: Perform) -> None:
        places = self._lanes[ranks]
        while True:
            try:
                await self._some_due(ranks)
                await places.acquire()
                taken = None
                try:
                    taken = await self._book.take(ranks, self._now_s())
                finally:
                    if taken is None:
                        places.release()
            except OctoError as error:  # the disk is full, say
                log.warning("queue_stuck", why=str(error))
                await asyncio.sleep(self.limits.again_s)
                continue
            if taken is not None:
                running = asyncio.create_task(self._see_through(taken, perform))
                self._running[taken.task.id] = running
                running.add_done_callback(partial(self._left, taken.task.id, places))

    async def _some_due(self, ranks: tuple[int, ...]) -> None:
        arrived = self._arrived[ranks]
        while True:
            arrived.clear()
            due_s = await self._book.next_due(ranks)
            if due_s is not None and due_s <= self._now_s():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(None if due_s is None else due_s - self._now_s()):
                    await arrived.wait()

    def _left(self, id: str, places: asyncio.Semaphore, _task: asyncio.Task[None]) -> None:
        del self._running[id]
        places.release()
        self._put_away(id)

    async def _see_through(self, taken: Taken, perform: Perform) -> None:
        task = taken.task
        if task.deaths >= self.limits.deaths:
            await self._end(task.id, TaskStatus.FAILED, error=_GIVEN_UP)
            return
        with self.story(task.id) as story:
            story.begin(task.attempts)
            try:
                async with asyncio.timeout(max(0.0, task.expires_s - self._now_s())):
                    reply = await perform(task, taken.request, await self._blob(task), story)
                await self._settle(task, reply, story)
            except TimeoutError:
                await self._end(task.id, TaskStatus.EXPIRED)
            except StepNotAllowed:
                log.info("task_changed", task=task.id)  # cancelled in the same moment
                await self._vault.remove(result_file(task.id))
            except Exception:
                log.exception("task_stuck", task=task.id)
                with suppress(OctoError):
                    await self._again(task, self.limits.again_s, None, story)

    async def _settle(self, task: Task, reply: Reply, story: Story) -> None:
        if reply.ok:
            await self._put_file(result_file(task.id), reply.body)
            await self._end(
                task.id,
                TaskStatus.DONE,
                error=None,
                result_type=reply.content_type,
                result_bytes=len(reply.body),
                receipts=tuple(reply.receipts),
                tokens_in=reply.tokens_in,
                tokens_out=reply.tokens_out,
                amount=reply.amount,
            )
            return
        error = json.loads(reply.body)["error"]
        pause_s = self._pause_s(task) if reply.retry else None
        if pause_s is None:
            await self._end(task.id, TaskStatus.FAILED, error=error)
        else:
            await self._again(task, pause_s, error, story)

    def _pause_s(self, task: Task) -> float | None:
        pauses_s = self.limits.pauses_s
        if task.mode is Mode.REALTIME or not pauses_s:
            return None
        if task.attempts <= len(pauses_s):
            return pauses_s[task.attempts - 1]
        return pauses_s[-1] if task.mode is Mode.ASYNC else None

    async def _again(self, task: Task, pause_s: float, error: Mapping[str, Any] | None, story: Story) -> None:
        due_s = self._now_s() + pause_s
        story.tell({"type": "waiting", "error": error, "again_in_s": pause_s})
        story.progress = 0
        await self._book.step(task.id, TaskStatus.QUEUED, self._now_s(), due_s=due_s, error=error)
        self._tell_crew()

    async def _end(self, id: str, status: TaskStatus, **facts: Any) -> Task:
        """Durably; then its readers hear of it, and its input goes. Raises StepNotAllowed."""
        with self.story(id) as story:
            before = await self._book.task(id)
            seq = story.last_seq(before.attempts) if before is not None else 0
            task = await self._book.step(id, status, self._now_s(), seq=seq, **facts)
            story.end()
        await self._vault.remove(input_file(id))
        log.info("task_ended", task=id, status=str(status), work=task.work, mode=str(task.mode), attempts=task.attempts)
        return task

    async def _sweep(self) -> None:
        """Those that waited for too long expire; those that are over are kept for a while."""
        while True:
            try:
                now_s = self._now_s()
                for id in await self._book.late(now_s):
                    with suppress(StepNotAllowed):
                        await self._end(id, TaskStatus.EXPIRED)
                for id in await self._book.surplus(now_s, self.limits):
                    await self.remove(id)
            except OctoError as error:
                log.warning("queue_not_swept", why=str(error))
            await asyncio.sleep(self.limits.sweep_s)

    # ---- what lies where ----

    async def _blob(self, task: Task) -> bytes:
        return await asyncio.to_thread(self._vault.path(input_file(task.id)).read_bytes) if task.blob else b""

    async def _put_file(self, name: str, data: bytes) -> None:
        async with self._vault.incoming(name) as incoming:
            await incoming.write(data)

    def _put_away(self, id: str) -> None:
        story = self._stories.get(id)
        if story is not None and not story.readers and id not in self._running:
            del self._stories[id]


_GIVEN_UP: Mapping[str, Any] = {
    "message": "the task was begun again and again, and this node ended each time before it did.",
    "type": "server_error",
    "param": None,
    "code": "internal_error",
    "octo": {"fault": "node", "retry": False, "next_step": "The node's log says more."},
}
