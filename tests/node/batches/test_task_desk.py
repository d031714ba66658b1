"""The queue of single tasks without HTTP: order, limits, ends, and what kills, clocks and full places do to it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from market.errors import StepNotAllowed
from market.task import Mode
from node.batches.desk import open_batches
from node.batches.records import Reply
from node.batches.task_book import QueueFull
from node.batches.task_desk import TaskDesk
from node.batches.tasks import SEQ_PER_ATTEMPT, TASK_STEPS, Task, TaskLimits, TaskStatus, check_task_step
from node.batches.telling import Story
from tests.node.batches.batch_kit import crew, said_until_killed

LATER = Reply(status=503, body=b'{"error": {"code": "no_provider"}}', retry=True)


@asynccontextmanager
async def desk_in(folder: Path, *, now_s: Callable[[], float] = time.time, **limits: Any) -> AsyncIterator[TaskDesk]:
    wanted = TaskLimits(**{"pauses_s": (0.01, 0.02), "sweep_s": 0.02, "again_s": 0.02, **limits})
    async with open_batches(folder, task_limits=wanted, now_s=now_s, random=os.urandom) as batches:
        yield batches.tasks


async def handed_in(desk: TaskDesk, text: str = "x", mode: Mode = Mode.ASYNC, **more: Any) -> Task:
    wanted = {"expires_in_s": 3600, "request": text.encode(), **more}
    return (await desk.submit(work="chat", model="small", mode=mode, **wanted)).task


async def over(desk: TaskDesk, id: str) -> Task:
    async with asyncio.timeout(60):
        while (task := await desk.task(id)) is None or not task.is_over:
            await asyncio.sleep(0.01)
    return task


async def files_are(folder: Path, *names: str) -> None:
    """A task is over before its input has gone."""
    async with asyncio.timeout(60):
        while sorted(path.name for path in (folder / "tasks").iterdir()) != sorted(names):
            await asyncio.sleep(0.01)


async def echo(_task: Task, request: bytes, blob: bytes, _story: Story) -> Reply:
    return Reply(status=200, body=request + blob, amount=10**19, receipts=("bafyreceipt",))


DIES = """
import asyncio, itertools, os, sys
from pathlib import Path
from node.batches.desk import open_batches
from node.batches.records import Reply

said = itertools.count(1)

async def main():
    async with open_batches(Path(sys.argv[1])) as batches:
        async def perform(task, request, blob, story):
            await asyncio.sleep(0.002)
            print(request.decode(), flush=True)
            if next(said) >= int(sys.argv[2]):
                await asyncio.sleep(3600)
            return Reply(status=200, body=request + blob)
        await batches.tasks.run(perform)

