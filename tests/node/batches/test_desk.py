"""The queue of batches without HTTP: what a kill, a full disk, time and a missing provider do to it."""

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from market.errors import NodeMisconfigured, RequestInvalid, StepNotAllowed
from node.batches.desk import BatchDesk, open_batches
from node.batches.records import STEPS, Batch, BatchLimits, Reply, Status, check_step
from tests.node.batches.batch_kit import crew, said_until_killed

ENDPOINT = "/v1/completions"


def lines(count: int) -> bytes:
    return b"".join(
        json.dumps({"custom_id": f"q{n}", "method": "POST", "url": ENDPOINT, "body": {"n": n}}).encode() + b"\n"
        for n in range(count)
    )


@asynccontextmanager
async def desk_in(folder: Path, *, now_s: Callable[[], float] = time.time, **limits: Any) -> AsyncIterator[BatchDesk]:
    wanted = BatchLimits(**{"pauses_s": (0.01, 0.02), **limits})
    async with open_batches(folder, limits=wanted, now_s=now_s, random=os.urandom) as desk:
        yield desk


async def uploaded(desk: BatchDesk, content: bytes, *, expires_in_s: int | None = None) -> str:
    async with desk.incoming() as (id, incoming):
        await incoming.write(content)
    return (await desk.add_file(id, name="in.jsonl", size=len(content), expires_in_s=expires_in_s)).id


async def handed_in(desk: BatchDesk, count: int) -> Batch:
    return await desk.create(endpoint=ENDPOINT, input=await uploaded(desk, lines(count)), metadata={})


async def at_end(desk: BatchDesk, id: str) -> Batch:
    async with asyncio.timeout(60):
        while (batch := await desk.batch(id)) is None or batch.status in STEPS:
            await asyncio.sleep(0.01)
    return batch


async def output(desk: BatchDesk, id: str) -> list[Any]:
    file = await desk.file(id)
    assert file is not None
    content = desk.content(file).read_bytes()
    assert len(content) == file.size
    return [json.loads(said) for said in content.splitlines()]


async def yes(_endpoint: str, body: bytes, _whose: str) -> Reply:
    return Reply(status=200, body=body, tokens_in=1, tokens_out=2, amount=10**19)


DIES = """
import asyncio, itertools, os, sys, time
from pathlib import Path
from node.batches.desk import open_batches
from node.batches.records import BatchLimits, Reply

said = itertools.count(1)

async def main():
    async with open_batches(Path(sys.argv[1]), limits=BatchLimits(), now_s=time.time, random=os.urandom) as desk:
        async def answer(endpoint, body, whose):
            await asyncio.sleep(0.002)
            print(body.decode(), flush=True)
            if next(said) >= int(sys.argv[2]):
                await asyncio.sleep(3600)
            return Reply(status=200, body=body, amount=1)
        print("ready", flush=True)
        await desk.run(answer)

asyncio.run(main())
"""


@pytest.mark.processes
async def test_after_kill_9_every_line_is_answered_and_counted_once(tmp_path: Path) -> None:
    count = 300
    async with desk_in(tmp_path) as desk:
        id = (await handed_in(desk, count)).id
    asked: list[int] = []
    for kill_after in (5, 40, 90):
        said = await said_until_killed(DIES, tmp_path, lines=kill_after)
        asked += [json.loads(line)["n"] for line in said if line.startswith("{")]
    again: list[int] = []

    async def answer(endpoint: str, body: bytes, _whose: str) -> Reply:
        again.append(json.loads(body)["n"])
        return await yes(endpoint, body, "")

    async with desk_in(tmp_path) as desk, crew(desk, answer):
        batch = await at_end(desk, id)
        answers = await output(desk, batch.output)
    assert (batch.status, batch.total, batch.completed, batch.failed) == (Status.COMPLETED, count, count, 0)
    assert [(a["custom_id"], a["response"]["body"]["n"]) for a in answers] == [(f"q{n}", n) for n in range(count)]
    assert set(asked) | set(again) == set(range(count))
    twice = len(asked) + len(again) - count
    assert 0 <= twice <= 3 * BatchLimits().under_way  # what was under way, at each of three deaths


async def test_a_line_that_may_go_better_later_is_tried_again(tmp_path: Path) -> None:
    tries: dict[bytes, int] = {}

    async def second_time(endpoint: str, body: bytes, _whose: str) -> Reply:
        tries[body] = tries.get(body, 0) + 1
        return await yes(endpoint, body, "") if tries[body] > 1 else Reply(status=503, body=b"{}", retry=True)

    async with desk_in(tmp_path) as desk, crew(desk, second_time):
        batch = await at_end(desk, (await handed_in(desk, 5)).id)
    assert (batch.completed, set(tries.values())) == (5, {2})


async def test_once_a_line_waited_in_vain_the_others_do_not(tmp_path: Path) -> None:
    tries = 0

    async def never(_endpoint: str, _body: bytes, _whose: str) -> Reply:
        nonlocal tries
        tries += 1
        return Reply(status=503, body=b'{"error": {}}', retry=True)

    async with desk_in(tmp_path, under_way=1) as desk, crew(desk, never):
        batch = await at_end(desk, (await handed_in(desk, 20)).id)
        errors = await output(desk, batch.error)
    assert (batch.status, batch.failed, batch.output) == (Status.COMPLETED, 20, "")
    assert tries == 3 + 19
    assert errors[0]["response"]["status_code"] == 503


