"""What the books say was saved is there, whoever dies and whatever fills up; and no channel goes back."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from market.channel import Channel, ChannelStep, pay, step
from market.errors import DiskFull, NodeMisconfigured, StepNotAllowed
from market.money import OCTO
from market.quote import Quote, sign_quote
from market.receipt import Receipt, sign_receipt
from market.record import ReceiptRecord
from market.signing import Secp256k1Signer
from market.testing import check_books
from market.voucher import ChannelTerms, sign_opening
from node.store import Store, open_store

ROOT = Path(__file__).resolve().parents[2]
WALLET, SESSION, RECEIPTS = (Secp256k1Signer(bytes([n]) * 32) for n in (1, 2, 3))


def channel(salt: int = 1, role: str = "payer") -> Channel:
    terms = ChannelTerms(
        network="octo",
        rail="ledger/1",
        payer=WALLET.address,
        payee=RECEIPTS.address,
        session_key=SESSION.address,
        salt=salt.to_bytes(32, "big"),
    )
    opening = sign_opening(terms, 5 * OCTO, WALLET)
    return Channel(role=role, peer="peer", terms=terms, opening=opening, deposit=opening.deposit)


def paid(before: Channel, amount: int = 10, leaf: bytes = b"\1" * 32) -> Channel:
    return pay(before, amount, leaf, SESSION)[0]


def record(
    seq: int = 0, *, task: bytes = b"\5" * 32, role: str = "client", tokens: int = 32, **changes
) -> ReceiptRecord:
    common = {
        "network": "octo", "rail": "ledger/1", "task": task, "provider": "them", "client": "us", "model": "m",
        "weights": "w", "engine": "e", "prompt": b"\6" * 32, "sampling": b"\7" * 32, "tokens_in": 5,
    }  # fmt: skip
    quote = Quote(**common, max_tokens=64, price_in=1, price_out=2, tick_tokens=64, expires_ms=1, final=True)
    signed = sign_quote(quote, RECEIPTS)
    body = {**common, "binding": "b", "channel": channel().id, "seq": seq, "final": seq > 0, "finish": "stop",
            "quote": signed.digest(), "tokens_out": tokens, "chunks": 1, "chain_head": b"\0" * 32,
            "transcript_root": b"\0" * 32, "amount": 20 * OCTO, "started_ms": 1, "ended_ms": 2, **changes}  # fmt: skip
    return ReceiptRecord(
        role=role,
        receipt=sign_receipt(Receipt(**body), RECEIPTS),
        quote=signed,
        binding=b"binding",
        tokens=tuple(range(tokens)),
        chunk_sizes=(tokens,),
        text_sizes=(7,),
        text_digests=(b"\2" * 32,),
        salt=b"\3" * 32,
    )


async def check_books_whole(books) -> None:
    """What any `market.ports.Books` must do; `books` starts empty."""
    first = channel(41)
    assert list(await books.channels()) == []
    await books.save(first)
    await books.save(second := paid(first))
    assert list(await books.channels()) == [second]
    await books.save(second, receipts=[record(0), record(1)])
    assert list(await books.receipts(task=b"\5" * 32)) == [record(0), record(1)]
    assert list(await books.receipts(task=b"\6" * 32)) == []
    await books.save(second, receipts=[record(1)])
    assert len(await books.receipts(task=b"\5" * 32)) == 2
    with pytest.raises(StepNotAllowed):
        await books.save(first)
    with pytest.raises(StepNotAllowed):
        await books.save(paid(second), receipts=[record(2), record(1, tokens_out=31)])
    assert list(await books.channels()) == [second], "half of a refused save was written"
    assert len(await books.receipts(task=b"\5" * 32)) == 2, "half of a refused save was written"
    await books.save(None, receipts=[record(2)])
    assert len(await books.receipts(task=b"\5" * 32)) == 3


@pytest.fixture
async def store(tmp_path):
    async with open_store(tmp_path / "store.db") as opened:
        yield opened


async def test_the_store_keeps_books(store):
    await check_books(store, paid(channel()), channel(), record())


async def test_the_store_keeps_whole_books(store):
    await check_books_whole(store)


async def test_what_was_saved_is_there_after_closing(tmp_path):
    last = paid(paid(channel()))
    async with open_store(tmp_path / "store.db") as store:
        await store.save(last, receipts=[record(0)])
    async with open_store(tmp_path / "store.db") as store:
        assert list(await store.channels()) == [last]
        assert list(await store.receipts(task=b"\5" * 32)) == [record(0)]


async def test_nobody_else_can_read_the_answers(tmp_path):
    async with open_store(tmp_path / "store.db") as store:
        await store.save(channel())
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("lower", "word"),
    [
        (lambda c: replace(c, paid=c.paid - 1), "paid"),
        (lambda c: replace(c, deposit=c.deposit - 1), "deposit"),
        (lambda c: paid(channel(), 1000), "receipts"),
        (lambda c: paid(paid(channel(), 10, b"\1" * 32), 10, b"\x08" * 32), "receipts"),
    ],
)
async def test_a_channel_never_goes_back(store, lower, word):
    held = paid(paid(channel(), 10, b"\1" * 32), 10, b"\2" * 32)
    await store.save(held)
    with pytest.raises(StepNotAllowed, match=word):
        await store.save(lower(held))
    assert list(await store.channels()) == [held]


async def test_a_closed_channel_does_not_open_again(store):
    closing = step(channel(), ChannelStep.REQUEST_CLOSE)
    await store.save(closing)
    with pytest.raises(StepNotAllowed, match="state"):
        await store.save(channel())


async def test_both_sides_of_one_channel_may_lie_in_one_store(store):
    await store.save(channel(role="payer"))
    await store.save(channel(role="payee"))
    assert [c.role for c in await store.channels()] == ["payer", "payee"]


async def test_two_receipts_for_one_step_are_refused_and_the_first_is_kept(store):
    await store.save(None, receipts=[record(1)])
    with pytest.raises(StepNotAllowed, match="equivocation"):
        await store.save(None, receipts=[record(1, ended_ms=3)])
    assert list(await store.receipts(task=b"\5" * 32)) == [record(1)]


async def test_the_same_task_on_another_channel_is_no_equivocation(store):
    """A buyer that failed over asks the next provider for the same task."""
    await store.save(None, receipts=[record(0), record(0, channel=b"\x0b" * 32)])
    assert len(await store.receipts(task=b"\5" * 32)) == 2


async def test_a_receipt_is_found_by_its_cid(store):
    await store.save(None, receipts=[record(0), record(1)])
    assert await store.receipt_by_cid(record(1).receipt.cid()) == record(1)
    assert await store.receipt_by_cid("bafyno") is None


async def test_the_latest_receipts_come_first(store):
    await store.save(None, receipts=[record(0), record(1), record(0, role="provider")])
    assert list(await store.latest_receipts(2)) == [record(0, role="provider"), record(1)]
    assert list(await store.latest_receipts(role="client")) == [record(1), record(0)]
    assert list(await store.latest_receipts(final_only=True)) == [record(1)]


async def test_the_longest_answer_fits(store):
    long = record(0, tokens=131_072)
    await store.save(None, receipts=[long])
    assert await store.receipt_by_cid(long.receipt.cid()) == long


async def test_callers_that_wait_together_share_a_transaction(store, tmp_path):
    """Many savers, few fsyncs: the log grows by one commit for a group, not one for each."""
    watch = sqlite3.connect(tmp_path / "store.db")
    commits = 0

    async def count() -> None:
        nonlocal commits
        seen = watch.execute("PRAGMA data_version").fetchone()
        while True:
            await asyncio.sleep(0)
            now = watch.execute("PRAGMA data_version").fetchone()
            commits, seen = commits + (now != seen), now

    counting = asyncio.create_task(count())
    await asyncio.gather(*(store.save(channel(n)) for n in range(200)))
    counting.cancel()
    watch.close()
    assert len(await store.channels()) == 200
    assert commits <= 20


async def test_one_bad_save_in_a_group_fails_alone(store):
    await store.save(paid(channel(7)))
    saves = [store.save(channel(n)) for n in range(20)]
    answers = await asyncio.gather(*saves, return_exceptions=True)
    assert [n for n, answer in enumerate(answers) if answer is not None] == [7]
    assert len(await store.channels()) == 20


async def test_a_caller_that_gives_up_leaves_a_whole_save(store):
    saving = asyncio.create_task(store.save(paid(channel()), receipts=[record(0)]))
    await asyncio.sleep(0)
    saving.cancel()
    await asyncio.gather(saving, return_exceptions=True)
    await store.save(channel(2))
    assert len(await store.channels()) == 2
    assert len(await store.receipts(task=b"\5" * 32)) == 1


async def test_a_closed_store_says_so(tmp_path):
    async with open_store(tmp_path / "store.db") as store:
        pass
    with pytest.raises(StepNotAllowed, match="closed"):
        await store.save(channel())


async def fill(store: Store) -> int:
    """Save until it is full; how many saves returned."""
    for number in range(10_000):
        try:
            await store.save(channel(number), receipts=[record(number, tokens=500)])
        except DiskFull as error:
            assert "no room" in error.message
            assert error.next_step
            return number
    raise AssertionError("it never filled up")


async def test_a_store_at_its_limit_says_so_and_loses_nothing(tmp_path):
    async with open_store(tmp_path / "store.db", limit_bytes=200_000) as store:
        saved = await fill(store)
        assert saved > 10
        assert len(await store.channels()) == saved
    async with open_store(tmp_path / "store.db") as store:
        await store.save(channel(saved), receipts=[record(saved)])
        assert len(await store.channels()) == len(await store.receipts(task=b"\5" * 32)) == saved + 1


@pytest.fixture
def small_disk():
    """A tmpfs of one MiB, really mounted."""
    with tempfile.TemporaryDirectory() as mountpoint:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mountpoint], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("mounting a tmpfs takes root; the page limit above shows the same error")
        try:
            yield Path(mountpoint)
        finally:
            subprocess.run(["umount", mountpoint], check=True)


async def test_a_full_disk_says_so_and_loses_nothing(small_disk):
    async with open_store(small_disk / "store.db") as store:
        saved = await fill(store)
        assert len(await store.channels()) == saved
        with pytest.raises(DiskFull):
            for number in range(saved, saved + 50):
                await store.save(channel(number), receipts=[record(number, tokens=500)])
                saved += 1
        subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
        await store.save(channel(saved), receipts=[record(saved)])
        assert len(await store.channels()) == len(await store.receipts(task=b"\5" * 32)) == saved + 1


_WRITER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import channel, paid, record
from node.store import open_store

async def save(store, salt):
    held = channel(salt)
    for seq in range(100_000):
        held = paid(held, 1, seq.to_bytes(32, "big"))
        await store.save(held, receipts=[record(seq, task=salt.to_bytes(32, "big"))])
        print(salt, seq, flush=True)

async def main():
    async with open_store(Path(sys.argv[1])) as store:
        await asyncio.gather(*(save(store, salt) for salt in range(4)))

asyncio.run(main())
"""


