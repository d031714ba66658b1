"""Stories over a buyer and sellers in one process: what is delivered is paid, and nothing else is."""

from __future__ import annotations

import asyncio

import pytest
from no_waiting import NO_WAITING
from shop import OCTO, make_order, settle

from market.errors import (
    EngineFailed,
    InsufficientFunds,
    NoProvider,
    PaymentRefused,
    PeerFailed,
    PromptTooLong,
)
from market.task import Privacy
from market.testing import ByteTokenizer, ScriptedEngine


@pytest.fixture
def anyio_backend():
    return NO_WAITING


async def test_an_answer_is_delivered_receipted_and_paid_to_the_last_unit(shop):
    bob, alice = shop.seller(), shop.buyer()
    text, purchase = await alice.ask()
    await settle(bob)
    outcome = purchase.outcome
    assert text == "Hello from the engine."
    assert outcome.tokens_out == len(text)
    assert outcome.finish == "stop"
    assert alice.spent() == bob.earned() == outcome.amount == (outcome.tokens_in * OCTO + 22 * 3 * OCTO) // 10**6
    final = alice.books.records[-1]
    assert final.receipt.cid() == outcome.receipt
    assert final.receipt.read().final


async def test_each_tick_has_its_receipt_on_both_sides(shop):
    bob, alice = shop.seller(), shop.buyer()
    await alice.ask()
    await settle(bob)
    assert [r.receipt.read().tokens_out for r in alice.books.records] == [8, 16, 22]
    assert [r.receipt for r in alice.books.records] == [r.receipt for r in bob.books.records]


async def test_many_tasks_share_one_channel_and_add_up(shop):
    bob, alice = shop.seller(), shop.buyer()
    answers = await asyncio.gather(*(alice.ask(f"question {n}") for n in range(20)))
    await settle(bob)
    assert {text for text, _ in answers} == {"Hello from the engine."}
    assert alice.spent() == bob.earned() == sum(purchase.outcome.amount for _, purchase in answers)
    assert len([c for c in alice.books.saved.values() if c.paid]) <= 2


async def test_the_cheapest_provider_is_chosen_and_the_other_is_told_why_not(shop):
    dear, cheap, alice = shop.seller("dear", price_out=9 * OCTO), shop.seller("cheap"), shop.buyer()
    _, purchase = await alice.ask()
    assert purchase.outcome.provider == cheap.party.peer
    assert "ranked 2 of 2: at most 0.00" in purchase.outcome.not_chosen[dear.party.peer]
    assert "cheapest of 2" in purchase.outcome.because


async def test_a_provider_that_is_gone_before_the_first_token_is_replaced(shop):
    dear, cheap, alice = shop.seller("dear", price_out=9 * OCTO), shop.seller("cheap"), shop.buyer()
    shop.mesh.cut.add(cheap.party.peer)
    text, purchase = await alice.ask()
    assert text == "Hello from the engine."
    assert purchase.outcome.provider == dear.party.peer
    assert cheap.party.peer in purchase.outcome.failed


async def test_an_engine_that_fails_before_the_first_token_is_replaced(shop):
    broken = ScriptedEngine(fail_after=0, failure=EngineFailed("the worker died."))
    shop.seller("cheap", engine=broken)
    dear, alice = shop.seller("dear", price_out=9 * OCTO), shop.buyer()
    text, purchase = await alice.ask()
    assert text == "Hello from the engine."
    assert purchase.outcome.provider == dear.party.peer


async def test_a_failure_after_the_first_token_is_a_clean_error_and_only_receipted_chunks_are_paid(shop):
    broken = ScriptedEngine(delay_s=0.005, fail_after=20, failure=EngineFailed("the worker died."))
    bob, alice = shop.seller(engine=broken), shop.buyer()
    seen = []
    with pytest.raises(PeerFailed, match="worker died"):
        async with alice.buyer.buy(make_order()) as purchase:
            async for delta in purchase.deltas():
                seen.append(delta.text)
    await settle(bob)
    last = alice.books.records[-1].receipt.read()
    assert last.tokens_out == 16
    assert alice.spent() == bob.earned() == last.amount
    assert "".join(seen) == "Hello from the engine."[: len("".join(seen))]


