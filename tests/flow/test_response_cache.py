"""An answer is told again only to whom it may be, only as it was signed for, at the lower price, and never as work."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

import pytest
from keeper import ANSWER, EMBED, GREEDY, PUBLIC, ask_twice, bought, keeper, settled
from no_waiting import NO_WAITING
from shop import MODEL, OCTO, make_order

from market.caching import Caching, work_is_settled
from market.errors import NoProvider, PeerError
from market.kept import Kept
from market.message import CallForProposals, TaskRequest
from market.modes import WaitTerms
from market.ports import TokenLogprobs
from market.receipt import sign_receipt
from market.task import Mode, Privacy, Sampling, user_seed
from market.testing import ScriptedEngine
from market.testing_cache import MemoryResponseCache, check_response_cache
from market.testing_work import ByteMeter, HashEmbedder
from market.work import ImageRequest, TranscribeRequest
from verifier.examination import examine
from verifier.receipt_file import from_record

# ---- a hit -----------------------------------------------------------------------------------------


@pytest.fixture
def anyio_backend():
    return NO_WAITING


async def test_the_same_public_question_is_answered_again_for_less_and_the_receipt_says_so(shop):
    bob, alice = keeper(shop), shop.buyer()
    text, outcome, generated = await ask_twice(bob, alice, alice)
    first, second = (r for r in alice.books.records if r.receipt.read().final)
    assert (text, generated) == (ANSWER, 0)
    assert outcome.cached == first.receipt.cid()
    receipt = second.receipt.read()
    assert (receipt.kind, receipt.cached) == ("cached", first.receipt.cid())
    assert second.quote.read().cached == first.receipt.cid()
    assert (outcome.price_in, outcome.price_out) == (OCTO // 10, 3 * OCTO // 10)
    assert alice.spent() == bob.earned() == first.receipt.read().amount + receipt.amount
    assert alice.buyer.memory.counts.told_again == 1


async def test_a_hit_costs_a_share_of_the_modes_price(shop):
    bob, alice = keeper(shop), shop.buyer()
    _, outcome, _ = await ask_twice(bob, alice, alice, mode=Mode.BATCH)
    assert outcome.price_out == 3 * OCTO * 60 * 10 // 10_000


async def test_a_hit_says_nothing_of_speed_or_reliability(shop):
    bob, alice = keeper(shop), shop.buyer()
    await alice.ask(**PUBLIC)
    await settled(bob, kept=1)
    before = dict(alice.standing.of(bob.party.peer))
    _, purchase = await alice.ask(**PUBLIC)
    assert purchase.outcome.cached
    assert alice.standing.of(bob.party.peer) == before


async def test_a_receipt_of_a_hit_is_explained_offline(shop):
    bob, alice = keeper(shop), shop.buyer()
    await ask_twice(bob, alice, alice)
    record = alice.books.records[-1]
    examination = examine(from_record(record), answer=ANSWER)
    assert examination.ok
    cited = next(finding for finding in examination.findings if finding.what == "cached")
    assert record.receipt.read().cached in cited.detail
    lying = sign_receipt(replace(record.receipt.read(), kind="generated"), bob.party.receipt_key)
    assert not examine(replace(from_record(record), receipt=lying).sealed()).ok


async def test_at_temperature_zero_the_seed_makes_no_difference_and_with_one_it_does(shop):
    bob, alice = keeper(shop), shop.buyer()
    await alice.ask(**PUBLIC)
    await settled(bob, kept=1)
    _, greedy = await alice.ask(**{**PUBLIC, "sampling": replace(GREEDY, seed=b"x" * 32)})
    drawn = {"privacy": Privacy.PUBLIC, "seeded": True, "sampling": Sampling(seed=user_seed(7))}
    await alice.ask(**drawn)
    await settled(bob, kept=2)
    _, same = await alice.ask(**drawn)
    _, other = await alice.ask(**{**drawn, "sampling": Sampling(seed=user_seed(8))})
    assert [bool(p.outcome.cached) for p in (greedy, same, other)] == [True, True, False]


@pytest.mark.parametrize(
    ("order", "text"),
    [({"stop": ("from",)}, "Hello "), ({"max_tokens": 5}, "Hello"), ({"logprobs": 1, "max_tokens": 3}, "Hel")],
)
async def test_stops_limits_and_logprobs_are_told_as_they_were(shop, order, text):
    class Telling(ScriptedEngine):
        async def generate(self, job):
            async for generated in super().generate(replace(job, logprobs=None)):
                told = tuple(TokenLogprobs(logprob=-0.5, top=((token, -0.5),)) for token in generated.tokens)
                told = told if job.logprobs is not None else ()
                yield replace(generated, logprobs=told)

    bob, alice = keeper(shop, engine=Telling(features=frozenset({"logprobs"}))), shop.buyer()
    answers = []
    for _ in range(2):
        async with alice.buyer.buy(make_order(**PUBLIC, **order)) as purchase:
            answers.append([delta async for delta in purchase.deltas()])
        await settled(bob, kept=1)
    assert ["".join(delta.text for delta in answer) for answer in answers] == [text, text]
    told = [[(i, p) for delta in answer for i, p in zip(delta.ids, delta.logprobs, strict=True)] for answer in answers]
    assert told[0] == told[1]
    assert bool(told[0]) == ("logprobs" in order)
    assert purchase.outcome.cached
    assert purchase.outcome.finish == ("stop" if "stop" in order else "length")


async def test_a_hit_is_served_although_the_line_is_full(shop):
    bob, alice = keeper(shop), shop.buyer()
    await alice.ask(**PUBLIC)
    await settled(bob, kept=1)
    with bob.seller.line.stand(MODEL, Mode.REALTIME):
        bob.seller.terms = replace(bob.seller.terms, waits=dict.fromkeys(Mode, WaitTerms(limit=1, deadline_s=1.0)))
        _, purchase = await alice.ask(**PUBLIC)
        assert purchase.outcome.cached
        with pytest.raises(NoProvider):
            await alice.ask("something else", **PUBLIC)


async def test_embeddings_are_kept_by_their_request_and_thrown_away_when_their_user_asks(shop):
    bob = keeper(shop, engine=HashEmbedder(), meter=ByteMeter())
    alice, carol = shop.buyer(meter=ByteMeter()), shop.buyer("carol", meter=ByteMeter())
    for user in (alice, carol):
        await bought(user)
    await settled(bob, kept=2)
    parts, outcome = await bought(alice)
    assert parts == [hashlib.sha256(text).digest() for text in (b"one", b"two")]
    assert outcome.cached
    assert await alice.buyer.forget_answers() == {bob.party.peer: 1}
    assert [kept.owner for kept in bob.cache.kept.values()] == [carol.party.peer]
    assert not (await bought(alice))[1].cached
    assert (await bought(carol))[1].cached


async def test_the_provider_that_gave_an_answer_is_asked_first_while_that_is_cheaper(shop):
    sellers = [keeper(shop, name) for name in ("b1", "b2", "b3", "b4")]
    alice = shop.buyer()
    _, first = await alice.ask(**PUBLIC)
    gave = next(seller for seller in sellers if seller.party.peer == first.outcome.provider)
    await settled(gave, kept=1)
    for _ in range(4):
        _, again = await alice.ask(**PUBLIC)
        assert again.outcome.provider == first.outcome.provider
        assert again.outcome.cached
    shop.seller("much cheaper", price_out=OCTO // 100, price_in=OCTO // 100)
    _, cheapest = await alice.ask(**PUBLIC)
    assert not cheapest.outcome.cached


# ---- who may, and what -----------------------------------------------------------------------------


async def test_two_gateways_never_see_each_others_answers_unless_both_share(shop):
    wants = {"own": Caching.OWN, "also own": Caching.OWN, "shares": Caching.SHARED, "shares too": Caching.SHARED}
    bob = keeper(shop)
    buyers = {name: shop.buyer(name, caching=caching) for name, caching in wants.items()}
    cached = {}
    for name, buyer in buyers.items():
        _, purchase = await buyer.ask(**PUBLIC)
        cached[name] = bool(purchase.outcome.cached)
        await settled(bob)
    assert cached == {"own": False, "also own": False, "shares": False, "shares too": True}


async def test_another_gateways_very_key_opens_nothing(shop):
    seen = []

    def listen(body):
        if isinstance(body, CallForProposals) and body.cache is not None:
            seen.append(body.cache)
        return body

    def steal(body):
        return replace(body, cache=seen[0]) if isinstance(body, CallForProposals) else body

    bob = keeper(shop)
    alice, mallory = shop.buyer("alice", on_send=listen), shop.buyer("mallory", on_send=steal)
    await alice.ask(**PUBLIC)
    await settled(bob, kept=1)
    _, purchase = await mallory.ask(**PUBLIC)
    assert not purchase.outcome.cached


@pytest.mark.parametrize(
    "order",
    [
        {"privacy": Privacy.SHARED, "sampling": GREEDY},
        {"privacy": Privacy.SHARED, "sampling": GREEDY, "cache": Caching.SHARED},
        {"privacy": Privacy.PUBLIC, "sampling": Sampling(seed=bytes(32))},
        {"privacy": Privacy.PUBLIC, "sampling": GREEDY, "cache": Caching.OFF},
    ],
)
async def test_nothing_else_than_settled_public_answers_is_kept(shop, order):
    bob, alice = keeper(shop), shop.buyer()
    _, outcome, generated = await ask_twice(bob, alice, alice, **order)
    assert (outcome.cached, generated, bob.cache.kept) == ("", len(ANSWER), {})


@pytest.mark.parametrize("privacy", [Privacy.SHARED, Privacy.CONFIDENTIAL, Privacy.PRIVATE])
async def test_a_buyer_that_names_a_key_for_a_task_that_is_not_public_gets_nothing_kept(shop, privacy):
    """Even if the call alone says so: a provider does not keep what it may not."""

    def lie(body):
        if isinstance(body, CallForProposals):
            return replace(body, privacy=privacy)
        return replace(body, task=replace(body.task, privacy=privacy)) if isinstance(body, TaskRequest) else body

    bob, alice = keeper(shop), shop.buyer(on_send=lie)
    await alice.ask(**PUBLIC)
    await settled(bob)
    assert bob.cache.kept == {}


async def test_what_was_kept_of_a_public_task_is_not_told_to_one_that_is_not(shop):
    def lie(body):
        if isinstance(body, CallForProposals):
            return replace(body, privacy=Privacy.SHARED)
        return replace(body, task=replace(body.task, privacy=Privacy.SHARED)) if isinstance(body, TaskRequest) else body

    bob = keeper(shop)
    await shop.buyer().ask(**PUBLIC)
    await settled(bob, kept=1)
    _, purchase = await shop.buyer(on_send=lie).ask(**PUBLIC)
    assert not purchase.outcome.cached


async def test_a_call_that_is_public_with_a_task_that_is_not_is_refused(shop):
    def lie(body):
        return replace(body, task=replace(body.task, privacy=Privacy.SHARED)) if isinstance(body, TaskRequest) else body

    bob, alice = keeper(shop), shop.buyer(on_send=lie)
    with pytest.raises((NoProvider, PeerError)):
        await alice.ask(**PUBLIC)
    assert bob.cache.kept == {}


async def test_an_answer_that_nobody_paid_or_read_to_its_end_is_not_kept(shop):
    bob, alice = keeper(shop, engine=ScriptedEngine("x" * 500, delay_s=0.002)), shop.buyer()
    async with alice.buyer.buy(make_order(**PUBLIC)) as purchase:
        async for _ in purchase.deltas():
            break
    await asyncio.sleep(0.3)
    assert bob.cache.kept == {}


def test_work_with_chance_in_it_is_kept_with_a_seed_only():
    picture, loose = ImageRequest(prompt="an octopus"), TranscribeRequest(temperature_micro=200_000)
    judged = [work_is_settled(request, Privacy.PUBLIC, seeded=False) for request in (EMBED.request, picture, loose)]
    assert judged == [True, False, False]
    assert work_is_settled(picture, Privacy.PUBLIC, seeded=True)
    assert not work_is_settled(EMBED.request, Privacy.SHARED, seeded=True)


async def test_a_provider_that_keeps_nothing_hears_no_key(shop):
    seen = []

    def listen(body):
        seen.extend([body.cache] if isinstance(body, CallForProposals) else [])
        return body

    shop.seller()
    await shop.buyer(on_send=listen).ask(**PUBLIC)
    assert seen == [None]


async def test_forgetting_throws_away_ones_own_and_nobody_elses_and_says_who_did_not_answer(shop):
    bob, gone = keeper(shop), keeper(shop, "gone", price_out=9 * OCTO)
    alice, carol = shop.buyer(), shop.buyer("carol", caching=Caching.SHARED)
    for user in (alice, carol):
        await user.ask(**PUBLIC)
    await settled(bob, kept=2)
    shop.mesh.cut.add(gone.party.peer)
    ends = await alice.buyer.forget_answers()
    assert ends[bob.party.peer] == 1
    assert "nobody there" in ends[gone.party.peer]
    assert [kept.owner for kept in bob.cache.kept.values()] == [carol.party.peer]
    assert await carol.buyer.forget_answers() == {**ends, bob.party.peer: 1}
    assert bob.cache.kept == {}


async def test_the_double_keeps_the_ports_rules(shop):
    bob, alice = keeper(shop), shop.buyer()
    await alice.ask(**PUBLIC)
    await settled(bob, kept=1)
    (kept,) = bob.cache.kept.values()
    assert isinstance(kept, Kept)
    await check_response_cache(MemoryResponseCache(), kept)
