"""How fast one stream is, measured at start for the Offer. Must not know: which engine it measures."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Final

from market.ports import Engine, Job
from market.task import Sampling, TaskId

_LIMIT_S: Final = 0.4
_TOKENS: Final = 64


async def measure_speed(engine: Engine, prompt: tuple[int, ...] = tuple(range(1, 17))) -> float:
    """Tokens per second of a lone greedy stream, after its first token; takes at most about half a second
    beyond the first token. 0 if not even two tokens came."""
    sampling = Sampling(seed=bytes(32), temperature_micro=0)
    job = Job(task=TaskId(bytes(32)), prompt=prompt, sampling=sampling, max_tokens=_TOKENS, end_tokens=frozenset())
    started = elapsed = 0.0
    tokens = 0
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
    return tokens / elapsed if elapsed else 0.0
