"""A seller that lies about its cache is found out before it is paid, and a poisoned cache deceives nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest
from keeper import ANSWER, PUBLIC, keeper, settled
from no_waiting import NO_WAITING
from shop import OCTO

from market.caching import Caching
from market.errors import NoProvider, PeerError
from market.message import CallForProposals, Propose, TaskRequest, TaskResponse
from market.parts import DealTerms
from market.quote import sign_quote
from market.receipt import sign_receipt
from market.record import Commitment
from market.testing import Party


@pytest.fixture
def anyio_backend():
    return NO_WAITING


async def test_the_answer_to_another_question_cannot_be_left_under_a_popular_shared_key(shop):
    popular = []

    def listen(body):
        popular.extend([body.cache] if isinstance(body, CallForProposals) else [])
        return None if isinstance(body, CallForProposals) else body

    def poison(body):
        return replace(body, cache=popular[0]) if isinstance(body, CallForProposals) else body

    bob = keeper(shop)
    with pytest.raises(NoProvider):  # Mallory works out the key of the popular question
        await shop.buyer("spy", on_send=listen, caching=Caching.SHARED, terms=DealTerms(propose_timeout_s=0.2)).ask(
            "popular", **PUBLIC
        )
    await shop.buyer("mallory", on_send=poison, caching=Caching.SHARED).ask("nasty", **PUBLIC)
    await settled(bob)
    assert bob.cache.kept == {}


@pytest.mark.parametrize("change", [{"stop": ("engine",)}, {"logprobs": 2}])
async def test_the_price_of_a_kept_answer_is_not_good_for_another_request(shop, change):
    def swap(body):
        return replace(body, task=replace(body.task, **change)) if isinstance(body, TaskRequest) else body

    bob = keeper(shop)
    await shop.buyer("alice").ask(**PUBLIC)
    await settled(bob, kept=1)
    generated = bob.engine.generated
    with pytest.raises((NoProvider, PeerError)) as raised:
        await shop.buyer("alice", on_send=swap).ask(**PUBLIC)
    assert "is to another request" in str([*raised.value.reasons.values()])
    assert bob.engine.generated == generated


async def test_who_brings_another_task_than_the_quoted_answer_is_for_gets_nothing(shop):
    """With a key of its own it can only cheat itself; with the price of a cached answer it would cheat the seller."""
    own = []

    def remember(body):
        if isinstance(body, CallForProposals):
            own.append(body.cache)
            return replace(body, cache=own[0])
        return body

    bob, alice = keeper(shop), shop.buyer(on_send=remember)
    await alice.ask("same", **PUBLIC)
    await settled(bob, kept=1)
    generated = bob.engine.generated
    with pytest.raises((NoProvider, PeerError)) as raised:  # our own buyer finds the quote wrong before the seller does
        await alice.ask("else", **PUBLIC)
    reasons = getattr(raised.value, "reasons", {}).values() or [str(raised.value)]
    assert any("another prompt" in reason for reason in reasons)
    assert bob.engine.generated == generated


LIES = {
    "another receipt than the one that came": lambda o, q, _: (o, replace(q, cached="bafyother")),
    "not signed by the provider": lambda o, q, mine: _cited(o, q, sign_receipt(o.receipt.read(), mine("else"))),
    "for another weights": lambda o, q, mine: _forged(o, q, mine, weights="bafyother"),
    "for another engine": lambda o, q, mine: _forged(o, q, mine, engine="other/1"),
    "for another sampling": lambda o, q, mine: _forged(o, q, mine, sampling=bytes(32)),
    "for another prompt": lambda o, q, mine: _forged(o, q, mine, prompt=bytes(32)),
    "for another client": lambda o, q, mine: _forged(o, q, mine, client="12D3other"),
    "of a whole answer that was generated": lambda o, q, mine: _forged(o, q, mine, kind="cached", cached="bafyfirst"),
    "not of a whole answer": lambda o, q, mine: _forged(o, q, mine, final=False, finish=""),
    "for another answer": lambda o, q, mine: _forged(o, q, mine, chunks=9),
    "earlier receipt that is not there": lambda _o, q, _: (None, q),
}


def _cited(original, quote, receipt):
    return replace(original, receipt=receipt), replace(quote, cached=receipt.cid())


def _forged(original, quote, mine, **changes):
    return _cited(original, quote, sign_receipt(replace(original.receipt.read(), **changes), mine("bob")))


@pytest.mark.parametrize("reason", LIES)
async def test_a_seller_whose_proof_does_not_hold_is_not_paid(shop, reason):
    def key_of(name):
        return Party(name).receipt_key

    def lie(body):
        if not isinstance(body, Propose) or body.original is None:
            return body
        original, quote = LIES[reason](body.original, body.quote.read(), key_of)
        return replace(body, original=original, quote=sign_quote(quote, key_of("bob")))

    bob, alice = keeper(shop, on_send=lie), shop.buyer()
    await alice.ask(**PUBLIC)
    await settled(bob, kept=1)
    spent = alice.spent()
    with pytest.raises(NoProvider) as raised:
        await alice.ask(**PUBLIC)
    assert reason in raised.value.reasons[bob.party.peer]
    assert alice.spent() == spent
    assert alice.standing.of(bob.party.peer)["failure"] == 1


async def test_an_answer_from_the_cache_that_was_not_asked_for_is_refused(shop):
    def offer_it(body):
        if not isinstance(body, Propose) or not bob.cache.kept:
            return body
        (kept,) = bob.cache.kept.values()
        quote = replace(body.quote.read(), cached=kept.original.receipt.cid(), price_in=0, price_out=0)
        return replace(body, original=kept.original, quote=sign_quote(quote, bob.party.receipt_key))

    bob, alice = keeper(shop, on_send=offer_it), shop.buyer()
    await alice.ask(**PUBLIC)
    await settled(bob, kept=1)
    with pytest.raises(NoProvider) as raised:
        await alice.ask(**PUBLIC, cache=Caching.OFF)
    assert "was not asked for" in raised.value.reasons[bob.party.peer]


async def test_other_words_than_the_cited_answers_are_found_out_and_their_end_is_not_paid(shop):
    bob, alice = keeper(shop), shop.buyer()
    await alice.ask(**PUBLIC)
    await settled(bob, kept=1)
    spent = alice.spent()
    place, kept = next(iter(bob.cache.kept.items()))
    bob.cache.kept[place] = replace(kept, numbers=tuple(b"Hello from the enemy.."))
    bob.seller.verifier = Gullible(bob.seller.verifier, kept.original.receipt.read())
    with pytest.raises(PeerError, match="not the answer of the receipt that was cited"):
        await alice.ask(**PUBLIC)
    assert alice.spent() - spent == (9 * OCTO + 16 * 3 * OCTO) // 10 // 10**6  # the input and two ticks of eight
    assert alice.standing.of(bob.party.peer)["failure"] == 1


class Gullible:
    """A verifier to which the transcript of one receipt always comes out as that receipt says."""

    def __init__(self, inner, receipt):
        self._inner = inner
        self._receipt = receipt

    def open_transcript(self, *, task, **digests):
        transcript, said = self._inner.open_transcript(task=task, **digests), self._receipt
        if task == said.task:
            transcript.close_chunk = lambda: Commitment(
                tokens=said.tokens_out, chunks=said.chunks, head=said.chain_head, root=said.transcript_root
            )
        return transcript


@pytest.mark.parametrize(
    "bend",
    [
        lambda kept: replace(kept, numbers=tuple(b"Hello from the enemy..")),
        lambda kept: replace(kept, numbers=kept.numbers[:-1]),
        lambda kept: replace(kept, numbers=(*kept.numbers, 33)),
        lambda kept: replace(kept, numbers=(999, *kept.numbers[1:])),
        lambda kept: replace(kept, finish="length"),
        lambda kept: replace(kept, pieces=(b"x",)),
        lambda kept: replace(kept, owner="12D3other"),
        lambda kept: replace(kept, original=replace(kept.original, chunk_sizes=(1,) * 22)),
        lambda kept: replace(
            kept,
            original=replace(kept.original, receipt=sign_receipt(kept.original.receipt.read(), Party("x").receipt_key)),
        ),
    ],
)
async def test_a_poisoned_entry_is_thrown_away_and_the_answer_generated_anew(shop, bend):
    bob, alice = keeper(shop), shop.buyer()
    await alice.ask(**PUBLIC)
    await settled(bob, kept=1)
    place, kept = next(iter(bob.cache.kept.items()))
    bob.cache.kept[place] = bend(kept)
    text, purchase = await alice.ask(**PUBLIC)
    await settled(bob, kept=1)
    assert (text, purchase.outcome.cached, bob.cache.wrongs) == (ANSWER, "", 1)
    assert bob.cache.kept[place].numbers == tuple(ANSWER.encode())


@pytest.mark.parametrize("weights", ["bafyweights", "bafynew"])
async def test_an_answer_of_other_weights_or_another_engine_is_not_todays(shop, weights):
    bob, alice = keeper(shop), shop.buyer()
    await alice.ask(**PUBLIC)
    await settled(bob, kept=1)
    if weights == "bafyweights":
        bob.engine.info = replace(bob.engine.info, name="scripted/2")
    newer = shop.seller("bob", engine=bob.engine, cache=bob.cache, cached_percent=10, weights=weights)
    _, purchase = await alice.ask(**PUBLIC)
    assert purchase.outcome.provider == newer.party.peer
    assert not purchase.outcome.cached


async def test_a_receipt_that_hides_that_it_is_a_repetition_is_refused(shop):
    def hide(body):
        if not isinstance(body, TaskResponse) or not body.receipt.read().cached:
            return body
        plain = replace(body.receipt.read(), kind="generated", cached="")
        return replace(body, receipt=sign_receipt(plain, Party("bob").receipt_key))

    bob, alice = keeper(shop, on_send=hide), shop.buyer()
    await alice.ask(**PUBLIC)
    await settled(bob, kept=1)
    with pytest.raises(PeerError, match="cached"):
        await alice.ask(**PUBLIC)
