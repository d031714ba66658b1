"""Jobs for the real engine, and a reference decode that shares no code with it."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from inference.engines.batched import BatchedEngine
from market.ports import Job
from market.task import Sampling, TaskId

SEEDED = Sampling(seed=bytes(range(32)), temperature_micro=800_000)
GREEDY = Sampling(seed=bytes(32), temperature_micro=0)


def prompt_of(length: int, salt: int = 0) -> tuple[int, ...]:
    return tuple(int(token) for token in np.random.default_rng(salt).integers(100, 40_000, length))


def job(length: int, max_tokens: int, *, sampling: Sampling = GREEDY, salt: int = 0, **more: Any) -> Job:
    return Job(
        task=TaskId(bytes(32)),
        prompt=prompt_of(length, salt),
        sampling=sampling,
        max_tokens=max_tokens,
        **{"end_tokens": frozenset(), **more},
    )


async def answer(engine: BatchedEngine, work: Job) -> list[int]:
    return [token async for item in engine.generate(work) for token in item.tokens]


async def until(condition: Callable[[], Any], limit_s: float = 60) -> None:
    """Whether it happens at all; how soon is no claim."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


def runs(process: psutil.Process | int) -> bool:
    """Whether it is there and no zombie. It may end, and be reaped, between any two looks."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def own_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if runs(child)]


@cache
def _loaded(path: Path):
    import llama_cpp

    @llama_cpp.llama_log_callback
    def quiet(_level, _text, _data):
        pass

    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return quiet, llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())


def plain_logits(path: Path, prompt: tuple[int, ...], count: int) -> np.ndarray:
    """The logits behind `count` greedy tokens: one sequence in a fresh context of its own, library defaults, prompt
    in 64s, no code of ours."""
    import llama_cpp as library

    quiet, model = _loaded(path)
    library.llama_log_set(quiet, ctypes.c_void_p(0))  # an engine's own, set in this process, may be gone
    options = library.llama_context_default_params()
    options.n_ctx, options.n_threads, options.n_threads_batch = 1024, 1, 1
    context = library.llama_init_from_model(model, options)
    size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    rows = []
    for start in range(0, len(prompt), 64):
        chunk = (library.llama_token * len(prompt[start : start + 64]))(*prompt[start : start + 64])
        assert library.llama_decode(context, library.llama_batch_get_one(chunk, len(chunk))) == 0
    for _ in range(count):
        rows.append(np.ctypeslib.as_array(library.llama_get_logits_ith(context, -1), shape=(size,)).copy())
        step = (library.llama_token * 1)(int(rows[-1].argmax()))
        assert library.llama_decode(context, library.llama_batch_get_one(step, 1)) == 0
    library.llama_free(context)
    return np.array(rows)


def plain_decode(path: Path, prompt: tuple[int, ...], count: int) -> list[int]:
    return [int(row.argmax()) for row in plain_logits(path, prompt, count)]
