"""What one job's prompt may do for another's, and what it may not; on a context that is only arithmetic."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.batch import Batch
from inference.prefix import KnownBlocks, Prefixes, block_keys, scope_key
from tests.inference.arithmetic import ArithmeticContext, expected, prompt_of, run, start

SCOPE, OTHER = scope_key("one client"), scope_key("another")


def batch_of(slots: int, *, threads: int = 1, window: int = 256) -> tuple[Batch, ArithmeticContext]:
    context = ArithmeticContext(slots, threads=threads)
    return Batch(context, slots=slots, window=window), context


def finish(batch: Batch, job: int, prompt: list[int], *, scope: bytes = SCOPE, tokens: int = 3) -> int:
    """Run one job to its end, check its answer; how many of its prompt tokens came from elsewhere."""
    start(batch, job, prompt, tokens, scope=scope)
    emissions = [emission for _ in range(120) for emission in batch.step()]
    assert [e.token for e in emissions] == expected(prompt, tokens)
    return emissions[0].cached


def test_the_second_identical_prompt_computes_its_last_row_only():
    batch, context = batch_of(2)
    assert finish(batch, 1, prompt_of(400)) == 0
    context.calls.clear()
    assert finish(batch, 2, prompt_of(400)) == 399
    assert len(context.calls[0]) == 1


@pytest.mark.parametrize(
    ("length", "reused"), [(64, 0), (65, 64), (79, 64), (80, 79), (128, 64), (129, 128), (63, 62), (17, 16), (15, 0)]
)
def test_blocks_and_tails_worth_it_are_reused_and_the_last_row_is_always_computed(length, reused):
    batch, _ = batch_of(1)
    finish(batch, 1, prompt_of(length))
    assert finish(batch, 2, prompt_of(length)) == reused


def test_a_beginning_shorter_than_a_block_is_computed_once_for_prompts_with_as_many_blocks():
    batch, context = batch_of(3)
    system = prompt_of(30)
    finish(batch, 1, system + prompt_of(20, 1))
    assert finish(batch, 2, system + prompt_of(25, 2)) == 30
    assert context.copies == [(0, 1)], "the first prompt is still there"
    assert finish(batch, 3, system + prompt_of(60, 3)) == 0, "its first block is computed as a whole"
    assert finish(batch, 4, system + prompt_of(20, 1)) == 49


def test_where_tails_have_other_bits_than_steps_they_serve_nobody():
    context = ArithmeticContext(1)
    context.replay = 1
    batch = Batch(context, slots=1, window=256)
    finish(batch, 1, prompt_of(120))
    assert finish(batch, 2, prompt_of(120)) == 64


def test_a_long_lane_is_copied_for_more_tokens_only():
    context = ArithmeticContext(2, size=8192)
    batch = Batch(context, slots=2, window=256)
    finish(batch, 1, prompt_of(32) + prompt_of(20, 1))
    assert finish(batch, 2, prompt_of(31) + prompt_of(20, 2)) == 0
    assert finish(batch, 3, prompt_of(32) + prompt_of(20, 3)) == 32


def test_one_prompt_asked_eight_times_at_once_is_prefilled_once():
    batch, context = batch_of(8)
    for job in range(8):
        start(batch, job, prompt_of(100), 4, scope=SCOPE)
    assert run(batch) == {job: expected(prompt_of(100), 4) for job in range(8)}
    assert [len(call) for call in context.calls[:2]] == [64, 36]
    assert len(context.calls) == 2 + 1 + 4, "the leader's first step, while the others are copied; then all together"


def test_what_was_generated_serves_nobody():
    batch, _ = batch_of(2)
    prompt = prompt_of(60)
    finish(batch, 1, prompt, tokens=100)
    assert finish(batch, 2, prompt + expected(prompt, 100)) == 0
    prompt = prompt_of(40, 1)
    finish(batch, 5, prompt, tokens=20)
    assert finish(batch, 6, prompt + expected(prompt, 20)) == 40
    prompt = prompt_of(70)
    finish(batch, 3, prompt, tokens=100)
    assert finish(batch, 4, prompt + expected(prompt, 100)) == 64


def test_a_prompt_is_shared_within_its_scope_only_and_without_one_leaves_nothing():
    batch, context = batch_of(4)
    finish(batch, 1, prompt_of(200), scope=SCOPE)
    assert finish(batch, 2, prompt_of(200), scope=OTHER) == 0
    assert finish(batch, 3, prompt_of(200), scope=b"") == 0
    assert finish(batch, 4, prompt_of(200), scope=b"") == 0
    assert sorted(len(held) for held in context.held) == [0, 0, 192, 192]
    assert finish(batch, 5, prompt_of(200), scope=OTHER) == 192
    assert finish(batch, 6, prompt_of(50), scope=SCOPE) == finish(batch, 7, prompt_of(50), scope=OTHER) == 0
    assert finish(batch, 8, prompt_of(50), scope=OTHER) == 49


def test_a_running_jobs_prompt_serves_too_by_copy():
    batch, context = batch_of(2)
    start(batch, 1, prompt_of(200), 50, scope=SCOPE)
    for _ in range(6):
        batch.step()
    start(batch, 2, prompt_of(150) + prompt_of(30, 9), 3, scope=SCOPE)
    answers = run(batch)
    assert answers[2] == expected(prompt_of(150) + prompt_of(30, 9), 3)
    assert context.copies == [(0, 1)]


def test_prompts_that_come_together_are_prefilled_once():
    batch, context = batch_of(8)
    common = prompt_of(300)
    for job in range(8):
        start(batch, job, common + prompt_of(20, job), 4, scope=SCOPE)
    answers = run(batch)
    assert all(answers[job] == expected(common + prompt_of(20, job), 4) for job in range(8))
    prefilled = sum(len(call) for call in context.calls if len({row.slot for row in call}) == 1 and len(call) > 8)
    assert prefilled == 320 + 7 * (320 - 256)
    assert len(context.copies) == 7


def test_who_follows_a_job_that_is_cancelled_goes_alone():
    batch, _ = batch_of(2)
    start(batch, 1, prompt_of(300), 4, scope=SCOPE)
    start(batch, 2, prompt_of(300), 4, scope=SCOPE)
    batch.step()
    batch.cancel(1)
    assert run(batch) == {2: expected(prompt_of(300), 4)}


def test_an_urgent_job_does_not_follow_one_that_can_wait():
    batch, context = batch_of(2)
    start(batch, 1, prompt_of(300), 4, scope=SCOPE, priority=5)
    batch.step()
    start(batch, 2, prompt_of(300), 4, scope=SCOPE, priority=0)
    batch.step()
    assert {row.slot for row in context.calls[-1]} == {1}


def test_the_least_recently_used_lane_is_lost_first_and_a_copy_loses_nothing():
    prefixes = Prefixes(3)
    prompts = [prompt_of(130, salt) for salt in range(4)]
    for lane in range(3):
        prefixes.begin(lane, SCOPE, prompts[lane], 0)
        prefixes.fill(lane, 130)
        assert prefixes.end(lane) == 128
    assert prefixes.held == 3 * 128
    assert prefixes.place([0, 1, 2], SCOPE, prompts[1]) == (1, 128, -1), "as it is"
    prefixes.begin(0, SCOPE, prompts[0], 128)
    prefixes.end(0)
    assert prefixes.place([0, 1, 2], SCOPE, prompts[3]) == (1, 0, -1), "used longest ago"
    half = prompts[1][:70] + prompts[3]
    assert prefixes.place([0, 1, 2], SCOPE, half) == (2, 0, -1) and prefixes.best(SCOPE, half) == (1, 64)
    assert prefixes.place([1], SCOPE, half) == (1, 64, -1), "its tail is lost: there is no other lane"


def test_jobs_sit_side_by_side_and_what_lay_there_moves():
    batch, context = batch_of(8)
    for job in range(8):
        start(batch, job, prompt_of(100, job), 2, scope=SCOPE)
    run(batch)
    start(batch, 10, prompt_of(100, 5), 100, scope=SCOPE)
    batch.step()
    for job in range(11, 14):
        start(batch, job, prompt_of(100, job), 4, scope=SCOPE)
        batch.step()
    context.calls.clear()
    batch.step()
    busy = {row.slot for row in context.calls[0]}
    assert busy <= {4, 5, 6, 7} or busy <= {3, 4, 5, 6} or busy <= {2, 3, 4, 5}, "and not 0, 1 and 2, used longest ago"
    run(batch)
    assert [finish(batch, 20 + job, prompt_of(100, job), tokens=1) for job in range(3, 8)] == [99] * 5
    assert finish(batch, 30, prompt_of(100, 0)) == 0, "what was used longest ago is lost, wherever it lay"


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 2), st.data())
def test_sharing_in_any_order_changes_no_answer(threads, data):
    slots = data.draw(st.integers(1, 4))
    batch, _ = batch_of(slots, threads=threads)
    blocks = [prompt_of(64, salt) for salt in range(3)]
    prompts: dict[int, list[int]] = {}
    got: dict[int, list[int]] = {}
    running: set[int] = set()
    for job in range(80):
        match data.draw(st.sampled_from(["join", "cancel", "step", "step", "step"])):
            case "join" if len(running) < slots:
                body = [token for at in data.draw(st.lists(st.integers(0, 2), max_size=4)) for token in blocks[at]]
                prompts[job] = body + prompt_of(data.draw(st.integers(1, 70)), job % 2)
                got[job] = []
                scope = data.draw(st.sampled_from([SCOPE, OTHER, b""]))
                start(batch, job, prompts[job], 6, scope=scope, priority=data.draw(st.integers(0, 1)))
                running.add(job)
            case "cancel" if running:
                batch.cancel(leaving := data.draw(st.sampled_from(sorted(running))))
                running.discard(leaving)
            case _:
                for emission in batch.step():
                    got[emission.job].append(emission.token)
                    if emission.finish:
                        running.discard(emission.job)
    for job, tokens in run(batch).items():
        got[job] += tokens
    for job, tokens in got.items():
        assert tokens == expected(prompts[job], len(tokens))


@pytest.mark.parametrize("done", [0, 1, 5, 70])
def test_a_resumed_job_goes_on_where_it_was(done):
    batch, _ = batch_of(2)
    prompt, whole = prompt_of(100), expected(prompt_of(100), 90)
    start(batch, 1, prompt, 90, generated=whole[:done], read=done)
    start(batch, 2, prompt_of(50), 90)
    assert run(batch)[1] == whole[done:]


def test_a_resumed_jobs_own_tokens_serve_nobody():
    batch, _ = batch_of(1)
    prompt, whole = prompt_of(60), expected(prompt_of(60), 90)
    start(batch, 1, prompt, 90, generated=whole[:80], scope=SCOPE)
    run(batch)
    assert finish(batch, 2, prompt + whole) == 0


def test_resuming_counts_tokens_and_window_from_the_beginning():
    batch, _ = batch_of(1, window=64)
    prompt, whole = prompt_of(100), expected(prompt_of(100), 90)
    start(batch, 1, prompt, 90, generated=whole[:30], read=20)
    tokens = [emission.token for _ in range(100) for emission in batch.step()]
    assert tokens == whole[30:84], "64 ahead of the reader"
    batch.acknowledge(1, 84)
    last = [emission for _ in range(10) for emission in batch.step()]
    assert [e.token for e in last] == whole[84:] and last[-1].finish == "length"


def test_block_names_chain_and_differ_by_scope():
    long = block_keys(SCOPE, prompt_of(300))
    assert len(long) == 4 and len(set(long)) == 4
    assert block_keys(SCOPE, prompt_of(129)) == long[:2]
    changed = prompt_of(300)
    changed[0] += 1
    assert not set(block_keys(SCOPE, changed)) & set(long)
    assert not set(block_keys(OTHER, prompt_of(300))) & set(long)
    assert block_keys(scope_key(""), prompt_of(300)) == ()


def test_a_node_remembers_blocks_up_to_a_limit():
    known = KnownBlocks(4)
    keys = [bytes([at]) for at in accumulate([1] * 6)]
    known.note(keys[:3])
    assert known.count(keys[:4]) == 3
    known.note(keys[3:])
    assert known.count(keys[2:]) == 4 and known.count(keys) == 0
