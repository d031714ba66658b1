"""What an engine does is measured right: against one whose speed is known, and the real one."""

from __future__ import annotations

import asyncio
import os

import pytest

from inference.engines.llama_cpp import open_llama_engine
from inference.measuring import first_token_s, goodput, measure_engine, memory_of, throughput
from market.ports import EngineInfo, EngineLoad, Generated


class Steady:
    """A token every `token_s` in each stream, the first after `token_s` for every 64 of the prompt."""

    def __init__(self, *, token_s=0.004, slots=16, context=2048):
        self.info = EngineInfo(name="steady/1", context=context, slots=slots)
        self.prompts = []
        self.tasks = []
        self.open = self.most = 0
        self._token_s = token_s

    async def generate(self, job):
        self.prompts.append(job.prompt)
        self.tasks.append(job.task)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await asyncio.sleep(self._token_s * (1 + len(job.prompt) // 64))
            for at in range(job.max_tokens):
                yield Generated(tokens=(1,), finish="length" if at == job.max_tokens - 1 else "")
                await asyncio.sleep(self._token_s)
        finally:
            self.open -= 1

    def load(self):
        return EngineLoad(running=self.open, waiting=0)


async def test_streams_together_are_counted_together():
    engine = Steady()
    one, sixteen = await throughput(engine, 1), await throughput(engine, 16)
    assert engine.most == 16
    assert one < 260
    assert 6 * one < sixteen < 20 * one
    assert await goodput(engine, 8, 8) > 2 * one


async def test_every_figure_is_there_and_no_prompt_is_asked_twice_at_once():
    engine, steps = Steady(token_s=0.0005), []
    measured = await measure_engine(engine, step=lambda done, total: steps.append((done, total)))
    assert list(measured.tokens_per_s) == ["1", "4", "8", "16"]
    assert list(measured.first_token_ms) == list(measured.prefill_tokens_per_s) == ["64", "512"]
    assert measured.first_token_ms["64"] < measured.first_token_ms["512"]
    assert steps[-1] == (6, 6)
    long = [prompt for prompt in engine.prompts if len(prompt) == 512]
    assert len(long) == len({prompt[:64] for prompt in long}) == 3
    assert all(0 < token <= 500 for prompt in engine.prompts for token in prompt)
    assert engine.open == 0


async def test_a_load_without_slots_and_a_prompt_without_room_are_left_out():
    measured = await measure_engine(Steady(token_s=0.0005, slots=4, context=256))
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
