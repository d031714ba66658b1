"""Text by worker processes with our own continuous batching and sampler, whichever library computes the logits.

Lives here: which worker a job goes to, who waits, what a job may ask for. Must not know: the market around it, or any
library: a model file is a stranger's bytes, and only workers touch them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from inference.admission import Holder, Waiting, victim
from inference.grammar import as_gbnf
from inference.orders import WorkerFacts, WorkerSettings
from inference.sampler import LOGPROBS_LIMIT
from inference.scheduler import SLOTS_LIMIT
from inference.supervisor import JobStream, Worker
from market.errors import EngineFailed, NodeMisconfigured, OctoError, PromptTooLong, RequestInvalid
from market.ports import EngineInfo, EngineLoad, Generated, Job

FEATURES: Final = frozenset({"prefix", "logprobs", "bias", "preempt"})
"""What every library gets from the scheduler and the sampler around it; grammars are the library's own."""
WAITING_LIMIT: Final = 1024
"""Jobs without a slot; with 131,072 tokens each at most, half a gigabyte of prompts."""
_END_TOKENS_LIMIT: Final = 256
_DEATHS_LIMIT: Final = 2
"""A job under which so many workers ended is not given another: it may be the cause."""
_AFFINITY: Final = 2
"""A worker that holds a prompt's beginning gets the job although it has so many jobs more than the least busy one."""


@dataclass(slots=True)
class PrefixFacts:
    """Since the engine opened: jobs that ran, those that found some of their prompt prefilled, and the tokens."""

    jobs: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


class BatchedEngine:
    """A `market.ports.Engine`. `isolation` is the word the Offer publishes."""

    def __init__(self, workers: Sequence[Worker], facts: WorkerFacts, *, context: int, slots: int) -> None:
        self._workers = workers
        self._slots = slots
        self._waiting: Waiting[JobStream] = Waiting()
        self._numbers = 0
        self.vocabulary = facts.vocabulary
        self.isolation = facts.isolation
        self.prefix_facts = PrefixFacts()
        features = FEATURES | ({"grammar"} if facts.grammars else frozenset())
        self.info = EngineInfo(name=facts.engine, context=context, slots=slots * len(workers), features=features)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        return tuple(worker.pid for worker in self._workers if worker.pid is not None)

    def load(self) -> EngineLoad:
        return EngineLoad(running=sum(len(worker.streams) for worker in self._workers), waiting=len(self._waiting))

    async def generate(self, job: Job) -> AsyncGenerator[Generated]:
        """See the port. Raises PromptTooLong if no token would fit behind the prompt; RequestInvalid for a grammar that
        is malformed, EngineFailed for one that cannot be satisfied or is too slow; EngineFailed if too many jobs wait,
        or when the job's deadline passes before it is admitted.
        """
        self._check(job)
        grammar = as_gbnf(job.grammar) if job.grammar else ""
        stream = JobStream(self._next_number(), job, grammar=grammar)
        self._make_room(job)
        self._wait(stream)
        loop = asyncio.get_running_loop()
        expiry = loop.call_later(job.deadline_s, self._expire, stream) if job.deadline_s else None
        self.dispatch()
        first = True
        try:
            while True:
                generated = await stream.take()
                if first:
                    self._count(job, generated)
                first = False
                if generated.tokens or generated.finish:
                    yield generated
                if generated.finish:
                    return
                if stream.worker is not None:
                    stream.worker.acknowledge(stream)
        finally:
            if expiry is not None:
                expiry.cancel()
            self._retire(stream)

    def dispatch(self) -> None:
        """Give waiting jobs to workers. If no worker can come up, they fail instead of waiting."""
        while len(self._waiting):
            if all(worker.broken for worker in self._workers):
                reason = next(worker.broken.message for worker in self._workers if worker.broken)
                for stream in self._waiting.drain():
                    stream.fail(EngineFailed(f"no engine worker is running: {reason}"))
                return
            worker = self._roomiest(self._waiting.peek())
            loser = None if worker else self._loser(self._waiting.peek().job)
            if worker is None and loser is None:
                return
            stream = self._waiting.pop()
            if loser is not None:
                worker = self._preempt(loser)
            assert worker is not None
            worker.assign(stream)

    def lost(self, stream: JobStream, error: OctoError) -> None:
        """A worker ended under this job: it goes on with another, unless it may be what ends workers."""
        stream.deaths += 1
        if stream.deaths >= _DEATHS_LIMIT or stream.job.grammar:
            stream.fail(error)
        else:
            self._wait(stream, again=True)

    def _roomiest(self, stream: JobStream) -> Worker | None:
        """Of the workers with a free slot the least busy, or one nearly as idle that has seen the prompt."""
        free = [worker for worker in self._workers if worker.ready and len(worker.streams) < self._slots]
        if not free:
            return None
        least = min(len(worker.streams) for worker in free)
        near = [worker for worker in free if len(worker.streams) <= least + _AFFINITY]
        return max(near, key=lambda worker: (worker.blocks.count(stream.blocks), -len(worker.streams)))

    def _loser(self, newcomer: Job) -> JobStream | None:
        """The job that must give up its slot for `newcomer`, to go on later where it was.

        So a realtime job waits for one decode call, not for the end of batch work; and a client that came first
        with many jobs does not keep the others out.
        """
        running = [stream for worker in self._workers if worker.ready for stream in worker.streams.values()]
        at = victim(
            newcomer.priority,
            newcomer.client,
            [Holder(stream.job.priority, stream.job.client, len(stream.generated)) for stream in running],
        )
        return running[at] if at >= 0 else None

    def _preempt(self, loser: JobStream) -> Worker:
        """The loser waits again; the worker that has room for another now."""
        worker = loser.worker
        assert worker is not None, "it was running"
        worker.cancel(loser)
        loser.worker, loser.number = None, self._next_number()
        self._wait(loser, again=True)
        return worker

    def _wait(self, stream: JobStream, *, again: bool = False) -> None:
        job = stream.job
        cost = (len(job.prompt) + job.max_tokens) / max(1, job.weight)
        self._waiting.add(stream, priority=job.priority, client=job.client, cost=cost, again=again)

    def _make_room(self, job: Job) -> None:
        if len(self._waiting) < WAITING_LIMIT:
            return
        full = EngineFailed(f"{WAITING_LIMIT} jobs are waiting already.", next_step="Try again later.")
        shed = self._waiting.shed(job.priority, job.client)
        if shed is None:
            raise full
        shed.fail(full)

    def _expire(self, stream: JobStream) -> None:
        if stream.worker is None and not stream.ended and not stream.generated:
            self._waiting.discard(stream)
            stream.fail(
                EngineFailed(
                    f"the job waited {stream.job.deadline_s:g} s for a slot, and its deadline has passed.",
                    next_step="Try again later, or allow more time.",
                )
            )

    def _count(self, job: Job, first: Generated) -> None:
        facts = self.prefix_facts
        facts.jobs += 1
        facts.hits += first.cached > 0
        facts.prompt_tokens += len(job.prompt)
        facts.cached_tokens += first.cached

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _retire(self, stream: JobStream) -> None:
        if stream.worker is None:
            self._waiting.discard(stream)
        elif not stream.ended:
            stream.worker.cancel(stream)
        self.dispatch()

    def _check(self, job: Job) -> None:
        if not job.prompt:
            raise RequestInvalid("the prompt is empty.", param="messages")
        if job.grammar and "grammar" not in self.info.features:
            raise RequestInvalid("this model's engine has no grammars.", param="response_format")
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
        if job.logprobs is not None and not 0 <= job.logprobs <= LOGPROBS_LIMIT:
            raise RequestInvalid(f"top_logprobs must be 0 to {LOGPROBS_LIMIT}.", param="top_logprobs")


