"""What the queue's book makes of the same thing said twice."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from market.errors import StepNotAllowed
from node.batches.book import Book, open_book
from node.batches.records import Batch, Line, Reply, Status

LINES = [Line(number=n, custom_id=f"q{n}", body=b"{}") for n in range(3)]


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[Book]:
    async with open_book(tmp_path / "queue.db") as book:
        batch = Batch(id="b", endpoint="/", input="f", status=Status.VALIDATING, expires_s=9)
        await book.add_batch(batch, open_limit=1)
        yield book


async def test_a_validation_that_was_cut_off_may_begin_anew(book: Book) -> None:
    await book.add_lines("b", LINES[:2])
    await book.add_lines("b", LINES)
    assert [row.custom_id for row in await book.answered("b", -1, 10)] == ["q0", "q1", "q2"]


async def test_of_two_replies_the_first_stays_and_counts(book: Book) -> None:
    await book.add_lines("b", LINES)
    await book.save_reply("b", 1, Reply(status=200, body=b"first", tokens_in=1, tokens_out=2, amount=3))
    await book.save_reply("b", 1, Reply(status=500, body=b"second", amount=3))
    batch = await book.batch("b")
    assert batch is not None
    assert (batch.completed, batch.failed, batch.amount, batch.tokens_in, batch.tokens_out) == (1, 0, 3, 1, 2)
    reply = (await book.answered("b", 0, 1))[0].reply
    assert reply is not None
    assert reply.body == b"first"
    following = await book.next_line("b", 0)
    assert following is not None
    assert following.number == 2


async def test_a_batch_ends_once(book: Book) -> None:
    await book.step("b", Status.CANCELLING, 5)
    await book.finish("b", Status.CANCELLED, 6, {})
    with pytest.raises(StepNotAllowed):
        await book.finish("b", Status.CANCELLED, 7, {})
    assert await book.open_batches() == []
