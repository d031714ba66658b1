"""Who decodes next, and the batch that does it, with a context that is only arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.batch import Batch, Emission, Row
from inference.scheduler import CHUNK, Decode, Prefill, Schedule, layout, lone
from market.errors import EngineFailed
from tests.inference.arithmetic import ArithmeticContext, expected, prompt_of, run, start

# ---- the schedule --------------------------------------------------------------------------------


def test_a_prompt_goes_in_canonical_chunks():
    schedule = Schedule(slots=1, window=64)
    schedule.join(1, prompt=2 * CHUNK + 5)
    steps = [schedule.next_step() for _ in range(3)]
    assert steps == [
        Prefill(1, 0, 0, 64, last=False),
        Prefill(1, 0, 64, 128, last=False),
        Prefill(1, 0, 128, 133, last=True),
    ]
    assert schedule.next_step() == Decode((1,))


def test_the_last_row_of_a_tail_goes_with_those_that_decode():
    schedule = Schedule(slots=3, window=64)
    schedule.join(1, prompt=CHUNK + 1)
    schedule.join(2, prompt=20, filled=19)
    schedule.join(3, prompt=CHUNK, filled=CHUNK - 1)
    steps = [schedule.next_step() for _ in range(3)]
    assert steps == [Prefill(1, 0, 0, 64, last=False), Decode((1, 2)), Prefill(3, 2, 63, 64, last=True)]


def test_where_tails_have_other_bits_than_steps_every_row_of_a_prompt_is_prefilled():
    schedule = Schedule(slots=1, window=64, replay=1)
    schedule.join(1, prompt=CHUNK + 1)
    assert [schedule.next_step() for _ in range(2)][1] == Prefill(1, 0, 64, 65, last=True)


def test_a_running_stream_loses_at_most_one_chunk_between_two_tokens():
    schedule = Schedule(slots=3, window=64)
    schedule.join(1, prompt=10)
    schedule.next_step()
    schedule.join(2, prompt=5 * CHUNK)
    schedule.join(3, prompt=5 * CHUNK)
    steps = [schedule.next_step() for _ in range(22)]
    gaps = [type(a) is Prefill and type(b) is Prefill for a, b in pairwise(steps)]
    assert not any(gaps[1:]), "after the first, every second step decodes"
    assert all(1 in step.jobs for step in steps if isinstance(step, Decode))


def test_short_prompts_that_make_one_chunk_together_go_between_two_decode_calls():
    schedule = Schedule(slots=6, window=64)
    schedule.join(1, prompt=10)
    schedule.next_step()
    schedule.next_step()
    for job in range(2, 7):
        schedule.join(job, prompt=20)
    steps = [schedule.next_step() for _ in range(7)]
    assert [type(step) for step in steps] == [Prefill, Prefill, Prefill, Decode, Prefill, Prefill, Decode]
    assert steps[3] == Decode((1, 2, 3, 4))


def test_rows_that_are_found_elsewhere_do_not_count_as_prefilled():
    schedule = Schedule(slots=2, window=64)
    schedule.join(1, prompt=10)
    schedule.next_step()
    schedule.next_step()
    schedule.join(2, prompt=3 * CHUNK + 4)
    step = schedule.next_step()
    schedule.skip(step, 3 * CHUNK)
    assert schedule.next_step() == Prefill(2, 1, 3 * CHUNK, 3 * CHUNK + 4, last=True)
    schedule.leave(2)
    schedule.join(3, prompt=60)
    assert [type(schedule.next_step()) for _ in range(2)] == [Prefill, Decode]


def test_a_more_urgent_prompt_does_not_alternate_with_less_urgent_streams():
    schedule = Schedule(slots=3, window=64)
    schedule.join(1, prompt=10, priority=5)
    schedule.next_step()
    schedule.join(2, prompt=3 * CHUNK, priority=0)
    assert [type(schedule.next_step()) for _ in range(4)] == [Prefill, Prefill, Prefill, Decode]
    schedule.join(3, prompt=2 * CHUNK, priority=5)
    assert [type(schedule.next_step()) for _ in range(4)] == [Prefill, Decode, Prefill, Decode]


def test_a_resumed_job_has_its_prompt_in_64s_then_its_tokens_in_at_most_63s():
    schedule = Schedule(slots=1, window=64)
    schedule.join(1, prompt=70, generated=100)
    steps = [schedule.next_step() for _ in range(4)]
    assert [(step.start, step.stop, step.last) for step in steps] == [
        (0, 64, False),
        (64, 70, False),
        (70, 133, False),
        (133, 170, True),
    ]


def test_what_a_resumed_job_generated_goes_as_the_context_wants_it():
    schedule = Schedule(slots=1, window=64, replay=1)
    schedule.join(1, prompt=65, generated=3)
    steps = [schedule.next_step() for _ in range(5)]
    assert [(step.start, step.stop) for step in steps] == [(0, 64), (64, 65), (65, 66), (66, 67), (67, 68)]


def test_prompts_take_turns_so_a_short_one_does_not_wait_for_a_long_one():
    schedule = Schedule(slots=2, window=64)
    schedule.join(1, prompt=20 * CHUNK)
    schedule.next_step()
    schedule.join(2, prompt=CHUNK)
    steps = [schedule.next_step() for _ in range(6)]
    assert [step.job for step in steps if isinstance(step, Prefill)] == [1, 2, 1, 1]
    assert [step.jobs for step in steps if isinstance(step, Decode)] == [(2,), (2,)]


def test_a_lower_priority_number_is_prefilled_first():
    schedule = Schedule(slots=2, window=64)
    schedule.join(1, prompt=3 * CHUNK, priority=5)
    schedule.next_step()
    schedule.join(2, prompt=2 * CHUNK, priority=0)
    assert [schedule.next_step().job for _ in range(2)] == [2, 2]


def test_a_reader_a_window_behind_pauses_its_own_job_only():
    schedule = Schedule(slots=2, window=4)
    for job in (1, 2):
        schedule.join(job, prompt=1)
    assert schedule.next_step() == Decode((1, 2))
    schedule.seat(1).emitted = 4
    assert schedule.next_step() == Decode((2,))
    schedule.seat(2).emitted = 4
    assert schedule.next_step() is None and not schedule.can_step()
    schedule.acknowledge(1, 1)
    assert schedule.next_step() == Decode((1,))


def test_an_acknowledgement_of_tokens_never_sent_counts_no_further_than_those_sent():
    schedule = Schedule(slots=1, window=4)
    schedule.join(1, prompt=1)
    schedule.next_step()
    schedule.seat(1).emitted = 3
    schedule.acknowledge(1, 10**9)
    schedule.acknowledge(1, 1)
    schedule.acknowledge(99, 1)
    assert schedule.seat(1).read == 3


def test_slots_are_taken_lowest_first_and_come_back():
    schedule = Schedule(slots=3, window=4)
    assert [schedule.join(job, prompt=1).slot for job in (1, 2, 3)] == [0, 1, 2]
    schedule.leave(2)
    schedule.leave(1)
    assert schedule.join(4, prompt=1).slot == 0


# ---- the shape of a call -------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 20), st.integers(1, 2), st.data())
def test_every_layout_holds_each_active_slot_once_and_nothing_outside(lanes, threads, data):
    active = sorted(data.draw(st.sets(st.integers(0, lanes - 1), min_size=1)))
    order = layout(active, slots=lanes, threads=threads)
    assert len(set(order)) == len(order) and set(active) <= set(order) <= set(range(lanes))
    rises = [b - a for a, b in pairwise(order)]
    if lone(order):
        assert all(rise < 0 for rise in rises) and list(order) == active[::-1]
    else:
        assert set(rises) == {1}


def test_a_gap_is_filled_and_rows_come_in_fours():
    assert layout([0, 1, 2, 3, 4, 6], slots=8, threads=1) == tuple(range(8))
    assert layout([9, 10, 11, 12, 13], slots=16, threads=1) == tuple(range(8, 16))
    assert layout([0, 7], slots=8, threads=1) == (7, 0)
    assert layout([3], slots=4, threads=2) == (3,)
    assert layout([4, 5], slots=8, threads=2) == (4, 5)
    assert layout([0, 2], slots=8, threads=2) == (0, 1, 2, 3)
    assert layout([0, 7], slots=8, threads=2) == (7, 0)


# ---- the batch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_answers_do_not_depend_on_who_else_runs(threads):
    context = ArithmeticContext(8, threads=threads)
    batch = Batch(context, slots=8, window=64)
    lengths = {1: 65, 2: 1, 3: 300, 4: 64, 5: 129, 6: 7, 7: 128}
    for job, length in lengths.items():
        start(batch, job, prompt_of(length, job), max_tokens=10 + 5 * job)
        batch.step()
    answers = run(batch)
    for job, length in lengths.items():
        tail = expected(prompt_of(length, job), 10 + 5 * job)
        assert answers[job] == tail[-len(answers[job]) :] and len(answers[job]) >= len(tail) - 7
    assert all(not held for held in context.held), "nothing stays behind"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_prefill_chunk_never_shares_its_call_and_no_call_reaches_64_decode_rows(threads):
    context = ArithmeticContext(6, threads=threads)
    batch = Batch(context, slots=6, window=64)
    for job in range(6):
        start(batch, job, prompt_of(150 + job), max_tokens=9)
        batch.step()
    run(batch)
    for call in context.calls:
        slots = {row.slot for row in call}
        wanted = [row for row in call if row.wanted]
        assert len(slots) == 1 or len(call) <= 6
        assert len(wanted) <= len(slots)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 2), st.data())
def test_joining_leaving_and_pausing_in_any_order_changes_no_answer(threads, data):
    slots = data.draw(st.integers(1, 6))
    context = ArithmeticContext(slots, threads=threads, size=200)
    batch = Batch(context, slots=slots, window=3)
    prompts: dict[int, list[int]] = {}
    limits: dict[int, int] = {}
    got: dict[int, list[int]] = {}
    running: set[int] = set()

    def hear(emissions: list[Emission]) -> None:
        for job, token, finish, *_ in emissions:
            got[job].append(token)
            if finish:
                running.discard(job)
                assert len(got[job]) == min(limits[job], 200 - len(prompts[job]))

    for number in range(60):
        match data.draw(st.sampled_from(["join", "cancel", "read", "step", "step", "step"])):
            case "join" if len(running) < slots:
                prompts[number] = prompt_of(data.draw(st.integers(1, 199)), number)
                limits[number] = data.draw(st.integers(1, 12))
                got[number] = []
                start(batch, number, prompts[number], limits[number])
                running.add(number)
            case "cancel" if running:
                job = data.draw(st.sampled_from(sorted(running)))
                running.discard(job)
                batch.cancel(job)
            case "read" if running:
                job = data.draw(st.sampled_from(sorted(running)))
                batch.acknowledge(job, len(got[job]))
            case _:
                hear(batch.step())
    for job, tokens in got.items():
        assert tokens == expected(prompts[job], len(tokens))


def test_an_end_token_stops_and_is_not_emitted():
    prompt = prompt_of(10)
    answer = expected(prompt, 20)
    batch = Batch(ArithmeticContext(1), slots=1, window=64)
    start(batch, 1, prompt, 20, end_tokens=frozenset({answer[6]}))
    emissions = [emission for _ in range(30) for emission in batch.step()]
    first = answer.index(answer[6])
    assert [e.token for e in emissions] == [*answer[:first], -1]
    assert emissions[-1].finish == "stop" and len(batch) == 0


def test_max_tokens_and_the_context_both_end_with_length():
    for max_tokens, size, count in ((5, 4096, 5), (1, 4096, 1), (100, 20, 10)):
        batch = Batch(ArithmeticContext(1, size=size), slots=1, window=64)
        start(batch, 1, prompt_of(10), max_tokens)
        emissions = [emission for _ in range(count + 3) for emission in batch.step()]
        assert [e.finish for e in emissions] == [""] * (count - 1) + ["length"]


def test_a_job_whose_logits_break_fails_alone():
    context = ArithmeticContext(2)
    batch = Batch(context, slots=2, window=64)
    start(batch, 1, prompt_of(5), 6)
    start(batch, 2, prompt_of(6), 6)
    context.poisoned = {0}
    emissions = [emission for _ in range(20) for emission in batch.step()]
    assert [e.finish for e in emissions if e.job == 1] == ["error"]
    assert [e.token for e in emissions if e.job == 2] == expected(prompt_of(6), 6)


def test_cancelling_what_has_ended_or_never_was_changes_nothing():
    batch = Batch(ArithmeticContext(1), slots=1, window=64)
    batch.cancel(7)
    start(batch, 1, prompt_of(3), 1)
    run(batch)
    batch.cancel(1)
    assert len(batch) == 0


def test_a_failing_decode_call_is_not_swallowed():
    class Broken(ArithmeticContext):
        def decode(self, rows: Sequence[Row]) -> list[np.ndarray]:
            raise EngineFailed("llama_decode returned -1.")

    batch = Batch(Broken(1), slots=1, window=64)
    start(batch, 1, prompt_of(3), 1)
    with pytest.raises(EngineFailed):
        batch.step()
