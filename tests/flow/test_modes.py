"""Realtime, batch and async: each has its price, its turn and its patience, on both sides of the market."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest
from no_waiting import NO_WAITING
from shop import MODEL, OCTO, make_order

from inference.engines.places import Places
from market.buyer import WorkOrder
from market.errors import EngineFailed, NoProvider, PeerError, PeerTimedOut
from market.message import Propose, TaskRequest
from market.modes import WAIT_TERMS, WaitTerms
from market.parts import DealTerms, SellerTerms
from market.quote import sign_quote
from market.task import Mode
from market.testing import Party, ScriptedEngine
from market.testing_work import ByteMeter, HashEmbedder
from market.work import EmbedRequest

ANSWER = "Hello from the engine."


@pytest.fixture
def anyio_backend():
    return NO_WAITING


class OneAtATime(ScriptedEngine):
    """Runs one job at a time, in the order that real engines keep, and remembers the jobs."""

    def __init__(self, text=ANSWER, **options):
        super().__init__(text, **options)
        self.places = Places(1)
        self.jobs = []

    async def generate(self, job):
        self.jobs.append(job)
        async with self.places.place(job), aclosing(super().generate(job)) as stream:
            async for generated in stream:
                yield generated

    def load(self):
        return self.places.load()


# ---- price -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "percent"), [(Mode.REALTIME, 100), (Mode.BATCH, 60), (Mode.ASYNC, 40)])
async def test_each_mode_costs_its_share_and_the_quote_names_it(shop, mode, percent):
    bob, alice = shop.seller(), shop.buyer()
    _, purchase = await alice.ask(mode=mode)
    await asyncio.sleep(0.1)
    outcome = purchase.outcome
    assert (outcome.price_in, outcome.price_out) == (percent * OCTO // 100, 3 * percent * OCTO // 100)
    assert alice.books.records[-1].quote.read().mode is mode
    assert alice.spent() == bob.earned() == outcome.amount


async def test_the_provider_is_chosen_by_the_price_of_the_mode_that_was_asked_for(shop):
    fast = shop.seller("fast", price_out=3 * OCTO, mode_percent=(100, 100, 100))
    slow = shop.seller("slow", price_out=4 * OCTO, mode_percent=(100, 50, 25))
    alice = shop.buyer()
    for mode, chosen in ((Mode.REALTIME, fast), (Mode.BATCH, slow), (Mode.ASYNC, slow)):
        _, purchase = await alice.ask(mode=mode)
        assert purchase.outcome.provider == chosen.party.peer


async def test_a_seller_that_asks_the_realtime_price_for_batch_work_is_not_bought_from(shop):
    greedy, alice = shop.seller(), shop.buyer()
    greedy.serving.model = replace(greedy.offer, mode_percent=())
    with pytest.raises(NoProvider) as raised:
        await alice.ask(mode=Mode.BATCH)
    assert "more than it offered" in raised.value.reasons[greedy.party.peer]
    assert alice.spent() == 0


async def test_a_quote_for_another_mode_is_not_accepted(shop):
    def demote(body):
        if not isinstance(body, Propose):
            return body
        quote = replace(body.quote.read(), mode=Mode.ASYNC)
        return replace(body, quote=sign_quote(quote, Party("bob").receipt_key))

    bob = shop.seller(on_send=demote)
    with pytest.raises(NoProvider) as raised:
        await shop.buyer().ask()
    assert "the quote's mode" in raised.value.reasons[bob.party.peer]


async def test_who_was_quoted_for_async_cannot_have_it_in_realtime(shop):
    def hasten(body):
        return replace(body, task=replace(body.task, mode=Mode.REALTIME)) if isinstance(body, TaskRequest) else body

    bob, mallory = shop.seller(), shop.buyer("mallory", on_send=hasten)
    with pytest.raises((NoProvider, PeerError)):
        await mallory.ask(mode=Mode.ASYNC)
    assert bob.engine.generated == 0


async def test_a_mode_that_nobody_serves_is_refused_with_the_reason(shop):
    bob = shop.seller(modes=(Mode.REALTIME,))
    with pytest.raises(NoProvider) as raised:
        await shop.buyer().ask(mode=Mode.ASYNC)
    assert raised.value.reasons[bob.party.peer] == "does not serve async mode"


# ---- turns -----------------------------------------------------------------------------------------


async def test_a_job_carries_its_modes_priority_and_strangers_come_after_those_who_have_paid(shop):
    engine = OneAtATime()
    shop.seller(engine=engine)
    stranger, regular = shop.buyer("stranger"), shop.buyer("regular")
    await regular.ask()
    await asyncio.sleep(0.05)
    for mode in Mode:
        await regular.ask(mode=mode)
    for mode, name in ((Mode.REALTIME, "a"), (Mode.BATCH, "b"), (Mode.ASYNC, "c")):
        await shop.buyer(name).ask(mode=mode)
    await stranger.ask(mode=Mode.BATCH)
    assert [job.priority for job in engine.jobs] == [1, 0, 2, 4, 1, 3, 5, 3]
    assert [job.deadline_s for job in engine.jobs[1:4]] == [WAIT_TERMS[mode].deadline_s for mode in Mode]
    assert {job.weight for job in engine.jobs} == {100}


async def test_work_in_pieces_has_the_same_turns(shop):
    seen = []

    class Watched(HashEmbedder):
        def make(self, job):
            seen.append(job)
            return super().make(job)

    shop.seller(engine=Watched(), meter=ByteMeter())
    buyer = shop.buyer().buyer
    order = WorkOrder(model=MODEL, request=EmbedRequest(inputs=("a",)), mode=Mode.ASYNC)
    async with buyer.buy(order) as purchase:
        assert [part async for part in purchase.parts()]
    assert [(job.priority, job.weight) for job in seen] == [(5, 100)]
    assert purchase.outcome.price_out == 3 * OCTO * 40 // 100


async def test_a_realtime_task_overtakes_fifty_that_wait_in_batch(shop):
    engine = OneAtATime(delay_s=0.0005)
    shop.seller(engine=engine)
    crowd, alice = shop.buyer("crowd"), shop.buyer("alice")
    batch = [asyncio.create_task(crowd.ask(f"prompt {n}", mode=Mode.BATCH)) for n in range(50)]
    while engine.load().waiting < 40:
        await asyncio.sleep(0.01)
    await alice.ask()
    done = sum(task.done() for task in batch)
    answers = await asyncio.gather(*batch)
    assert done < 25
    assert {text for text, _ in answers} == {ANSWER}


# ---- the line --------------------------------------------------------------------------------------


async def test_a_line_that_is_full_in_batch_still_takes_realtime(shop):
    terms = SellerTerms(tick_tokens=8, waits={**WAIT_TERMS, Mode.BATCH: WaitTerms(limit=2, deadline_s=0)})
    engine = OneAtATime("x" * 60, delay_s=0.01)
    bob, alice = shop.seller(engine=engine, terms=terms), shop.buyer()
    running = [asyncio.create_task(alice.ask(f"{n}", mode=Mode.BATCH)) for n in range(2)]
    while engine.load().waiting < 1 or not engine.generated:
        await asyncio.sleep(0.01)
    running.append(asyncio.create_task(alice.ask("2", mode=Mode.BATCH)))  # the first left the line when it began
    while engine.load().waiting < 2:
        await asyncio.sleep(0.01)
    with pytest.raises(NoProvider) as raised:
        await alice.ask("3", mode=Mode.BATCH)
    assert "too many batch tasks" in raised.value.reasons[bob.party.peer]
    text, _ = await alice.ask("now", max_tokens=3)
    assert text == "xxx"
    await asyncio.gather(*running)
    assert bob.seller.line.waiting(MODEL, Mode.BATCH) == 0


async def test_who_hangs_up_leaves_the_line(shop):
    engine = OneAtATime("x" * 400, delay_s=0.01)
    bob, alice = shop.seller(engine=engine), shop.buyer()
    first = asyncio.create_task(alice.ask(mode=Mode.BATCH))
    while not engine.generated:
        await asyncio.sleep(0.01)
    async with alice.buyer.buy(make_order("second", mode=Mode.BATCH)):
        while engine.load().waiting < 1:
            await asyncio.sleep(0.01)
        assert bob.seller.line.waiting(MODEL, Mode.BATCH) == 1
    async with asyncio.timeout(5):
        while bob.seller.line.waiting(MODEL, Mode.BATCH):
            await asyncio.sleep(0.01)
    first.cancel()


async def test_a_deadline_that_passes_before_its_turn_ends_the_task_with_the_reason(shop):
    terms = SellerTerms(tick_tokens=8, waits={**WAIT_TERMS, Mode.BATCH: WaitTerms(limit=9, deadline_s=0.1)})
    engine = OneAtATime("x" * 100, delay_s=0.01)
    bob, alice = shop.seller(engine=engine, terms=terms), shop.buyer()
    running = asyncio.create_task(alice.ask())
    while not engine.generated:
        await asyncio.sleep(0.01)
    with pytest.raises(NoProvider) as raised:
        await alice.ask("too late", mode=Mode.BATCH)
    assert "deadline" in raised.value.reasons[bob.party.peer]
    await running


# ---- patience --------------------------------------------------------------------------------------


class Stutter(ScriptedEngine):
    """Pauses for `pause_s` after its third token."""

    def __init__(self, pause_s):
        super().__init__()
        self._pause_s = pause_s

    async def generate(self, job):
        async with aclosing(super().generate(job)) as stream:
            async for generated in stream:
                yield generated
                if self.generated == 3:
                    await asyncio.sleep(self._pause_s)


IMPATIENT = DealTerms(token_timeout_s=0.4, patient_timeout_s=0.4, settle_timeout_s=1.0)
BEATING = SellerTerms(tick_tokens=8, tick_s=0.1)


async def test_batch_work_that_lost_its_slot_for_a_while_is_kept_alive_and_realtime_is_not(shop):
    alice = shop.buyer(terms=IMPATIENT)
    shop.seller(engine=Stutter(1.0), terms=BEATING)
    text, _ = await alice.ask(mode=Mode.BATCH)
    assert text == ANSWER
    shop.seller(engine=Stutter(1.0), terms=BEATING)  # the same provider, anew
    with pytest.raises(PeerTimedOut):
        await alice.ask()


async def test_without_a_word_realtime_waits_less_long_than_batch(shop):
    alice = shop.buyer(terms=replace(IMPATIENT, patient_timeout_s=5.0))
    shop.seller(engine=Stutter(1.0), terms=SellerTerms(tick_tokens=8, tick_s=30.0))
    text, _ = await alice.ask(mode=Mode.BATCH)
    assert text == ANSWER
    shop.seller(engine=Stutter(1.0), terms=SellerTerms(tick_tokens=8, tick_s=30.0))
    with pytest.raises(PeerTimedOut):
        await alice.ask()


async def test_a_provider_that_is_waited_for_no_longer_is_told_and_stops(shop):
    said = []

    def heard(body):
        said.append(body)
        return body

    alice = shop.buyer(terms=IMPATIENT, on_send=heard)
    shop.seller(engine=Stutter(1.0), terms=BEATING)
    with pytest.raises(PeerTimedOut):
        await alice.ask()
    assert (said[-1].kind, said[-1].code, said[-1].fault) == ("error", "peer_timed_out", "provider")


async def test_a_queue_is_waited_for_in_every_mode(shop):
    class Late(ScriptedEngine):
        async def generate(self, job):
            await asyncio.sleep(1.0)
            async for generated in super().generate(job):
                yield generated

    shop.seller(engine=Late(), terms=BEATING)
    alice = shop.buyer(terms=IMPATIENT)
    for mode in Mode:
        text, _ = await alice.ask(mode=mode)
        assert text == ANSWER


async def test_a_provider_that_only_ever_says_queued_is_given_up(shop):
    bob = shop.seller(engine=ScriptedEngine(delay_s=60.0), terms=BEATING)
    alice = shop.buyer(terms=replace(IMPATIENT, patience_s=dict.fromkeys(Mode, 0.5)))
    with pytest.raises(NoProvider) as raised:
        async with asyncio.timeout(10):
            await alice.ask(mode=Mode.ASYNC)
    assert "only signs of life" in raised.value.reasons[bob.party.peer]


async def test_only_realtime_answers_say_how_fast_a_provider_is(shop):
    bob, alice = shop.seller(), shop.buyer()
    await alice.ask(mode=Mode.BATCH)
    assert set(alice.standing.of(bob.party.peer)) == {"success"}
    await alice.ask()
    assert {"success", "first_token_ms"} <= set(alice.standing.of(bob.party.peer))


async def test_a_failed_batch_task_is_tried_elsewhere_at_that_ones_price(shop):
    shop.seller("cheap", engine=ScriptedEngine(fail_after=0, failure=EngineFailed("the worker died.")))
    dear, alice = shop.seller("dear", price_out=9 * OCTO), shop.buyer()
    _, purchase = await alice.ask(mode=Mode.BATCH)
    assert purchase.outcome.provider == dear.party.peer
    assert purchase.outcome.price_out == 9 * OCTO * 60 // 100
