"""What an engine does on this machine: tokens per second at several loads, time to first token, prefill, memory.

Lives here: the measurement of one engine that is open, and the value it gives. Must not know: which engine, models'
names, where results are kept. Prompts are token ids that no tokenizer made: how long it takes does not depend on what
they say, and a model must have at least 512 of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Annotated, Final

import psutil
from pydantic import Field

from market.ports import Engine, Job
from market.task import Sampling, TaskId
from market.values import value

CONCURRENCY: Final = (1, 4, 8, 16)
PROMPTS: Final = (64, 512)
_ANSWER_TOKENS: Final = 32
_SHORT_PROMPT: Final = 16
_RUNS: Final = 3
_IDS: Final = 500
Clock = Callable[[], float]
_Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@value
class Measured:
    """`tokens_per_s` of all streams together, by how many run at once; `first_token_ms` and `prefill_tokens_per_s` by
    prompt length, alone on the machine; `memory_bytes` of all workers (their own, and their share of what they have
    in common). Medians of three runs. A load that the engine has no slots for is not in here."""

    tokens_per_s: dict[str, _Figure]
    first_token_ms: dict[str, _Figure]
    prefill_tokens_per_s: dict[str, _Figure]
    memory_bytes: Annotated[int, Field(ge=0)]


async def measure_engine(
    engine: Engine,
    *,
    pids: Sequence[int] = (),
    step: Callable[[int, int], None] = lambda _done, _total: None,
    clock: Clock = time.perf_counter,
) -> Measured:
    """`pids` are the engine's workers; `step` hears how many of how many steps are done; `clock` gives seconds. Raises
    EngineFailed."""
    loads = [count for count in CONCURRENCY if count <= engine.info.slots]
    lengths = [length for length in PROMPTS if length + _ANSWER_TOKENS < engine.info.context]
    total, done = len(loads) + len(lengths), 0
    rates: dict[str, float] = {}
    waits: dict[str, float] = {}
    for count in loads:
        rates[str(count)] = statistics.median([await throughput(engine, count, clock=clock) for _ in range(_RUNS)])
        done += 1
        step(done, total)
    for length in lengths:
        waits[str(length)] = statistics.median([await first_token_s(engine, length, clock=clock) for _ in range(_RUNS)])
        done += 1
        step(done, total)
    return Measured(
        tokens_per_s={count: round(rate, 1) for count, rate in rates.items()},
        first_token_ms={length: round(wait * 1000, 1) for length, wait in waits.items()},
        prefill_tokens_per_s={length: round(int(length) / wait, 1) for length, wait in waits.items()},
        memory_bytes=memory_of(pids),
    )


async def throughput(
    engine: Engine, streams: int, tokens: int = _ANSWER_TOKENS, *, clock: Clock = time.perf_counter
) -> float:
    """Tokens per second of so many streams together, from the moment when all of them speak: each has had its first
    token, and counts until the first of them ends. Prefill is not in it."""
    started = [0.0] * streams
    counts = [0] * streams
    ended = asyncio.Event()
    all_speak: list[float] = []
    before: list[int] = []
    end: list[tuple[float, int]] = []

    async def one(number: int) -> None:
        job = _job(_prompt(number, _SHORT_PROMPT), tokens)
        async with aclosing(engine.generate(job)) as stream:
            async for item in stream:
                counts[number] += len(item.tokens)
                if not started[number] and item.tokens:
                    started[number] = clock()
                    if all(started):
                        all_speak.append(started[number])
                        before.append(sum(counts))
        if not ended.is_set():
            ended.set()
            end.append((clock(), sum(counts)))

    begun = clock()
    await asyncio.gather(*(one(number) for number in range(streams)))
    if all_speak and end[0][0] > all_speak[0] and end[0][1] > before[0]:
        return (end[0][1] - before[0]) / (end[0][0] - all_speak[0])
    return sum(counts) / (clock() - begun)


async def goodput(
    engine: Engine, streams: int, tokens: int = _ANSWER_TOKENS, *, clock: Clock = time.perf_counter
) -> float:
    """Tokens per second of so many requests together, prompts and waiting included: what a market earns."""
    begun = clock()
    counts = await asyncio.gather(*(_count(engine, number, tokens) for number in range(streams)))
    return sum(counts) / (clock() - begun)


async def _count(engine: Engine, number: int, tokens: int) -> int:
    async with aclosing(engine.generate(_job(_prompt(number, _SHORT_PROMPT), tokens))) as stream:
        return sum([len(item.tokens) async for item in stream])


async def first_token_s(engine: Engine, length: int, *, clock: Clock = time.perf_counter) -> float:
    """From the request to the first token of a lone stream whose prompt has `length` tokens that nobody sent before."""
    begun = clock()
    async with aclosing(engine.generate(_job(_prompt(time.perf_counter_ns(), length), 1))) as stream:
        async for item in stream:
            if item.tokens or item.finish:
                return clock() - begun
    return clock() - begun


def memory_of(pids: Sequence[int]) -> int:
    """Bytes; what several processes map together counts once (PSS)."""
    total = 0
    for pid in pids:
        try:
            total += int(psutil.Process(pid).memory_full_info().pss)
        except (psutil.Error, AttributeError):
            continue
    return total


def _prompt(seed: int, length: int) -> tuple[int, ...]:
    """Other ids for every seed, by a linear congruence: no two prompts share a prefix to reuse."""
    ids, state = [], seed * 2 + 1
    for _ in range(length):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        ids.append(1 + (state >> 33) % _IDS)
    return tuple(ids)


def _job(prompt: tuple[int, ...], tokens: int) -> Job:
    return Job(
        task=TaskId(hashlib.sha256(repr(prompt).encode()).digest()),
        prompt=prompt,
        sampling=Sampling(seed=bytes(32), temperature_micro=0),
        max_tokens=tokens,
        end_tokens=frozenset(),
    )
