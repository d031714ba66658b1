"""Our engine as `octo-node start` opens it where no setting says otherwise."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from inference.engines.batched import BatchedEngine
from inference.engines.llama_cpp import open_llama_engine
from node.measurements import setup_for
from node.settings import EngineSettings


def open_ours(
    model: Path, *, streams: int, context: int, workers: int | None = None
) -> AbstractAsyncContextManager[BatchedEngine]:
    """With a slot for each of so many streams. `workers`: as the setting of that name."""
    settings = EngineSettings(workers=workers)
    setup = setup_for(settings, None, model="", cores=len(os.sched_getaffinity(0)))
    slots = -(-streams // setup.workers)
    return open_llama_engine(model, workers=setup.workers, threads=setup.threads, slots=slots, context=context)
