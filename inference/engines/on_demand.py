"""An engine that is not there until it is used: it stands for a model on offer, and has it loaded by the first task.

Lives here: both ports of an engine in front of whoever loads, and what is known of an engine while it is not loaded.
Must not know: how a model is loaded, or which one goes for it.

A task waits here as it would for a slot: it is the seller's to say meanwhile that it is alive. A quote alone loads
nothing: it costs its asker nothing, and a flood of questions could otherwise empty the memory of what earns.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Generic, TypeVar

from market.errors import EngineFailed, OctoError
from market.ports import Engine, EngineInfo, EngineLoad, Generated, Job, Made, WorkEngine, WorkJob
from market.work import Work

E = TypeVar("E", Engine, WorkEngine)

Use = Callable[[int], AbstractAsyncContextManager[E]]
"""The engine, loaded and kept for the length of the block; waited for by priority. Raises OctoError if it cannot be."""


class _OnDemand(Generic[E]):
    """`info`, `isolation` and `leaves_host` are what the engine was when it was last loaded; `engine` is the one that
    is loaded now."""

    def __init__(self, use: Use[E], *, info: EngineInfo, isolation: str = "none", leaves_host: bool = False) -> None:
        self._use: Use[E] = use
        self._tasks = 0
        self.engine: E | None = None
        self.info = info
        self.isolation = isolation
        self.leaves_host = leaves_host

    def know(self, engine: E | None) -> None:
        """It is loaded now, or (None) not any more."""
        self.engine = engine
        if engine is not None:
            self.info = engine.info
            self.isolation = getattr(engine, "isolation", "none")
            self.leaves_host = getattr(engine, "leaves_host", False)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        return tuple(getattr(self.engine, "worker_pids", ()))

    def load(self) -> EngineLoad:
        running = self.engine.load().running if self.engine is not None else 0
        return EngineLoad(running=running, waiting=max(0, self._tasks - running))

    @asynccontextmanager
    async def _loaded(self, job: Job | WorkJob) -> AsyncIterator[tuple[E, float]]:
        """The engine, and what is left of the job's deadline."""
        promised = self.info.name
        loop = asyncio.get_running_loop()
        came = loop.time()
        self._tasks += 1
        try:
            async with AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout(job.deadline_s or None):
                        engine = await stack.enter_async_context(self._use(job.priority))
                except TimeoutError:
                    raise EngineFailed(
                        f"the job waited {job.deadline_s:g} s for its model to be loaded, and its deadline has passed.",
                        next_step="Try again later, or allow more time.",
                    ) from None
                except OctoError as error:
                    if type(error) is EngineFailed:
                        raise
                    raise EngineFailed(f"the model could not be loaded: {error.message}") from None
                if engine.info.name != promised:  # a quote names it, and a receipt would
                    raise EngineFailed("the model runs in another engine than was quoted.", next_step="Try again.")
                waited_s = loop.time() - came
                yield engine, max(0.001, job.deadline_s - waited_s) if job.deadline_s else 0.0
        finally:
            self._tasks -= 1


class OnDemandEngine(_OnDemand[Engine]):
    """A `market.ports.Engine`."""

    async def generate(self, job: Job) -> AsyncGenerator[Generated]:
        """See the port. Raises EngineFailed, too, if the model cannot be loaded, or not before the job's deadline."""
        async with (
            self._loaded(job) as (engine, deadline_s),
            aclosing(engine.generate(replace(job, deadline_s=deadline_s))) as stream,
        ):
            async for generated in stream:
                yield generated


class OnDemandWork(_OnDemand[WorkEngine]):
    """A `market.ports.WorkEngine`."""

    def __init__(
        self,
        use: Use[WorkEngine],
        *,
        works: frozenset[Work],
        info: EngineInfo,
        isolation: str = "none",
        leaves_host: bool = False,
    ) -> None:
        super().__init__(use, info=info, isolation=isolation, leaves_host=leaves_host)
        self.works = works

    async def make(self, job: WorkJob) -> AsyncGenerator[Made]:
        """See the port. Raises EngineFailed, too, if the model cannot be loaded, or not before the job's deadline."""
        async with (
            self._loaded(job) as (engine, deadline_s),
            aclosing(engine.make(replace(job, deadline_s=deadline_s))) as stream,
        ):
            async for made in stream:
                yield made
