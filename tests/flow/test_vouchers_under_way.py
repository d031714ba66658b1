"""Vouchers that are lost, late, overtaken or not written: the next one makes good, and nothing is paid twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from no_waiting import NO_WAITING
from shop import OCTO, make_order, settle

from market.errors import (
    DiskFull,
    InsufficientFunds,
    NoProvider,
    PeerFailed,
)
from market.merkle import Peaks
from market.parts import SellerTerms
from market.testing import ScriptedEngine


@pytest.fixture
def anyio_backend():
    return NO_WAITING


async def test_after_a_cut_connection_the_next_voucher_carries_what_was_missed(shop):
    """The payer signed and stored a voucher that never arrived; the next task on the channel makes it good."""
    bob, alice = shop.seller(), shop.buyer()
    await alice.ask()
    channel = next(iter(alice.books.saved.values()))
    bob_key = ("payee", channel.id)
    before = bob.books.saved[bob_key]
    # Bob forgets the last two vouchers, as if the connection had died before they arrived.
    older = Peaks().extend(channel.tail[:2])
    bob.till._channels[channel.id] = replace(before, paid=before.paid - 24 * OCTO // 10**6, receipts=older)
    del bob.books.saved[bob_key]
    alice.purse.leave(channel.id, broken=True)
    alice.purse._live.clear()
    _, purchase = await alice.ask()
    await settle(bob)
    assert purchase.outcome.channel == channel.id
    assert alice.spent() == bob.earned()


async def test_a_voucher_that_was_sent_in_order_and_still_lost_is_made_good_by_the_next_task(shop):
    """The provider died after the connection had taken the voucher and before its disk had: nothing looked broken."""
    bob, alice = shop.seller(), shop.buyer()
    await alice.ask()
    await settle(bob)
    channel = next(iter(alice.books.saved.values()))
    held = replace(channel, role="payee", peer=alice.party.peer, receipts=Peaks().extend(channel.tail[:2]), tail=())
    bob.till._channels[channel.id] = replace(held, paid=channel.paid - 42 * OCTO // 10**6)
    del bob.books.saved["payee", channel.id]
    _, purchase = await alice.ask()
    await settle(bob)
    assert purchase.outcome.channel == channel.id
    assert alice.spent() == bob.earned() == 2 * purchase.outcome.amount


async def test_a_long_answer_outlives_the_doubts_that_another_task_casts_on_its_channel(shop):
    """More vouchers than the tail holds lie between the answer's beginning and the doubt."""
    engine = ScriptedEngine("v" * 200, delay_s=0.001)
    bob, alice = shop.seller(engine=engine, terms=SellerTerms(tick_tokens=1, payment_timeout_s=5)), shop.buyer()
    await alice.ask(max_tokens=1)
    async with alice.buyer.buy(make_order()) as purchase:
        seen = 0
        async for delta in purchase.deltas():
            seen += delta.tokens
            if seen > 150:
                alice.purse._unsure.add(next(iter(alice.books.saved.values())).id)
                seen = -1000
    assert purchase.outcome.tokens_out == 200
    await settle(bob)
    assert alice.spent() == bob.earned()


async def test_a_voucher_that_is_overtaken_by_one_with_its_leaves_counts_for_its_task(shop):
    """A doubt makes the second task's voucher carry the first one's leaves again, and it is read first."""
    bob, alice = shop.seller(), shop.buyer()
    await alice.ask()
    await settle(bob)
    (channel,) = bob.books.saved.values()
    real_take, taken, held_up = bob.till.take, [], asyncio.Event()

    async def first_comes_last(account, frame):
        if frame.leaves == channel.receipts.size + 1:
            held_up.set()
            await asyncio.sleep(0.1)
        taken.append((frame.leaves, len(frame.added)))
        return await real_take(account, frame)

    bob.till.take = first_comes_last
    first = asyncio.create_task(alice.ask("one"))
    await held_up.wait()
    alice.purse._unsure.add(channel.id)
    answers = [await alice.ask("two"), await first]
    await settle(bob)
    assert (channel.receipts.size + 2, 2) == taken[0]
    assert {text for text, _ in answers} == {"Hello from the engine."}
    assert alice.spent() == bob.earned() == channel.paid + sum(p.outcome.amount for _, p in answers)
    assert bob.till.exposure() == 0