asyncio.run(main())
"""


@pytest.mark.processes
async def test_after_kill_9_every_task_is_done_and_few_were_asked_twice(tmp_path: Path) -> None:
    count = 120
    async with desk_in(tmp_path) as desk:
        ids = [(await handed_in(desk, str(n), blob=b"!" * (n % 3))).id for n in range(count)]
    asked: list[str] = []
    for kill_after in (5, 25, 40):
        said = await said_until_killed(DIES, tmp_path, lines=kill_after)
        asked += [line.strip() for line in said if line.strip().isdigit()]

    async def noted(task: Task, request: bytes, blob: bytes, story: Story) -> Reply:
        asked.append(request.decode())
        return await echo(task, request, blob, story)

    async with desk_in(tmp_path) as desk, crew(desk, noted):
        tasks = [await over(desk, id) for id in ids]
        results = [desk.result(task).read_bytes() for task in tasks]
        await files_are(tmp_path, *(f"{id}-result" for id in ids))
    assert {task.status for task in tasks} == {TaskStatus.DONE}
    assert results == [str(n).encode() + b"!" * (n % 3) for n in range(count)]
    assert set(asked) == {str(n) for n in range(count)}
    assert len(asked) - count <= 3 * 4
    assert max(task.deaths for task in tasks) <= 3


async def test_what_is_more_urgent_is_taken_first_and_then_in_turn(tmp_path: Path) -> None:
    order: list[str] = []

    async def noted(task: Task, request: bytes, blob: bytes, story: Story) -> Reply:
        order.append(request.decode())
        return await echo(task, request, blob, story)

    async with desk_in(tmp_path) as desk:
        desk._lanes[1, 2]._value = 1
        tasks = [
            await handed_in(desk, f"{mode}{n}", mode)
            for n, mode in enumerate((Mode.ASYNC, Mode.BATCH, Mode.ASYNC, Mode.BATCH))
        ]
        assert [await desk.position(task.id) for task in tasks] == [2, 0, 3, 1]
        async with crew(desk, noted):
            for task in tasks:
                await over(desk, task.id)
    assert order == ["batch1", "batch3", "async0", "async2"]


async def test_one_key_is_one_task_however_many_come_at_once(tmp_path: Path) -> None:
    same = {"work": "chat", "model": "small", "mode": Mode.ASYNC, "request": b"x", "expires_in_s": 60, "key": b"k"}
    async with desk_in(tmp_path) as desk:
        several = await asyncio.gather(*(desk.submit(**same, digest=b"d", blob=b"image") for _ in range(8)))
        other = await desk.submit(**same, digest=b"e", blob=b"image")
        assert {submitted.task.id for submitted in (*several, other)} == {several[0].task.id}
        assert (other.same, all(submitted.same for submitted in several)) == (False, True)
        assert [path.name for path in (tmp_path / "tasks").iterdir()] == [f"{several[0].task.id}-input"]


async def test_only_so_much_waits_and_what_is_over_makes_room(tmp_path: Path) -> None:
    async with desk_in(tmp_path, waiting=2, waiting_bytes=100) as desk:
        with pytest.raises(QueueFull):
            await handed_in(desk, "x", blob=b"x" * 100)
        assert list((tmp_path / "tasks").iterdir()) == []
        first, _ = [await handed_in(desk) for _ in range(2)]
        with pytest.raises(QueueFull):
            await handed_in(desk)
        await desk.cancel(first.id)
        await handed_in(desk)


async def test_results_are_kept_for_a_while_and_the_newest_longest(tmp_path: Path) -> None:
    now_s = 1_000.0
    async with desk_in(tmp_path, now_s=lambda: now_s, kept=3, keep_s=50) as desk, crew(desk, echo):
        ids = [(await handed_in(desk)).id for _ in range(5)]

        async def left(*wanted: str) -> None:
            while [task.id for task in await desk.tasks(limit=10)] != list(wanted):
                await asyncio.sleep(0.01)

        async with asyncio.timeout(60):
            await left(*ids[:1:-1])
            now_s = 1_050.0
            await left()
            await files_are(tmp_path)


async def test_what_waits_too_long_expires_even_if_nobody_serves_it(tmp_path: Path) -> None:
    now_s = 1_000.0

    async def never(*_: Any) -> Reply:
        return LATER

    async with desk_in(tmp_path, now_s=lambda: now_s, pauses_s=(1e6,)) as desk, crew(desk, never):
        task = await handed_in(desk, expires_in_s=10, blob=b"image")
        async with asyncio.timeout(60):
            while (seen := await desk.task(task.id)) is None or not seen.error:
                await asyncio.sleep(0.01)
        assert (seen.status, seen.error) == (TaskStatus.QUEUED, {"code": "no_provider"})
        now_s = 1_011.0
        assert (await over(desk, task.id)).status is TaskStatus.EXPIRED
        await files_are(tmp_path)


@pytest.mark.parametrize(("mode", "attempts"), [(Mode.REALTIME, 1), (Mode.BATCH, 3)])
async def test_how_often_is_tried_follows_from_who_waits(tmp_path: Path, mode: Mode, attempts: int) -> None:
    async def never(*_: Any) -> Reply:
        return LATER

    async with desk_in(tmp_path) as desk, crew(desk, never):
        task = await over(desk, (await handed_in(desk, mode=mode)).id)
    assert (task.status, task.attempts) == (TaskStatus.FAILED, attempts)


async def test_a_task_under_which_the_node_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    async with desk_in(tmp_path, deaths=2) as desk:
        id = (await handed_in(desk)).id
        for _ in range(2):
            assert await desk._book.take((1, 2), time.time()) is not None
            await desk._book.line_up_again(died=True)
        async with crew(desk, echo):
            task = await over(desk, id)
    assert task.status is TaskStatus.FAILED
    assert task.error is not None and "again and again" in task.error["message"]


async def test_stopping_is_no_death(tmp_path: Path) -> None:
    async def slow(*_: Any) -> Reply:
        await asyncio.sleep(3600)
        return LATER

    async with desk_in(tmp_path) as desk:
        id = (await handed_in(desk)).id
        for attempts in (1, 2):
            async with crew(desk, slow), asyncio.timeout(60):
                while (task := await desk.task(id)) is None or task.status is not TaskStatus.RUNNING:
                    await asyncio.sleep(0.01)
            task = await desk.task(id)
            assert task is not None
            assert (task.status, task.attempts, task.deaths) == (TaskStatus.QUEUED, attempts, 0)


async def test_a_bug_of_ours_is_tried_again(tmp_path: Path) -> None:
    stumbled = False

    async def once(task: Task, request: bytes, blob: bytes, story: Story) -> Reply:
        nonlocal stumbled
        if not stumbled:
            stumbled = True
            raise RuntimeError("a bug of ours")
        return await echo(task, request, blob, story)

    async with desk_in(tmp_path) as desk, crew(desk, once):
        assert (await over(desk, (await handed_in(desk)).id)).attempts == 2


async def test_input_and_queue_are_their_owners_alone_and_input_goes_at_the_end(tmp_path: Path) -> None:
    secret = "a secret prompt"
    async with desk_in(tmp_path / "batches") as desk:
        task = await handed_in(desk, secret, blob=b"image")
        for path in (tmp_path / "batches" / "tasks", tmp_path / "batches"):
            assert path.stat().st_mode & 0o077 == 0
        assert (tmp_path / "batches" / "tasks" / f"{task.id}-input").stat().st_mode & 0o177 == 0
        await desk.cancel(task.id)
        row = await desk._book._lane.run(lambda c: c.execute("SELECT request FROM tasks").fetchone())
    assert row == (None,)
    assert list((tmp_path / "batches" / "tasks").iterdir()) == []


async def test_numbers_of_events_grow_over_restarts(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        task = await handed_in(desk)
        assert await desk._book.take((1, 2), time.time()) is not None
    async with desk_in(tmp_path) as desk:
        await desk._book.line_up_again(died=True)
        task = await desk.cancel(task.id)
        assert task.seq == 2 * SEQ_PER_ATTEMPT


@pytest.mark.parametrize("before", list(TaskStatus))
@pytest.mark.parametrize("after", list(TaskStatus))
def test_a_step_that_is_not_in_the_table_is_refused(before: TaskStatus, after: TaskStatus) -> None:
    if after in TASK_STEPS.get(before, ()):
        check_task_step(before, after)
    else:
        with pytest.raises(StepNotAllowed):
            check_task_step(before, after)
