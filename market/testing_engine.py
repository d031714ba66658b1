"""The kit that every token engine runs: streaming, ends, repetition, refusal, and the features that it claims."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from dataclasses import replace

from market.errors import RequestInvalid
from market.ports import Engine, Generated, Job
from market.task import Sampling, TaskId


def job(prompt: tuple[int, ...], *, max_tokens: int = 16, end_tokens: frozenset[int] = frozenset()) -> Job:
    return Job(
        task=TaskId(hashlib.sha256(repr(prompt).encode()).digest()),
        prompt=prompt,
        sampling=Sampling(seed=bytes(32), temperature_micro=0),
        max_tokens=max_tokens,
        end_tokens=end_tokens,
    )


async def check_engine(engine: Engine, prompt: tuple[int, ...]) -> None:
    """What every engine must do: stream, end with a reason, repeat itself, stop when closed, refuse what never fits."""
    answers = []
    for _ in range(2):
        items = [item async for item in engine.generate(job(prompt))]
        assert items[-1].finish in ("stop", "length"), "the last item says why the answer ended"
        assert all(item.finish == "" for item in items[:-1]), "only the last item says it"
        tokens = tuple(token for item in items for token in item.tokens)
        assert len(tokens) <= 16, "never more than max_tokens"
        answers.append(tokens)
    assert answers[0] == answers[1], "temperature 0 answers the same twice"
    async with aclosing(engine.generate(job(prompt, max_tokens=512))) as stream:
        async for _ in stream:
            break
    async with asyncio.timeout(2):
        while engine.load().running:  # noqa: ASYNC110 - a port has no event to wait for
            await asyncio.sleep(0.01)
    too_long = prompt * (engine.info.context // len(prompt) + 1)
    await _refused(engine, job(too_long), "a prompt that never fits is refused")
    await _check_features(engine, prompt)


async def _check_features(engine: Engine, prompt: tuple[int, ...]) -> None:
    """What an engine claims it does; a grammar or log probabilities that it cannot give it refuses, not ignores."""
    plain = job(prompt)
    expected = _tokens(await _items(engine, plain))
    for _ in range(2):
        items = await _items(engine, replace(plain, scope="check_engine", client="check_engine", priority=1))
        assert _tokens(items) == expected, "who asks, how urgently and what is remembered change no token"
        assert all(item.cached == 0 for item in items[1:]) and 0 <= items[0].cached < len(prompt)
    if "logprobs" in engine.info.features:
        items = await _items(engine, replace(plain, logprobs=3))
        assert _tokens(items) == expected, "log probabilities change no token"
        for item in items:
            assert len(item.logprobs) == len(item.tokens), "one for each token"
            for entry in item.logprobs:
                ranked = [logprob for _, logprob in entry.top]
                assert len(ranked) == 3 and ranked == sorted(ranked, reverse=True), "the best first"
                assert entry.logprob <= ranked[0] + 1e-6, "none is likelier than the likeliest"
    else:
        await _refused(engine, replace(plain, logprobs=3), "log probabilities that cannot be had are refused")
    broken = replace(plain, grammar="root ::= nowhere")
    await _refused(engine, broken, "a grammar that is malformed, or cannot be kept, is refused")


async def _items(engine: Engine, work: Job) -> list[Generated]:
    return [item async for item in engine.generate(work)]


def _tokens(items: list[Generated]) -> tuple[int, ...]:
    return tuple(token for item in items for token in item.tokens)


async def _refused(engine: Engine, work: Job, rule: str) -> None:
    try:
        async for _ in engine.generate(work):
            break
    except RequestInvalid:
        return
    raise AssertionError(rule)
