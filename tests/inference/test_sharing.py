"""Many jobs on the real engine: nobody's tokens change, nobody waits too long, nobody takes everything."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from typing import Any

import numpy as np
import pytest

from inference.batch import Batch, Work
from inference.engines.batched import BatchedEngine
from inference.engines.llama_cpp import open_llama_engine
from inference.prefix import scope_key
from market.errors import EngineFailed, RequestInvalid
from market.ports import Job
from tests.inference.engine_kit import GREEDY, SEEDED, answer, job, plain_logits, prompt_of, until

pytestmark = pytest.mark.model

SCOPE = scope_key("a client")


@pytest.fixture(scope="module")
async def engine(default_model):
    async with open_llama_engine(default_model, workers=1, slots=4, context=1024) as opened:
        yield opened


# ---- to the bit ----------------------------------------------------------------------------------


class Recorded:
    """A context that keeps the logits it gave for each position of each slot's latest job."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.rows: dict[int, dict[int, np.ndarray]] = {}
        self.cached = 0
        """How much of the latest job's prompt came from elsewhere."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def decode(self, rows: Any) -> Any:
        logits = self._context.decode(rows)
        for row, values in zip([row for row in rows if row.wanted], logits, strict=True):
            self.rows.setdefault(row.slot, {})[row.position] = values.copy()
        return logits


def logits_of(context: Recorded, batch: Batch, work: Work, company: list[Work] = []) -> np.ndarray:  # noqa: B006
    """The logits behind each token of `work`, which joins after `company` has begun."""
    for number, other in enumerate(company):
        batch.join(100 + number, other)
        batch.step()
    context.rows.clear()
    context.cached = 0
    assert batch.join(1, work) is None
    tokens = []
    while len(tokens) < work.max_tokens - len(work.generated):
        for emission in batch.step():
            assert emission.finish != "error", emission.error
            if emission.job == 1:
                tokens.append(emission.token)
                context.cached += emission.cached
            batch.acknowledge(emission.job, 10**6)
    for number in range(len(company)):
        batch.cancel(100 + number)
    first = len(work.prompt) + len(work.generated) - 1
    for rows in context.rows.values():
        picked = [rows.get(first + at) for at in range(len(tokens))]
        if all(row is not None for row in picked) and [int(row.argmax()) for row in picked] == tokens:
            return np.array(picked)
    raise AssertionError("the job's logits were not seen")


@pytest.mark.parametrize("threads", [1, 2])
def test_logits_are_bit_equal_under_load_batching_prefix_cache_and_resumption(default_model, threads):
    """To those of one thread."""
    from inference.llama import LlamaContext

    context = Recorded(LlamaContext(default_model, slots=4, size=512, threads=threads, memory_bytes=4 << 30))
    batch = Batch(context, slots=4, window=64)
    prompt = prompt_of(330)
    fresh = plain_logits(default_model, prompt, 24)
    work = Work(prompt=prompt, sampling=GREEDY, max_tokens=24, scope=SCOPE)
    others = [
        Work(prompt=prompt_of(length, length), sampling=GREEDY, max_tokens=150, scope=SCOPE) for length in (40, 129, 70)
    ]
    assert np.array_equal(logits_of(context, batch, work), fresh), "alone"
    assert np.array_equal(logits_of(context, batch, work), fresh), "its prompt kept in its lane"
    company = [Work(prompt=prompt, sampling=GREEDY, max_tokens=150, scope=SCOPE), *others[:2]]
    assert np.array_equal(logits_of(context, batch, work, company), fresh), "its prompt copied from a running job"
    fork = prompt[:130] + prompt_of(60, 5)
    assert np.array_equal(
        logits_of(context, batch, Work(prompt=fork, sampling=GREEDY, max_tokens=24, scope=SCOPE), others),
        plain_logits(default_model, fork, 24),
    ), "two blocks shared, then another text, in company"
    for length, shared in ((350, 346), (126, 90), (63, 20), (50, 49)):
        first = prompt_of(length, length)
        logits_of(context, batch, Work(prompt=first, sampling=GREEDY, max_tokens=1, scope=SCOPE))
        tail = (*first[:shared], first[shared] + 1)
        assert np.array_equal(
            logits_of(context, batch, Work(prompt=tail, sampling=GREEDY, max_tokens=24, scope=SCOPE), others[:2]),
            plain_logits(default_model, tail, 24),
        ), "what is shared ends in the tail"
        assert context.cached == shared
    tokens = [int(row.argmax()) for row in fresh]
    for done in (1, 7, 20):
        resumed = Work(prompt=prompt, sampling=GREEDY, max_tokens=24, generated=tokens[:done], read=done, scope=SCOPE)
        assert np.array_equal(logits_of(context, batch, resumed, others), fresh[done:]), f"resumed after {done}"


# ---- prefixes ------------------------------------------------------------------------------------


async def test_a_prompt_is_prefilled_once_for_its_scope_and_anew_for_another(default_model):
    async with open_llama_engine(default_model, workers=2, slots=2, context=512) as engine:
        work = job(400, 12, sampling=SEEDED, scope="one")

        async def cached(work: Job) -> tuple[int, list[int]]:
            items = [item async for item in engine.generate(work)]
            return sum(item.cached for item in items), [token for item in items for token in item.tokens]

        assert (first := await cached(work))[0] == 0
        busy = asyncio.create_task(answer(engine, job(20, 200, salt=7)))
        await until(lambda: engine.load().running == 1)
        assert await cached(work) == (399, first[1]), "by the worker that has it, although it is the busier one"
        assert await cached(job(400, 12, sampling=SEEDED, scope="another")) == (0, first[1])
        assert await cached(job(400, 12, sampling=SEEDED)) == (0, first[1])
        facts = engine.prefix_facts
        assert (facts.hits, facts.cached_tokens, facts.prompt_tokens) == (1, 399, 4 * 400 + 20)
        await busy


# ---- who goes first ------------------------------------------------------------------------------


async def test_an_urgent_job_takes_a_slot_at_once_and_the_loser_goes_on_unchanged(default_model):
    async with open_llama_engine(default_model, workers=1, slots=2, context=512) as engine:
        works = [job(100, 150, sampling=SEEDED, salt=salt, priority=2) for salt in range(2)]
        alone = [await answer(engine, work) for work in works]
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(aclosing(engine.generate(work))) for work in works]
            told = [list((await anext(stream)).tokens) for stream in streams]
            assert engine.load().running == 2, "each has more to say than its reader has room for"
            assert len(await answer(engine, job(10, 5))) == 5
            for tokens, stream in zip(told, streams, strict=True):
                tokens += [token async for item in stream for token in item.tokens]
        assert told == alone


async def test_batch_work_delays_a_realtime_prompt_by_a_chunk_at_most(engine):
    """Counted in the worker's steps, not in time: see test_scheduler. Here: it is served while they are not done."""
    batch = [asyncio.create_task(answer(engine, job(900, 100, salt=salt, priority=1))) for salt in range(8)]
    await until(lambda: engine.load().running == 4)
    await answer(engine, job(130, 10))
    assert not any(task.done() for task in batch)
    for task in batch:
        task.cancel()
    await asyncio.gather(*batch, return_exceptions=True)


