"""What an engine does is measured right: against one whose speed is known, and the real one."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
from collections.abc import AsyncIterator

import pytest

from inference.engines.llama_cpp import open_llama_engine
from inference.measuring import first_token_s, goodput, measure_engine, memory_of, throughput
from market.ports import EngineInfo, EngineLoad, Generated


class Moments:
    """Seconds that pass only where somebody sleeps, as soon as nobody has anything else to do: a busy machine cannot
    stretch them."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), woken))
        await woken

    async def pass_by(self) -> None:
        while True:
            for _ in range(20):  # whoever was woken goes to sleep again, or ends
                await asyncio.sleep(0)
            if self._sleepers:
                self.now, _, woken = heapq.heappop(self._sleepers)
                if not woken.done():
                    woken.set_result(None)


@pytest.fixture
async def moments() -> AsyncIterator[Moments]:
    moments = Moments()
    passing = asyncio.create_task(moments.pass_by())
    yield moments
    passing.cancel()
    await asyncio.gather(passing, return_exceptions=True)


class Steady:
    """A token every `token_s` in each stream, the first after `token_s` for every 64 of the prompt."""

    def __init__(self, moments, *, token_s=0.004, slots=16, context=2048):
        self.info = EngineInfo(name="steady/1", context=context, slots=slots)
        self.prompts = []
        self.tasks = []
        self.open = self.most = 0
        self._moments = moments
        self._token_s = token_s

    async def generate(self, job):
        self.prompts.append(job.prompt)
        self.tasks.append(job.task)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await self._moments.sleep(self._token_s * (1 + len(job.prompt) // 64))
            for at in range(job.max_tokens):
                yield Generated(tokens=(1,), finish="length" if at == job.max_tokens - 1 else "")
                await self._moments.sleep(self._token_s)
        finally:
            self.open -= 1

    def load(self):
        return EngineLoad(running=self.open, waiting=0)


async def test_streams_together_are_counted_together(moments):
    engine = Steady(moments)
    one, sixteen = [await throughput(engine, count, clock=moments) for count in (1, 16)]
    assert engine.most == 16
    # 31 tokens after the first; the engine's stream ends a step after its last
    assert [one, sixteen] == pytest.approx([31 / (32 * 0.004), 16 * 31 / (32 * 0.004)])
    assert await goodput(engine, 8, 8, clock=moments) == pytest.approx(8 * 8 / (9 * 0.004))


async def test_every_figure_is_there_and_no_prompt_is_asked_twice_at_once(moments):
    engine, steps = Steady(moments, token_s=0.0005), []
    measured = await measure_engine(engine, step=lambda done, total: steps.append((done, total)), clock=moments)
    assert list(measured.tokens_per_s) == ["1", "4", "8", "16"]
    assert list(measured.first_token_ms) == list(measured.prefill_tokens_per_s) == ["64", "512"]
    assert measured.first_token_ms == {"64": 1.0, "512": 4.5}
    assert measured.prefill_tokens_per_s == {"64": 64_000.0, "512": pytest.approx(512 / 0.0045, abs=0.1)}
    assert steps[-1] == (6, 6)
    long = [prompt for prompt in engine.prompts if len(prompt) == 512]
    assert len(long) == len({prompt[:64] for prompt in long}) == 3
    assert all(0 < token <= 500 for prompt in engine.prompts for token in prompt)
    assert engine.open == 0


async def test_a_load_without_slots_and_a_prompt_without_room_are_left_out(moments):
    measured = await measure_engine(Steady(moments, token_s=0.0005, slots=4, context=256), clock=moments)
    assert (list(measured.tokens_per_s), list(measured.first_token_ms)) == (["1", "4"], ["64"])


def test_memory_counts_live_processes_only():
    assert memory_of([os.getpid()]) > 1 << 20
    assert memory_of([2**22 + 1]) == 0


@pytest.mark.model
async def test_the_real_engine_is_measured(default_model):
    async with open_llama_engine(default_model, workers=1, slots=4, context=256) as engine:
        assert 0 < await first_token_s(engine, 64) < 60
        assert await throughput(engine, 4, 8) > 1
        assert memory_of(engine.worker_pids) > 50 << 20
