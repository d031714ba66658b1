"""How fast one stream is, measured at start for the Offer. Must not know: which engine it measures."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Final

from market.ports import Engine, Job
from market.task import Sampling, TaskId
from market.values import value

_LIMIT_S: Final = 0.4
_TOKENS: Final = 64
PROMPT_TOKENS: Final = 64


@value
class Speed:
    """Of a lone stream: tokens per second after the first one, and the wait for that, from the request."""

    tokens_per_s: float
    first_token_ms: float


async def measure_speed(engine: Engine, prompt: tuple[int, ...] = tuple(range(1, PROMPT_TOKENS + 1))) -> Speed:
    """Of a greedy stream; takes at most about half a second beyond the first token. 0 tokens per second if not even
    two came, 0 ms if not even one did."""
    sampling = Sampling(seed=bytes(32), temperature_micro=0)
    job = Job(task=TaskId(bytes(32)), prompt=prompt, sampling=sampling, max_tokens=_TOKENS, end_tokens=frozenset())
    started = elapsed = 0.0
    tokens = 0
    begun = time.perf_counter()
    async with aclosing(engine.generate(job)) as stream:
        async for generated in stream:
            now = time.perf_counter()
            if not started:
                started = now
                continue
            tokens += len(generated.tokens)
            elapsed = now - started
            if elapsed > _LIMIT_S:
                break
    return Speed(
        tokens_per_s=tokens / elapsed if elapsed else 0.0,
        first_token_ms=(started - begun) * 1000 if started else 0.0,
    )