async def test_a_client_that_asks_for_everything_does_not_starve_another(engine):
    greedy = [asyncio.create_task(answer(engine, job(30, 150, salt=at, client="greedy"))) for at in range(40)]
    await until(lambda: engine.load().running == 4)
    assert len(await answer(engine, job(10, 10, client="modest"))) == 10
    assert sum(task.done() for task in greedy) < 10
    for task in greedy:
        task.cancel()
    await asyncio.gather(*greedy, return_exceptions=True)
    await until(lambda: engine.load().running == engine.load().waiting == 0)


async def test_a_job_whose_deadline_passes_while_it_waits_fails_and_others_do_not_notice(engine):
    busy = [asyncio.create_task(answer(engine, job(10, 400, salt=at))) for at in range(4)]
    await until(lambda: engine.load().running == 4)
    with pytest.raises(EngineFailed, match=r"waited 0\.2 s .* deadline"):
        await answer(engine, job(10, 5, deadline_s=0.2))
    assert not any(task.done() for task in busy) and engine.load().waiting == 0
    admitted = asyncio.create_task(answer(engine, job(10, 60, client="new", deadline_s=0.3)))
    assert len(await admitted) == 60, "a deadline is for the start alone"
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)


async def test_when_too_many_wait_the_greediest_is_refused_not_the_newcomer(engine: BatchedEngine):
    async def outcome(work: Job) -> str:
        try:
            return "answered" if await answer(engine, work) else "empty"
        except EngineFailed as error:
            assert "1024 jobs are waiting already" in str(error)
            return "refused"

    busy = [asyncio.create_task(answer(engine, job(10, 900, salt=at, client="greedy"))) for at in range(4)]
    await until(lambda: engine.load().running == 4)
    greedy = [asyncio.create_task(outcome(job(5, 5, client="greedy", priority=1))) for _ in range(1030)]
    await until(lambda: engine.load().waiting == 1024)
    await until(lambda: sum(task.done() for task in greedy) == 6)
    assert {task.result() for task in greedy if task.done()} == {"refused"}
    assert await outcome(job(5, 5, client="modest")) == "answered", "one of the greedy made room for it"
    assert sum(task.done() for task in greedy) >= 7
    for task in (*busy, *greedy):
        task.cancel()
    await asyncio.gather(*busy, *greedy, return_exceptions=True)
    assert (engine.load().running, engine.load().waiting) == (0, 0)


