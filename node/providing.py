"""The provider's side of a node: the model in the store, the engine that runs it, what is served.

A model that cannot be had or loaded leaves the node up as a gateway only if the user did not ask to
provide; asked for, it is an error with its cause.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from inference.engines.llama_cpp import LlamaEngine, open_llama_engine
from inference.models.manifest import Manifest
from inference.models.store import Store
from inference.models.tokenizer import ModelTokenizer, load_tokenizer
from inference.speed import measure_speed
from market.errors import ContentUnavailable
from market.offer import ModelOffer
from market.ports import Engine
from market.seller import Served
from market.task import Mode
from node.settings import Settings

log = structlog.get_logger()


class Providing:
    """What this node serves; empty until a model is loaded."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}
        self.engine: Engine | None = None
        self.manifest: Manifest | None = None

    def served(self) -> Mapping[str, Served]:
        return self._served

    def offers(self) -> Sequence[ModelOffer]:
        return [served.model for served in self._served.values()]

    def slots(self) -> int:
        return self.engine.info.slots if self.engine else 0

    def isolation(self) -> str:
        return str(getattr(self.engine, "isolation", "none"))

    def serve(self, model: ModelOffer, engine: Engine, tokenizer: ModelTokenizer) -> None:
        self.engine = engine
        self._served[model.model] = Served(model, engine, tokenizer)


@asynccontextmanager
async def open_engine(settings: Settings, weights: Path) -> AsyncIterator[LlamaEngine]:
    import os

    workers = settings.engine.workers or len(os.sched_getaffinity(0))
    async with open_llama_engine(
        weights,
        workers=workers,
        threads=settings.engine.threads,
        slots=settings.engine.slots,
        context=settings.engine.context,
    ) as engine:
        yield engine
