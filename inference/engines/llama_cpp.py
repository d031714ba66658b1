"""The main engine: llama.cpp in worker processes, with our own continuous batching and sampler.

Lives here: which worker a job goes to, who waits, what a job may ask for. Must not know: the market around
it. It never loads the library itself: a model file is a stranger's bytes, and only workers touch them.

Processes, not threads: on two cores two workers with one thread each made 590 tokens/s where one worker with
two threads made 549, and 247 against 60 for a single stream.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from inference.frames import WorkerFacts, WorkerSettings
from inference.hardware import available_ram
from inference.modelfile import check_gguf
from inference.scheduler import SLOTS_LIMIT, Waiting
from inference.supervisor import JobStream, Worker
from market.errors import EngineFailed, NodeMisconfigured, PromptTooLong, RequestInvalid
from market.ports import EngineInfo, EngineLoad, Generated, Job

WAITING_LIMIT: Final = 1024
"""Jobs without a slot; with 131,072 tokens each at most, half a gigabyte of prompts."""
_END_TOKENS_LIMIT: Final = 256


class LlamaEngine:
    """A `market.ports.Engine`. `isolation` is the word the Offer publishes."""

    def __init__(self, workers: Sequence[Worker], facts: WorkerFacts, *, context: int, slots: int) -> None:
        self._workers = workers
        self._slots = slots
        self._waiting: Waiting[JobStream] = Waiting()
        self._numbers = 0
        self.vocabulary = facts.vocabulary
        self.isolation = facts.isolation
        self.info = EngineInfo(name=facts.engine, context=context, slots=slots * len(workers))

    @property
    def worker_pids(self) -> tuple[int, ...]:
        return tuple(worker.pid for worker in self._workers if worker.pid is not None)

    def load(self) -> EngineLoad:
        return EngineLoad(running=sum(len(worker.streams) for worker in self._workers), waiting=len(self._waiting))

    async def generate(self, job: Job) -> AsyncGenerator[Generated]:
        """See the port. Raises PromptTooLong if no token would fit behind the prompt."""
        self._check(job)
        self._numbers += 1
        stream = JobStream(self._numbers, job)
        self._waiting.add(stream, priority=job.priority)
        self.dispatch()
        try:
            while True:
                generated = await stream.take()
                if generated.tokens or generated.finish:
                    yield generated
                if generated.finish:
                    return
                if stream.worker is not None:
                    stream.worker.acknowledge(stream)
        finally:
            self._retire(stream)

    def dispatch(self) -> None:
        """Give waiting jobs to the least loaded workers. If no worker can come up, they fail instead of waiting."""
        while len(self._waiting):
            if all(worker.broken for worker in self._workers):
                reason = next(worker.broken.message for worker in self._workers if worker.broken)
                for stream in self._waiting.drain():
                    stream.fail(EngineFailed(f"no engine worker is running: {reason}"))
                return
            free = [worker for worker in self._workers if worker.ready and len(worker.streams) < self._slots]
            if not free:
                return
            min(free, key=lambda worker: len(worker.streams)).assign(self._waiting.pop())

    def _retire(self, stream: JobStream) -> None:
        if stream.worker is None:
            self._waiting.discard(stream)
        elif not stream.ended:
            stream.worker.cancel(stream)
        self.dispatch()

    def _check(self, job: Job) -> None:
        if not job.prompt:
            raise RequestInvalid("the prompt is empty.", param="messages")
        if len(job.prompt) >= self.info.context:
            raise PromptTooLong(
                f"the prompt has {len(job.prompt)} tokens; {self.info.context} is the context, answer included.",
                next_step="Shorten the messages, or choose an offer with a longer context.",
                param="messages",
            )
        if job.max_tokens < 1:
            raise RequestInvalid("max_tokens must be at least 1.", param="max_tokens")
        if not all(0 <= token < self.vocabulary for token in job.prompt):
            raise RequestInvalid("the prompt holds a token id that this model does not have.", param="messages")
        if not all(bias.token < self.vocabulary for bias in job.sampling.logit_bias):
            raise RequestInvalid("logit_bias names a token id that this model does not have.", param="logit_bias")
        if len(job.end_tokens) > _END_TOKENS_LIMIT:
            raise RequestInvalid(f"{len(job.end_tokens)} end tokens are over the limit of {_END_TOKENS_LIMIT}.")
        if len(self._waiting) >= WAITING_LIMIT:
            raise EngineFailed(f"{WAITING_LIMIT} jobs are waiting already.", next_step="Try again later.")


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
    hang_s: float = 20.0,
) -> AsyncIterator[LlamaEngine]:
    """Start `workers` processes with the GGUF `model`, each with `slots` jobs at once and `context` tokens for each.

    A job is paused while its reader is `window` tokens behind; a busy worker that is silent for `hang_s` seconds
    is ended and restarted. `pin` ties worker i to core i: for a machine that does nothing else.
    Raises ModelFileInvalid with the reason, NodeMisconfigured if a number is absurd or does not fit into memory.
    Must be opened on a thread that lives as long as the engine (the kernel ends workers with it).
    """
    _check_settings(workers=workers, threads=threads, slots=slots, context=context, window=window)
    path = _checked(model)
    cores = sorted(os.sched_getaffinity(0))
    share = available_ram() // workers
    engine: LlamaEngine | None = None

    def on_change() -> None:
        if engine is not None:
            engine.dispatch()

    team = [
        Worker(
            WorkerSettings(
                parent=os.getpid(),
                model=path,
                slots=slots,
                context=context,
                threads=threads,
                window=window,
                memory_bytes=share,
                core=cores[at % len(cores)] if pin else -1,
            ),
            hang_s=hang_s,
            on_change=on_change,
        )
        for at in range(workers)
    ]
    lives = [asyncio.create_task(worker.run(), name=f"engine worker {at}") for at, worker in enumerate(team)]
    try:
        await asyncio.gather(*(worker.started for worker in team))
        facts = team[0].facts
        assert facts is not None
        engine = LlamaEngine(team, facts, context=context, slots=slots)
        yield engine
    finally:
        for worker in team:
            worker.kill()
            worker.started.cancel()
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, *(worker.started for worker in team), return_exceptions=True)


def _checked(model: Path) -> str:
    """The absolute path: the worker sees the file alone, not the folder we stand in."""
    check_gguf(model)
    return str(model.resolve())


def _check_settings(*, workers: int, threads: int, slots: int, context: int, window: int) -> None:
    for name, number, limit in (
        ("workers", workers, 256),
        ("threads", threads, 256),
        ("slots", slots, SLOTS_LIMIT),
        ("context", context, 1 << 20),
        ("window", window, 1 << 16),
    ):
        if not 1 <= number <= limit:
            raise NodeMisconfigured(f"the engine's {name} is {number}.", next_step=f"Choose 1 to {limit}.")
