"""Keys of kept answers: equal for equal requests alone, and telling nothing to whoever does not know the salt."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from market.caching import (
    CacheKey,
    cache_key,
    names_its_content,
    settled,
    text_content,
    text_is_settled,
    work_content,
)
from market.kept import place_of
from market.modes import Line, priority_of
from market.offer import ModelOffer
from market.task import ChatTask, Mode, Privacy, Sampling
from market.work import EmbedRequest, WorkTask, encode_request

SALT = bytes(32)
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(tuple)
WORDS = st.text(min_size=1, max_size=5)
SAMPLINGS = st.builds(
    Sampling,
    seed=st.binary(min_size=32, max_size=32),
    choice=st.integers(0, 3),
    temperature_micro=st.sampled_from([0, 1, 700_000]),
    top_k=st.integers(0, 2),
)
TASKS = st.builds(
    ChatTask,
    model=st.sampled_from(["bafya", "bafyb"]),
    sampling=SAMPLINGS,
    max_tokens=st.integers(1, 3),
    stop=st.lists(WORDS, max_size=3).map(tuple),
    grammar=st.sampled_from(["", "root ::= [a-z]"]),
    logprobs=st.sampled_from([None, 0, 2]),
    salt=st.binary(min_size=32, max_size=32),
)


def means(task: ChatTask, ids: tuple[int, ...]) -> object:
    return task.model, ids, task.sampling, task.grammar, task.max_tokens, task.stop, task.logprobs


@given(TASKS, TASKS, IDS, IDS)
def test_requests_share_a_key_only_if_all_that_settles_the_answer_is_equal(a, b, one, two) -> None:
    assert (text_content(a, one) == text_content(b, two)) == (means(a, one) == means(b, two))


@given(TASKS, IDS, st.sampled_from(list(Mode)), st.binary(min_size=32, max_size=32))
def test_when_it_was_asked_and_how_it_was_salted_makes_no_difference(task, ids, mode, salt) -> None:
    assert text_content(task, ids) == text_content(replace(task, mode=mode, salt=salt), ids)


@given(st.lists(WORDS, min_size=1, max_size=3), st.lists(WORDS, min_size=1, max_size=3), st.binary(max_size=4))
def test_work_shares_a_key_only_for_the_same_request_and_input(one, two, blob) -> None:
    def content(inputs, data=b""):
        request = encode_request(EmbedRequest(inputs=tuple(inputs)))
        return work_content(WorkTask(model="bafya", request=request, max_units=9, salt=SALT), data)

    assert (content(one) == content(two)) == (one == two)
    assert (content(one, blob) == content(one)) == (blob == b"")


def test_a_text_and_other_work_never_share_a_key() -> None:
    text = ChatTask(model="bafya", sampling=Sampling(seed=SALT), max_tokens=9, salt=SALT)
    work = WorkTask(model="bafya", request=encode_request(EmbedRequest(inputs=("a",))), max_units=9, salt=SALT)
    assert text_content(text, ()) != work_content(work, b"")


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_own_keys_differ_by_their_salt_and_shared_ones_do_not(content, one, two) -> None:
    own = {cache_key(content, salt=salt, shared=False) for salt in (one, two)}
    assert len(own) == len({one, two})
    assert cache_key(content, salt=one, shared=True) == cache_key(content, salt=two, shared=True)
    assert not own & {replace(cache_key(content, salt=one, shared=True), shared=False)}


@given(st.binary(min_size=32, max_size=32), st.text(), st.text())
def test_own_keys_differ_by_whose_they_are_and_shared_ones_do_not(content, ann, ben) -> None:
    own = {cache_key(content, salt=SALT, shared=False, whose=whose) for whose in (ann, ben)}
    shared = {cache_key(content, salt=SALT, shared=True, whose=whose) for whose in (ann, ben)}
    assert (len(own), len(shared)) == (len({ann, ben}), 1)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_shared_key_is_seen_to_be_of_its_request_and_an_own_one_cannot_be(content, other) -> None:
    assert names_its_content(cache_key(content, salt=SALT, shared=True), content)
    assert names_its_content(cache_key(other, salt=SALT, shared=True), content) == (other == content)
    assert names_its_content(CacheKey(key=other), content)


@given(st.binary(min_size=32, max_size=32), st.booleans(), st.booleans(), WORDS, WORDS)
def test_an_own_key_leads_each_peer_to_a_place_of_its_own(key, first, second, alice, bob) -> None:
    places = place_of(CacheKey(key=key, shared=first), alice), place_of(CacheKey(key=key, shared=second), bob)
    assert (places[0] == places[1]) == (first == second and (first or alice == bob))


@given(SAMPLINGS, st.booleans(), st.sampled_from(list(Privacy)))
def test_only_a_public_text_with_nothing_drawn_or_a_named_seed_is_settled(sampling, seeded, privacy) -> None:
    expected = privacy is Privacy.PUBLIC and (seeded or sampling.temperature_micro == 0)
    assert text_is_settled(sampling, privacy, seeded=seeded) == expected


@given(SAMPLINGS)
def test_at_temperature_zero_the_seed_is_left_out_and_nothing_else(sampling) -> None:
    known = dataclasses.asdict(settled(sampling))
    left_out = {"seed": bytes(32), "choice": 0} if sampling.temperature_micro == 0 else {}
    assert known == dataclasses.asdict(sampling) | left_out


# ---- modes -----------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**127),
    st.integers(0, 1000),
    st.integers(0, 100),
    st.lists(st.sampled_from(list(Mode)), unique=True),
    st.sampled_from(list(Mode)),
    st.booleans(),
)
def test_both_sides_reckon_a_modes_price_to_the_same_unit(price, percent, cached_percent, modes, mode, cached) -> None:
    offer = ModelOffer(
        model="m", weights="w", name="n", context=1, price_in=price, price_out=0, modes=tuple(modes), engine="e",
        tokens_per_s=0, mode_percent=(percent,) * len(modes), cached_percent=cached_percent,
    )  # fmt: skip
    share = (percent if mode in modes else 100) * (cached_percent if cached else 100)
    assert offer.prices(mode, cached=cached) == (price * share // 10_000, 0)


def test_modes_come_in_order_and_strangers_after_those_who_have_paid() -> None:
    turns = [priority_of(mode, known=known) for mode in Mode for known in (True, False)]
    assert turns == sorted(set(turns))


def test_a_place_in_the_line_is_left_once() -> None:
    line = Line()
    with line.stand("m", Mode.BATCH) as place, line.stand("m", Mode.BATCH):
        assert line.waiting("m", Mode.BATCH) == 2
        place.leave()
        place.leave()
        assert (line.waiting("m", Mode.BATCH), line.waiting("m", Mode.REALTIME)) == (1, 0)
    assert line.waiting("m", Mode.BATCH) == 0
