"""Choosing a provider: an order among those who can, and a reason for everyone who cannot."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.identity import Binding
from market.money import OCTO
from market.offer import CheckedOffer, Offer, Tier
from market.routing import Cheapest, Choice, Fastest, Needs, Reliable, choose
from market.task import Mode, Privacy
from market.work import Work


def needs(words: Any, **changes: Any) -> Needs:
    return replace(
        Needs(task=words.digest("task"), model="bafymodel", tokens_in=100, max_tokens=200, mode=Mode.REALTIME,
              privacy=Privacy.SHARED, rail=words.rail, own=frozenset()),
        **changes,
    )  # fmt: skip


def offer(words: Any, peer: str, *, model: dict[str, Any] | None = None, **changes: Any) -> CheckedOffer:
    """An offer by a peer of any name: routing sees checked ones only, so nothing here is signed."""
    body = Offer(
        network=words.network, peer=peer, seq=1, issued_ms=0, expires_ms=1, tier=Tier.CONSUMER, slots=1,
        models=(words.model_offer(**(model or {})),), privacy=(Privacy.PUBLIC, Privacy.SHARED), rails=(words.rail,),
        addresses=(), content=(), isolation="none", binding=words.binding(),
    )  # fmt: skip
    binding = Binding(network=words.network, peer=peer, receipt_key=bytes(20), wallet=bytes(20), not_before_ms=0,
                      not_after_ms=1, nonce=0)  # fmt: skip
    return CheckedOffer(offer=replace(body, **changes), binding=binding)


def order(choice: Choice) -> list[str]:
    return [candidate.peer for candidate in choice.ranked]


def test_the_cheapest_for_this_task_comes_first(words: Any) -> None:
    """Long prompts and long answers may have different cheapest providers."""
    offers = [
        offer(words, "cheap input", model={"price_in": 1, "price_out": 9 * OCTO}),
        offer(words, "cheap output", model={"price_in": 9 * OCTO, "price_out": 1}),
    ]
    reading, writing = needs(words, tokens_in=1000, max_tokens=10), needs(words, tokens_in=10, max_tokens=1000)
    assert order(choose(reading, offers, {}, Cheapest())) == ["cheap input", "cheap output"]
    assert order(choose(writing, offers, {}, Cheapest())) == ["cheap output", "cheap input"]


def test_the_cost_of_a_candidate_is_the_most_it_may_ask(words: Any) -> None:
    (candidate,) = choose(needs(words), [offer(words, "one")], {}, Cheapest()).ranked
    assert candidate.max_cost == (100 * OCTO // 10 + 200 * OCTO) // 10**6


def test_the_fastest_by_what_was_measured_comes_first(words: Any) -> None:
    offers = [
        offer(words, "boasts", model={"tokens_per_s": 1000}),
        offer(words, "delivers", model={"tokens_per_s": 50}),
    ]
    assert order(choose(needs(words), offers, {}, Fastest())) == ["boasts", "delivers"]
    measured = {"boasts": {"tokens_per_s": 10.0}, "delivers": {"tokens_per_s": 60.0}}
    assert order(choose(needs(words), offers, measured, Fastest())) == ["delivers", "boasts"]
    slow_start = {"boasts": {"first_token_ms": 60_000.0}}
    assert order(choose(needs(words), offers, slow_start, Fastest())) == ["delivers", "boasts"]


def test_a_peer_that_says_it_speaks_sooner_comes_first_until_it_was_measured(words: Any) -> None:
    """A short answer is all wait. Who says nothing is taken to need 200 ms."""
    offers = [
        offer(words, "says late", model={"first_token_ms": 900}),
        offer(words, "silent"),
        offer(words, "says soon", model={"first_token_ms": 20}),
    ]
    short = needs(words, max_tokens=1)
    assert order(choose(short, offers, {}, Fastest())) == ["says soon", "silent", "says late"]
    measured = {"says soon": {"first_token_ms": 1000.0}, "says late": {"first_token_ms": 30.0}}
    assert order(choose(short, offers, measured, Fastest())) == ["says late", "silent", "says soon"]


def test_a_peer_that_says_nothing_of_its_speed_is_taken_for_slow(words: Any) -> None:
    offers = [offer(words, "silent", model={"tokens_per_s": 0}), offer(words, "modest", model={"tokens_per_s": 2})]
    assert order(choose(needs(words), offers, {}, Fastest())) == ["modest", "silent"]


def test_a_peer_that_failed_lately_must_be_cheaper_to_be_chosen(words: Any) -> None:
    offers = [offer(words, "flaky", model={"price_out": OCTO}), offer(words, "solid", model={"price_out": 2 * OCTO})]
    standing = {"flaky": {"failure_rate": 0.5}}
    assert order(choose(needs(words), offers, standing, Cheapest())) == ["flaky", "solid"]
    assert order(choose(needs(words), offers, standing, Reliable(Cheapest()))) == ["solid", "flaky"]
    assert order(choose(needs(words), offers, {}, Reliable(Cheapest()))) == ["flaky", "solid"]
    assert Reliable(Cheapest()).name == "cheapest"


def test_equal_providers_share_the_tasks_and_one_task_always_the_same_way(words: Any) -> None:
    offers = [offer(words, name) for name in ("a", "b", "c")]
    firsts = [order(choose(needs(words, task=words.digest(str(n))), offers, {}, Cheapest()))[0] for n in range(90)]
    assert all(15 <= firsts.count(name) <= 45 for name in "abc")
    again = [order(choose(needs(words), offers[::way], {}, Cheapest())) for way in (1, -1)]
    assert again[0] == again[1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"models": ()}, "does not serve this model"),
        ({"model": {"model": "bafyother"}}, "does not serve this model"),
        ({"model": {"modes": (Mode.BATCH,)}}, "does not serve realtime mode"),
        ({"model": {"context": 299}}, "its context is 299 tokens, 300 are needed"),
        ({"rails": ("eip155:1",)}, "is paid over eip155:1, not ledger:octo-test"),
        ({"rails": ()}, "is paid over nothing, not ledger:octo-test"),
        ({"privacy": (Privacy.PUBLIC,)}, "does not take shared tasks"),
    ],
)
def test_who_cannot_serve_is_told_why(words: Any, changes: dict[str, Any], reason: str) -> None:
    choice = choose(needs(words), [offer(words, "peer", **changes)], {}, Cheapest())
    assert choice.ranked == ()
    assert choice.refused == {"peer": reason}
    assert choice.because == "nobody can serve it"


@pytest.mark.parametrize(("work", "shared"), [(Work.EMBED, False), (Work.RERANK, False), (Work.SPEAK, True)])
def test_a_context_is_for_each_of_many_texts(words: Any, work: Work, shared: bool) -> None:
    able = offer(words, "peer", model={"works": (work,), "context": 512})
    choice = choose(needs(words, work=work, tokens_in=9000), [able], {}, Cheapest())
    assert dict(choice.refused) == ({"peer": "its context is 512 tokens, 9000 are needed"} if shared else {})


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"logprobs"}, "its engine gives no log probabilities"),
        ({"grammar", "prefix"}, "its engine keeps no answer to a schema (response_format, tools)"),
        ({"bias", "logprobs"}, "its engine biases no tokens (logit_bias) and gives no log probabilities"),
        ({"telepathy"}, "its engine has no telepathy"),
    ],
)
def test_an_engine_that_lacks_what_the_task_asks_is_told_why(words: Any, wanted: set[str], reason: str) -> None:
    asked = needs(words, features=frozenset(wanted))
    plain = offer(words, "plain", model={"features": ("prefix",), "price_out": 1})
    able = offer(words, "able", model={"features": ("prefix", *sorted(wanted))})
    choice = choose(asked, [plain, able], {}, Cheapest())
    assert (order(choice), choice.refused) == (["able"], {"plain": reason})


def test_a_context_that_just_fits_is_enough(words: Any) -> None:
    assert order(choose(needs(words), [offer(words, "peer", model={"context": 300})], {}, Cheapest())) == ["peer"]


def test_why_the_first_was_chosen_is_said_with_its_price(words: Any) -> None:
    choice = choose(needs(words), [offer(words, "peer-one"), offer(words, "two", models=())], {}, Cheapest())
    assert choice.because == "cheapest of 1: …peer-one at most 0.00021 OCTO"


@pytest.mark.parametrize("level", [Privacy.PRIVATE, Privacy.CONFIDENTIAL])
def test_a_level_that_cannot_be_met_is_refused_never_lowered(words: Any, level: Privacy) -> None:
    """Whatever a provider says that it takes: only own nodes see it (no attested enclaves exist yet)."""
    everything = offer(words, "stranger", privacy=tuple(Privacy))
    choice = choose(needs(words, privacy=level), [everything], {}, Cheapest())
    assert choice.ranked == ()
    assert str(level) in choice.refused["stranger"]
    own = choose(
        needs(words, privacy=level, own=frozenset({"mine"})), [everything, offer(words, "mine")], {}, Cheapest()
    )
    assert order(own) == ["mine"]
    assert set(own.refused) == {"stranger"}


@given(st.data())
def test_everybody_is_ranked_or_has_a_reason(words: Any, data: st.DataObject) -> None:
    levels = st.lists(st.sampled_from(list(Privacy)), unique=True, max_size=4).map(tuple)
    offers = [
        offer(
            words, f"peer {n}", privacy=data.draw(levels), rails=data.draw(st.sampled_from([(words.rail,), ()])),
            model={"price_out": data.draw(st.integers(0, 3)) * OCTO, "context": data.draw(st.sampled_from([100, 2048])),
                   "modes": data.draw(st.sampled_from([(Mode.REALTIME,), (Mode.BATCH,)])),
                   "model": data.draw(st.sampled_from(["bafymodel", "bafyother"]))},
        )
        for n in range(data.draw(st.integers(0, 6)))
    ]  # fmt: skip
    own = frozenset(data.draw(st.lists(st.sampled_from([f"peer {n}" for n in range(6)]), max_size=2)))
    wanted = needs(words, privacy=data.draw(st.sampled_from(list(Privacy))), own=own)
    choice = choose(wanted, offers, {}, data.draw(st.sampled_from([Cheapest(), Fastest(), Reliable(Cheapest())])))
    assert sorted([*order(choice), *choice.refused]) == sorted(item.offer.peer for item in offers)
    assert all(choice.refused.values())
    for candidate in choice.ranked:
        assert candidate.model.model == "bafymodel"
        assert candidate.peer in own or (
            wanted.privacy in candidate.offer.offer.privacy and wanted.privacy.rank < Privacy.CONFIDENTIAL.rank
        )


def test_of_equal_offers_those_come_first_whose_model_is_in_memory(words: Any) -> None:
    """Price comes before: a cold model is a matter of seconds."""
    offers = [offer(words, f"cold {at}", model={"warm": False}) for at in range(8)]
    offers += [offer(words, f"warm {at}") for at in range(8)]
    ranked = order(choose(needs(words), offers, {}, Cheapest()))
    assert [peer.split()[0] for peer in ranked] == ["warm"] * 8 + ["cold"] * 8
    cheap = offer(words, "cold and cheap", model={"warm": False, "price_in": 1, "price_out": 1})
    assert order(choose(needs(words), [*offers, cheap], {}, Cheapest()))[0] == "cold and cheap"
