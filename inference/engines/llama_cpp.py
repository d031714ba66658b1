"""The main engine: llama.cpp in worker processes, with our own continuous batching and sampler.

Lives here: what a GGUF file and the settings of llama.cpp become for `batched`. It never loads the library itself.

Threads by twos, then processes: on two cores one worker of two threads made 954 tokens/s of 16 streams where two
workers of one thread made 716 (see `inference.isolation.child_environment` for how threads wait).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from inference.engines.batched import BatchedEngine, open_batched_engine
from inference.hardware import available_ram
from inference.modelfile import check_gguf
from inference.orders import WorkerSettings


@asynccontextmanager
async def open_llama_engine(
    model: Path,
    *,
    workers: int,
    threads: int = 1,
    slots: int = 8,
    context: int = 2048,
    window: int = 64,
    pin: bool = False,
    hang_s: float | None = None,
    gpu_layers: int = 0,
    vram_bytes: int = 0,
    draft: bool = True,
) -> AsyncIterator[BatchedEngine]:
    """Start `workers` processes with the GGUF `model`, each with `slots` jobs at once and `context` tokens for each.

    A job is paused while its reader is `window` tokens behind; a busy worker that is silent for `hang_s` seconds
    (None: 8, or more for a slow model) is ended and restarted. `pin` ties worker i to core i: for a machine that does
    nothing else. `gpu_layers` of the model go to the GPU (-1: all), if the library was built for one; `vram_bytes` is
    what all workers have there. `draft`: what a lone stream says next is guessed from what it has said (see
    `inference.drafting`).
    Raises ModelFileInvalid with the reason, NodeMisconfigured if a number is absurd or does not fit into memory.
    Must be opened on a thread that lives as long as the engine (the kernel ends workers with it).
    """
    settings = WorkerSettings(
        parent=os.getpid(),
        model=_checked(model),
        slots=slots,
        context=context,
        threads=threads,
        window=window,
        memory_bytes=(available_ram() + vram_bytes) // max(1, workers),
        core=-1,
        gpu_layers=gpu_layers,
        draft=draft,
    )
    async with open_batched_engine(settings, workers=workers, pin=pin, hang_s=hang_s) as engine:
        yield engine


def _checked(model: Path) -> str:
    """The absolute path: the worker sees the file alone, not the folder we stand in."""
    check_gguf(model)
    return str(model.resolve())