@pytest.mark.parametrize("after", [1, 40, 150])
async def test_every_save_that_returned_survives_kill_9(tmp_path, after):
    path = tmp_path / "store.db"
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, path, Path(__file__).parent],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    heard = [writer.stdout.readline() for _ in range(after)]
    writer.send_signal(signal.SIGKILL)
    heard += writer.stdout.readlines()
    writer.wait()
    writer.stdout.close()
    last = {}
    for line in heard:
        if line.endswith("\n"):
            salt, seq = map(int, line.split())
            last[salt] = seq
    assert last
    async with open_store(path) as store:
        channels = {int.from_bytes(c.terms.salt, "big"): c for c in await store.channels()}
        for salt, seq in last.items():
            receipts = await store.receipts(task=salt.to_bytes(32, "big"))
            assert len(receipts) == channels[salt].paid == channels[salt].receipts.size, "a save was half done"
            assert len(receipts) >= seq + 1, "a save that returned is gone"
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    (tmp_path / "store.db").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(NodeMisconfigured, match="damaged or not a database"):
        async with open_store(tmp_path / "store.db"):
            pass
    assert (tmp_path / "store.db").read_bytes() == b"not a database at all" * 1000


async def test_books_that_another_process_makes_in_this_moment_are_waited_for(tmp_path):
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None, check_same_thread=False)
    other.execute("begin immediate")
    other.execute("create table half(made)")
    ending = threading.Timer(0.2, other.execute, ["rollback"])
    ending.start()
    async with open_store(tmp_path / "store.db") as store:
        await store.save(channel())
    ending.join()
    other.close()


async def test_a_store_of_a_newer_version_is_refused(tmp_path):
    async with open_store(tmp_path / "store.db"):
        pass
    with sqlite3.connect(tmp_path / "store.db") as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(NodeMisconfigured, match="newer octo-node"):
        async with open_store(tmp_path / "store.db"):
            pass


async def test_a_migration_that_was_killed_before_its_number_runs_again(tmp_path):
    async with open_store(tmp_path / "store.db") as store:
        await store.save(channel())
    with sqlite3.connect(tmp_path / "store.db") as database:
        database.execute("PRAGMA user_version = 0")
    async with open_store(tmp_path / "store.db") as store:
        assert list(await store.channels()) == [channel()]