async def test_a_reader_who_hangs_up_stops_the_engine_and_pays_for_what_came(shop):
    engine = ScriptedEngine("x" * 1000, delay_s=0.004)
    bob, alice = shop.seller(engine=engine), shop.buyer()
    async with alice.buyer.buy(make_order()) as purchase:
        async for _ in purchase.deltas():
            break
    hung_up_s = asyncio.get_running_loop().time()
    await asyncio.sleep(0.5)
    assert engine.running == 0
    assert engine.last_generated_s - hung_up_s < 0.25
    receipt = alice.books.records[-1].receipt.read()
    assert receipt.finish == "cancelled"
    assert alice.spent() == bob.earned() == receipt.amount


async def test_a_stop_string_ends_the_answer_and_is_not_shown(shop):
    shop.seller()
    text, purchase = await shop.buyer().ask(stop=("the",))
    assert text == "Hello from "
    assert purchase.outcome.finish == "stop"


async def test_max_tokens_ends_the_answer_with_length(shop):
    shop.seller()
    text, purchase = await shop.buyer().ask(max_tokens=5)
    assert (text, purchase.outcome.finish, purchase.outcome.tokens_out) == ("Hello", "length", 5)


async def test_no_provider_says_why_for_each_one(shop):
    bob = shop.seller()
    with pytest.raises(NoProvider) as raised:
        await shop.buyer().ask(privacy=Privacy.CONFIDENTIAL)
    assert "confidential" in raised.value.reasons[bob.party.peer]


async def test_an_unstaked_provider_is_refused_shared_tasks_with_the_reason_and_may_have_public_ones(shop):
    bob = shop.seller()
    alice = shop.buyer(vet=lambda checked: "has no stake for its tier")
    with pytest.raises(NoProvider) as raised:
        await alice.ask()
    assert raised.value.reasons == {bob.party.peer: "has no stake for its tier"}
    text, _ = await alice.ask(privacy=Privacy.PUBLIC)
    assert text == "Hello from the engine."


async def test_a_prompt_over_every_context_is_refused_before_anyone_is_asked(shop):
    bob = shop.seller(engine=ScriptedEngine(context=64))
    with pytest.raises(PromptTooLong, match="64"):
        await shop.buyer().ask("x" * 100)
    assert bob.books.saved == {}


async def test_megabytes_of_prompt_are_refused_without_being_tokenized(shop):
    shop.seller(engine=ScriptedEngine(context=64))

    class Counting(ByteTokenizer):
        rendered = 0

        def render(self, messages, tools=()):
            Counting.rendered += 1
            return super().render(messages, tools)

    alice = shop.buyer(tokenizer=Counting())
    with pytest.raises(PromptTooLong, match="64 tokens"):
        await alice.ask("x" * 1_000_000)
    assert Counting.rendered == 0


async def test_an_empty_purse_is_said_so_and_nothing_is_owed(shop):
    bob = shop.seller()
    with pytest.raises(InsufficientFunds):
        await shop.buyer(granted=0).ask()
    assert bob.earned() == 0


async def test_while_vouchers_cannot_become_money_and_too_much_waits_no_task_is_taken(shop):
    bob, alice = shop.seller(), shop.buyer()
    await alice.ask()
    await settle(bob)

    async def away():
        raise PaymentRefused("the chain is away and 5 OCTO wait to be redeemed.")

    bob.till._rail.check_serving = away
    with pytest.raises(NoProvider) as raised:
        await alice.ask()
    assert "the chain is away" in raised.value.reasons[bob.party.peer]
    assert alice.spent() == bob.earned()  # refused before anything was prepaid


async def test_a_node_pays_nothing_to_itself(shop):
    bob = shop.seller("solo")
    solo = shop.buyer("solo")
    shop.mesh.join(bob.party.peer, bob.seller.serve)
    text, purchase = await solo.ask()
    assert text == "Hello from the engine."
    assert purchase.outcome.amount == 0