@asynccontextmanager
async def open_batched_engine(
    settings: WorkerSettings, *, workers: int, pin: bool = False, hang_s: float | None = None
) -> AsyncIterator[BatchedEngine]:
    """Start `workers` processes with these settings. A busy worker that is silent for `hang_s` seconds (None: 8, or
    more for a slow model) is ended and restarted; `pin` ties worker i to core i.

    Raises ModelFileInvalid with the reason, NodeMisconfigured if a number is absurd or does not fit into memory.
    Must be opened on a thread that lives as long as the engine (the kernel ends workers with it).
    """
    _check_settings(settings, workers)
    cores = sorted(os.sched_getaffinity(0))
    engine: BatchedEngine | None = None

    def on_change() -> None:
        if engine is not None:
            engine.dispatch()

    def on_lost(stream: JobStream, error: OctoError) -> None:
        assert engine is not None, "jobs come after the engine"
        engine.lost(stream, error)

    team = [
        Worker(
            replace(settings, core=cores[at % len(cores)] if pin else -1),
            hang_s=hang_s,
            on_change=on_change,
            on_lost=on_lost,
        )
        for at in range(workers)
    ]
    lives = [asyncio.create_task(worker.run(), name=f"engine worker {at}") for at, worker in enumerate(team)]
    try:
        await asyncio.gather(*(worker.started for worker in team))
        facts = team[0].facts
        assert facts is not None
        engine = BatchedEngine(team, facts, context=settings.context, slots=settings.slots)
        yield engine
    finally:
        for worker in team:
            worker.kill()
            worker.started.cancel()
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, *(worker.started for worker in team), return_exceptions=True)


def _check_settings(settings: WorkerSettings, workers: int) -> None:
    for name, number, limit in (
        ("workers", workers, 256),
        ("threads", settings.threads, 256),
        ("slots", settings.slots, SLOTS_LIMIT),
        ("context", settings.context, 1 << 20),
        ("window", settings.window, 1 << 16),
    ):
        if not 1 <= number <= limit:
            raise NodeMisconfigured(f"the engine's {name} is {number}.", next_step=f"Choose 1 to {limit}.")