async def test_a_batch_that_takes_too_long_expires_with_what_there_is(tmp_path: Path) -> None:
    async def slow(endpoint: str, body: bytes, _whose: str) -> Reply:
        if json.loads(body)["n"]:
            await asyncio.sleep(3600)
        return await yes(endpoint, body, "")

    now_s = 1_000.0
    async with desk_in(tmp_path, now_s=lambda: now_s, window_s=4) as desk:
        async with crew(desk, slow):
            batch = await at_end(desk, (await handed_in(desk, 3)).id)
        assert (batch.status, batch.completed, batch.amount) == (Status.EXPIRED, 1, 10**19)
        assert [error["error"]["code"] for error in await output(desk, batch.error)] == ["batch_expired"] * 2
        assert len(await output(desk, batch.output)) == 1


async def test_two_batches_take_turns(tmp_path: Path) -> None:
    order: list[str] = []

    async def noted(endpoint: str, body: bytes, _whose: str) -> Reply:
        order.append(endpoint)
        await asyncio.sleep(0.001)
        return await yes(endpoint, body, "")

    async with desk_in(tmp_path, under_way=2) as desk:
        first = await handed_in(desk, 60)
        content = lines(6).replace(ENDPOINT.encode(), b"/v1/embeddings")
        second = await desk.create(endpoint="/v1/embeddings", input=await uploaded(desk, content), metadata={})
        async with crew(desk, noted):
            await at_end(desk, second.id)
            await at_end(desk, first.id)
    last = max(n for n, endpoint in enumerate(order) if endpoint == "/v1/embeddings")
    assert last < 60


async def test_an_input_that_went_away_fails_its_batch(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        batch = await handed_in(desk, 1)
        assert await desk.remove_file(batch.input)
        async with crew(desk, yes):
            batch = await at_end(desk, batch.id)
    assert (batch.status, batch.problems[0]["code"]) == (Status.FAILED, "file_not_found")


async def test_a_file_is_gone_once_it_expired(tmp_path: Path) -> None:
    now_s = 1_000.0
    async with desk_in(tmp_path, now_s=lambda: now_s) as desk:
        id = await uploaded(desk, b"x", expires_in_s=10)
        assert await desk.file(id) is not None
        now_s = 1_010.0
        assert await desk.file(id) is None
        assert await desk.files() == []
        assert list((tmp_path / "files").iterdir()) == []


async def test_limits_on_files_lines_and_batches_hold(tmp_path: Path) -> None:
    async with desk_in(tmp_path, files=2, files_bytes=10_000, lines=3, line_bytes=200, open_batches=1) as desk:
        with pytest.raises(RequestInvalid, match="at most 2 files"):
            await uploaded(desk, b"x" * 10_001)
        many = await uploaded(desk, lines(4))
        long = await uploaded(desk, b'{"custom_id": "' + b"x" * 300 + b'"}\n')
        with pytest.raises(RequestInvalid, match="at most 2 files"):
            await uploaded(desk, b"x")
        assert len(list((tmp_path / "files").iterdir())) == 2
        batch = await desk.create(endpoint=ENDPOINT, input=many, metadata={})
        with pytest.raises(RequestInvalid, match="under way"):
            await desk.create(endpoint=ENDPOINT, input=many, metadata={})
        async with crew(desk, yes):
            batch = await at_end(desk, batch.id)
            assert batch.problems[0]["code"] == "too_many_lines"
            batch = await at_end(desk, (await desk.create(endpoint=ENDPOINT, input=long, metadata={})).id)
            assert batch.problems[0]["code"] == "line_too_long"


async def test_a_crew_that_stumbles_takes_the_batch_up_again(tmp_path: Path) -> None:
    stumbled = False

    async def once(endpoint: str, body: bytes, _whose: str) -> Reply:
        nonlocal stumbled
        if not stumbled:
            stumbled = True
            raise RuntimeError("a bug of ours")
        return await yes(endpoint, body, "")

    async with desk_in(tmp_path, again_s=0.05) as desk, crew(desk, once):
        batch = await at_end(desk, (await handed_in(desk, 3)).id)
    assert (batch.status, batch.completed) == (Status.COMPLETED, 3)


async def test_what_a_kill_cut_off_is_swept_away(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        kept = await uploaded(desk, b"x")
    (tmp_path / "files" / "file-cut.part").write_bytes(b"half")
    (tmp_path / "files" / "file-unknown").write_bytes(b"whole, and in no table")
    async with desk_in(tmp_path):
        assert [path.name for path in (tmp_path / "files").iterdir()] == [kept]


async def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    async with desk_in(tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / "queue.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(NodeMisconfigured, match="newer"):
        async with desk_in(tmp_path):
            pass


async def test_files_and_queue_are_their_owners_alone(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "batches") as desk:
        id = await uploaded(desk, b"x")
        for path in (tmp_path / "batches", tmp_path / "batches" / "files"):
            assert path.stat().st_mode & 0o077 == 0
        for path in (tmp_path / "batches" / "queue.db", tmp_path / "batches" / "files" / id):
            assert path.stat().st_mode & 0o177 == 0


@pytest.mark.parametrize("before", list(Status))
@pytest.mark.parametrize("after", list(Status))
def test_a_step_that_is_not_in_the_table_is_refused(before: Status, after: Status) -> None:
    if after in STEPS.get(before, ()):
        check_step(before, after)
    else:
        with pytest.raises(StepNotAllowed):
            check_step(before, after)