@pytest.mark.heavy
async def test_thousands_of_tiny_requests_are_all_answered_or_refused(engine: BatchedEngine):
    async def one(at: int) -> str:
        try:
            return "answered" if await answer(engine, job(1 + at % 3, 1, salt=at, client=f"{at % 7}")) else "empty"
        except EngineFailed as error:
            assert "waiting already" in str(error)
            return "refused"

    results = await asyncio.gather(*(one(at) for at in range(5000)))
    assert results.count("answered") >= 1024 and set(results) <= {"answered", "refused"}
    assert (engine.load().running, engine.load().waiting) == (0, 0)


# ---- log probabilities ---------------------------------------------------------------------------


async def test_logprobs_are_the_models_own_and_change_no_token(engine, default_model):
    work = job(20, 8, sampling=SEEDED, logprobs=20)
    items = [item async for item in engine.generate(work)]
    tokens = [token for item in items for token in item.tokens]
    logprobs = [entry for item in items for entry in item.logprobs]
    assert tokens == await answer(engine, job(20, 8, sampling=SEEDED)) and len(logprobs) == 8
    [first] = plain_logits(default_model, work.prompt, 1).astype(np.float64)
    expected = first - first.max() - np.log(np.exp(first - first.max()).sum())
    assert logprobs[0].logprob == pytest.approx(expected[tokens[0]], abs=1e-5)
    assert [token for token, _ in logprobs[0].top] == np.argsort(-expected, kind="stable")[:20].tolist()
    assert [value for _, value in logprobs[0].top] == pytest.approx(np.sort(expected)[::-1][:20].tolist(), abs=1e-5)
    none = [item async for item in engine.generate(job(20, 3, logprobs=0))]
    assert all(entry.top == () and entry.logprob < 0 for item in none for entry in item.logprobs)
    assert all(item.logprobs == () for item in [item async for item in engine.generate(job(20, 3))])
    for bad in (-1, 21):
        with pytest.raises(RequestInvalid, match="0 to 20"):
            await answer(engine, job(20, 3, logprobs=bad))


async def test_closing_a_stream_that_waits_again_leaves_nothing_behind(default_model):
    async with open_llama_engine(default_model, workers=1, slots=1, context=512) as engine:
        async with aclosing(engine.generate(job(10, 400, priority=1))) as stream:
            await anext(stream)
            urgent = engine.generate(job(10, 400))
            await anext(urgent)
            assert (engine.load().running, engine.load().waiting) == (1, 1)
        assert (engine.load().running, engine.load().waiting) == (1, 0)
        await urgent.aclose()
        assert len(await answer(engine, job(10, 5))) == 5
