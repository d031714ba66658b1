"""Guesses settle several tokens in one call and change none of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.batch import Batch, Emission, Work
from inference.drafting import Drafter
from market.task import Sampling
from tests.inference.arithmetic import GREEDY, ArithmeticContext, expected, prompt_of, start

SONG = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


# ---- guesses -------------------------------------------------------------------------------------


def test_what_followed_the_last_three_tokens_the_last_time_is_guessed():
    assert Drafter([*SONG, 40, *SONG, 41, 42, 8, 9, 10]).draft(20, threads=2) == [41, 42, 8]
    assert Drafter(SONG).draft(20, threads=2) == []
    assert Drafter([1, 2]).draft(20, threads=2) == []


def test_a_draft_never_exceeds_the_room_there_is():
    drafter = Drafter([*SONG, *SONG[:4]])
    assert [drafter.draft(room, threads=2) for room in (0, 1, 2)] == [[], [5], [5, 6]]


def test_right_guesses_make_longer_drafts_and_wrong_ones_none_until_hope_is_back():
    drafter = Drafter([*SONG, *SONG])
    drafter.extend(SONG[:3])
    assert len(drafter.draft(50, threads=2)) == 3
    for _ in range(6):
        drafter.heard(3, 3)
    assert len(drafter.draft(50, threads=2)) == 7
    for _ in range(20):
        drafter.heard(3, 0)
    assert drafter.draft(50, threads=2) == []
    chances = 0
    while not drafter.draft(50, threads=2):
        chances += 1
    assert 10 < chances < 200


def test_where_rows_are_dear_only_near_certainty_is_worth_a_draft():
    one = Drafter([*SONG, *SONG[:4]])
    assert one.draft(50, threads=1) == []
    for _ in range(20):
        one.heard(7, 7)
    assert len(one.draft(50, threads=1)) == 7


# ---- the batch -----------------------------------------------------------------------------------


class Copying(ArithmeticContext):
    """Repeats what it read `PERIOD` tokens ago, but for every 17th token."""

    PERIOD = 11

    @classmethod
    def next_token(cls, tokens: Sequence[int]) -> int:
        if len(tokens) < cls.PERIOD or len(tokens) % 17 == 0:
            return ArithmeticContext.next_token(tokens)
        return tokens[-cls.PERIOD]


def copied(prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(Copying.next_token(tokens))
    return tokens[len(prompt) :]


def answer_of(batch: Batch, *, job: int = 1) -> list[int]:
    tokens: list[int] = []
    while batch.can_step:
        for emission in batch.step():
            assert emission.finish not in ("error", "refused"), emission.error
            tokens += [emission.token] if emission.job == job and emission.token >= 0 else []
            batch.acknowledge(emission.job, 10**6)
    return tokens


@pytest.mark.parametrize("threads", [1, 2])
def test_a_text_that_repeats_takes_fewer_calls_and_says_the_same(threads):
    context = Copying(1, threads=threads)
    batch = Batch(context, slots=1, window=64, draft=True)
    start(batch, 1, prompt_of(40), 300)
    assert answer_of(batch) == copied(prompt_of(40), 300)
    assert len(context.calls) < 200
    assert max(map(len, context.calls[1:])) <= 8
    assert all(not held for held in context.held), "nothing stays behind"


def test_a_text_that_never_repeats_takes_one_call_a_token_and_hardly_more_rows():
    context = ArithmeticContext(1, threads=2)
    batch = Batch(context, slots=1, window=64, draft=True)
    start(batch, 1, prompt_of(40), 200)
    assert answer_of(batch) == expected(prompt_of(40), 200)
    assert sum(map(len, context.calls[1:])) < 240


def test_company_ends_guessing_and_guessing_goes_on_when_it_has_left():
    context = Copying(2, threads=2)
    batch = Batch(context, slots=2, window=64, draft=True)
    start(batch, 1, prompt_of(40), 200)
    for _ in range(10):
        for emission in batch.step():
            batch.acknowledge(emission.job, 10**6)
    start(batch, 2, prompt_of(30, 3), 20)
    begun = len(context.calls)
    answer_of(batch, job=2)
    together = [call for call in context.calls[begun:] if {row.slot for row in call} == {0, 1}]
    assert together and all(len(call) == 2 for call in together)
    assert any(len(call) > 2 and call[0].position != 0 for call in context.calls[begun + len(together) :])


def test_an_end_token_in_the_middle_of_a_guess_ends_the_answer_there():
    prompt = prompt_of(40)
    whole = copied(prompt, 200)
    end = max(set(whole), key=whole.index)
    context = Copying(1, threads=2)
    batch = Batch(context, slots=1, window=64, draft=True)
    start(batch, 1, prompt, 200, end_tokens=frozenset({end}))
    assert answer_of(batch) == whole[: whole.index(end)]
    assert all(not held for held in context.held)


@pytest.mark.parametrize("window", [1, 2, 5, 64])
def test_a_guess_never_says_more_than_its_reader_has_room_for(window):
    batch = Batch(Copying(1, threads=2), slots=1, window=window, draft=True)
    start(batch, 1, prompt_of(40), 300)
    said = read = 0
    while batch.can_step or said > read:
        while batch.can_step:
            said += len(batch.step())
        assert said - read <= window
        read = min(said, read + max(1, window // 2))
        batch.acknowledge(1, read)
    assert said == 300


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_no_length_window_or_context_changes_an_answer(data):
    size = data.draw(st.integers(30, 120))
    prompt = prompt_of(data.draw(st.integers(1, 29)), data.draw(st.integers(0, 9)))
    limit = data.draw(st.integers(1, 100))
    context = Copying(1, threads=data.draw(st.integers(1, 2)), size=size)
    batch = Batch(context, slots=1, window=data.draw(st.integers(1, 9)), draft=True)
    done = data.draw(st.integers(0, min(limit, size - len(prompt)) - 1))
    before = copied(prompt, done)
    start(batch, 1, prompt, limit, generated=before, read=done)
    assert before + answer_of(batch) == copied(prompt, min(limit, size - len(prompt)))


# ---- the real model ------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.parametrize("threads", [1, 2])
def test_tokens_and_log_probabilities_are_the_same_to_the_bit(default_model: Path, threads: int):
    from inference.llama import LlamaContext

    context = LlamaContext(default_model, slots=1, size=1024, threads=threads, memory_bytes=4 << 30)
    song = [198, 504, 2365, 28, 260, 1217, 28, 284, 260, 8426, 30] * 6
    seeded = Sampling(seed=bytes(range(32)), temperature_micro=400_000)
    for sampling in (GREEDY, seeded):
        heard: dict[bool, list[Emission]] = {}
        calls: dict[bool, int] = {}
        for draft in (False, True):
            batch = Batch(context, slots=1, window=1000, draft=draft)
            work = Work(prompt=song, sampling=sampling, max_tokens=80, logprobs=3)
            assert batch.join(1, work) is None
            heard[draft], calls[draft] = [], 0
            while batch.can_step:
                heard[draft] += batch.step()
                calls[draft] += 1
        assert [e._replace(cached=0) for e in heard[True]] == [e._replace(cached=0) for e in heard[False]]
        if sampling is GREEDY and threads == 2:
            assert calls[True] < 0.7 * calls[False]