async def test_tasks_that_pay_at_once_cast_no_doubt_on_their_channel(shop):
    """What the provider has not taken yet is under way: nothing is sent again, nothing overtakes."""
    bob, alice = shop.seller(engine=ScriptedEngine("u" * 40, delay_s=0.001)), shop.buyer()
    real_take, lengths = bob.till.take, []

    async def slow(account, frame):
        lengths.append(len(frame.added))
        await asyncio.sleep(0.01)
        return await real_take(account, frame)

    bob.till.take = slow
    for _ in range(3):
        await asyncio.gather(*(alice.ask(f"question {n}") for n in range(6)))
    await settle(bob)
    assert sum(length > 1 for length in lengths) <= 2, "at most once as a round begins, for what is read late"
    assert alice.spent() == bob.earned()


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("restarted", [False, True])
async def test_on_a_channel_that_is_ending_nothing_is_signed_by_a_client_that_has_not_heard_of_it(
    shop, closed, restarted
):
    bob, alice = shop.seller(), shop.buyer()
    await alice.ask()
    await settle(bob)
    ((_, channel_id),) = bob.books.saved
    await bob.till.closing(channel_id, closed=closed)
    if restarted:
        bob.till._channels.clear()
        await bob.till.load()
    paid = bob.earned()
    with pytest.raises(NoProvider, match="every provider") as failed:
        await alice.ask()
    assert failed.value.reasons == {bob.party.peer: "the channel is closing. Open a new one."}
    assert alice.spent() == bob.earned() == paid
    assert not alice.standing.of(bob.party.peer).get("silent"), "it took nothing"
    await alice.purse.closing(channel_id, closed=closed)
    await alice.ask()
    await settle(bob)
    assert alice.spent() == bob.earned() == 2 * paid


async def test_vouchers_and_channels_survive_a_restart_of_the_client(shop):
    bob, alice = shop.seller(), shop.buyer()
    _, first = await alice.ask()
    again = shop.buyer(books=alice.books)
    await again.purse.load()
    _, second = await again.ask()
    await settle(bob)
    assert second.outcome.channel == first.outcome.channel
    assert again.spent() == bob.earned() == first.outcome.amount + second.outcome.amount


async def test_a_full_disk_at_the_client_stops_paying_before_anything_is_sent(shop):
    bob, alice = shop.seller(), shop.buyer()
    alice.books.fail_with = InsufficientFunds("the disk is full.")
    with pytest.raises(InsufficientFunds):
        await alice.ask()
    assert bob.earned() == 0


async def test_a_full_disk_at_the_provider_is_its_own_fault_and_said_so(shop):
    bob, alice = shop.seller(engine=ScriptedEngine("w" * 60, delay_s=0.002)), shop.buyer()
    real_save = bob.books.save

    async def full(channel, *, receipts=()):
        if receipts:
            raise DiskFull("the disk is full.")
        await real_save(channel, receipts=receipts)

    bob.books.save = full
    with pytest.raises(PeerFailed, match="disk is full"):
        await alice.ask()
    assert alice.spent() == bob.earned() == 9 * OCTO // 10**6  # the input, which was prepaid


async def test_a_cancelled_payment_is_either_not_made_or_whole(shop):
    """A reader hangs up while a voucher is on its way to disk: memory and disk still agree afterwards."""
    bob, alice = shop.seller(engine=ScriptedEngine("z" * 200, delay_s=0.001)), shop.buyer()
    real_save = alice.books.save

    async def slow(channel, *, receipts=()):
        await asyncio.sleep(0.02)
        await real_save(channel, receipts=receipts)
        await asyncio.sleep(0.02)

    alice.books.save = slow
    for hang_up_after_s in (0.01, 0.03, 0.05, 0.07, 0.09, 0.11, 0.15):
        async with alice.buyer.buy(make_order()):
            await asyncio.sleep(hang_up_after_s)
        running = list(alice.buyer._running)
        await asyncio.sleep(hang_up_after_s)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    text, _ = await alice.ask()
    await settle(bob)
    assert text == "z" * 200
    in_memory = {channel.id: channel.paid for channel in alice.purse._channels.values()}
    on_disk = {channel.id: channel.paid for channel in alice.books.saved.values()}
    assert in_memory == on_disk
