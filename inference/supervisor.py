"""The node's side of one engine worker: the streams of the jobs that it runs.

Lives here: what a worker is told and what is made of its words, which are checked: a model file may have taken it
over. Must not know: the process's lives (`inference.child_process`), which worker a job should go to, llama.cpp, the
network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import structlog

from inference.child_process import Child
from inference.frames import Frame
from inference.isolation import child_command
from inference.orders import DIALECT, Order, WorkerFacts, WorkerSettings, pack_tokens
from inference.prefix import KnownBlocks, block_keys, scope_key
from inference.restarting import silence_limit_s
from inference.sampler import LOGPROBS_LIMIT, read_logprobs
from inference.scheduler import CHUNK
from market.errors import EncodingInvalid, EngineFailed, OctoError, RequestInvalid
from market.ports import Generated, Job, TokenLogprobs
from market.values import to_plain

_LEAST_LOAD_S: Final = 20.0
_FINISHES: Final = ("", "stop", "length", "error", "refused")

log = structlog.get_logger()


class JobStream:
    """One job's tokens on their way from its worker to its reader. It may change workers: a job that lost its
    slot goes on where it was, under a new number, and its tokens are the same."""

    def __init__(self, number: int, job: Job, *, grammar: str = "") -> None:
        self.number = number
        self.job = job
        self.grammar = grammar
        """GBNF, checked."""
        self.scope = scope_key(job.scope)
        self.blocks = block_keys(self.scope, job.prompt)
        self.worker: Worker | None = None
        self.ended = False
        self.generated: list[int] = []
        """All tokens so far: what another worker would need to go on."""
        self.deaths = 0
        """How many workers ended under it."""
        self.read = 0
        self.told = 0
        """How many read tokens the worker knows of."""
        self._logprobs: list[TokenLogprobs] = []
        self._cached = 0
        self._finish: Literal["", "stop", "length"] = ""
        self._error: OctoError | None = None
        self._news = asyncio.Event()

    @property
    def unread(self) -> int:
        return len(self.generated) - self.read

    def deliver(
        self,
        token: int,
        finish: Literal["", "stop", "length"],
        *,
        cached: int = 0,
        logprobs: TokenLogprobs | None = None,
    ) -> None:
        if not self.generated:
            self._cached = cached
        if token >= 0:
            self.generated.append(token)
            if logprobs is not None:
                self._logprobs.append(logprobs)
        self._finish = finish
        self.ended = bool(finish)
        self._news.set()

    def fail(self, error: OctoError) -> None:
        self._error = error
        self.ended = True
        self._news.set()

    async def take(self) -> Generated:
        """All tokens that are there, waiting for the first; then the end, or the error."""
        while not (self.unread or self.ended):
            self._news.clear()
            await self._news.wait()
        if self._error is not None and not self.unread:
            raise self._error
        tokens = tuple(self.generated[self.read :])
        logprobs, self._logprobs = tuple(self._logprobs), []
        cached = 0 if self.read else self._cached
        self.read += len(tokens)
        return Generated(tokens=tokens, finish="" if self._error else self._finish, logprobs=logprobs, cached=cached)

    def order(self) -> Order:
        """What a worker must know to start the job, or to go on with it."""
        job = self.job
        return Order(
            prompt=pack_tokens(job.prompt),
            sampling=job.sampling,
            max_tokens=job.max_tokens,
            end_tokens=tuple(sorted(job.end_tokens)),
            priority=job.priority,
            generated=pack_tokens(self.generated),
            read=self.read,
            scope=self.scope,
            logprobs=-1 if job.logprobs is None else job.logprobs,
            grammar=self.grammar,
        )


class Worker:
    """One worker and the jobs that it has. Implements `inference.child_process.Owner`. `run` is its whole story;
    everything else is called while that runs. `hang_s` without a word while it is busy counts as hung; None: what its
    own speed says (`inference.restarting.silence_limit_s`)."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        hang_s: float | None = None,
        on_change: Callable[[], None],
        on_lost: Callable[[JobStream, OctoError], None] = lambda stream, error: stream.fail(error),
        command: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._hang_s = hang_s
        self._on_change = on_change
        self._on_lost = on_lost
        self._child = Child(
            DIALECT,
            settings,
            self,
            command=command or child_command("inference.worker"),
            least_load_s=_LEAST_LOAD_S if hang_s is None else hang_s,
        )
        self.run, self.kill, self.started = self._child.run, self._child.kill, self._child.started
        self.streams: dict[int, JobStream] = {}
        self.blocks = self._no_blocks()
        """What its lanes hold of prompts, roughly."""

    @property
    def pid(self) -> int | None:
        return self._child.pid

    @property
    def ready(self) -> bool:
        return self._child.ready

    @property
    def broken(self) -> OctoError | None:
        return self._child.broken

    @property
    def facts(self) -> WorkerFacts | None:
        return self._child.facts

    @property
    def silence_limit_s(self) -> float:
        """How long it may say nothing while it is busy."""
        if self._hang_s is not None:
            return self._hang_s
        return silence_limit_s(self.facts.chunk_s if self.facts is not None else 0.0)

    def assign(self, stream: JobStream) -> None:
        """Run a job, or go on with it; the worker has a free slot."""
        self._child.send(["run", stream.number, to_plain(Order, stream.order())])
        self.streams[stream.number] = stream
        stream.worker = self
        stream.told = stream.read
        self.blocks.note(stream.blocks)

    def acknowledge(self, stream: JobStream) -> None:
        """Tell the worker what was read, a quarter of a window at a time: it never has to stop for a steady reader."""
        if not stream.ended and stream.read - stream.told >= max(1, self._settings.window // 4):
            stream.told = stream.read
            self._child.send(["read", stream.number, stream.read])

    def cancel(self, stream: JobStream) -> None:
        """Nobody reads this job any more; its slot is free at once, since the worker obeys frames in order."""
        if self.streams.pop(stream.number, None) is not None:
            self._child.send(["cancel", stream.number])

    def busy(self) -> bool:
        return bool(self.streams)

    def up(self) -> None:
        assert self.facts is not None, "it said so"
        log.info("worker_ready", pid=self.pid, engine=self.facts.engine, isolation=self.facts.isolation)
        self._on_change()

    def down(self, error: OctoError) -> None:
        lost, self.streams = self.streams, {}
        self.blocks = self._no_blocks()
        for stream in lost.values():
            stream.worker = None
            self._on_lost(stream, EngineFailed(error.message, next_step="Try again: the worker is being restarted."))
        log.warning("worker_lost", reason=error.message, jobs=len(lost), failures=self._child.failures)
        self._on_change()

    def hear(self, frame: Frame) -> None:
        match frame.message:
            case ["step", list(emissions)]:
                for emission in emissions:
                    self._deliver(*emission)
                if any(emission[2] for emission in emissions):
                    self._on_change()
            case _:
                raise EncodingInvalid("unknown frame.")

    def _deliver(self, job: int, token: int, finish: Any, *more: Any) -> None:
        error, cached, logprobs = more
        stream = self.streams.get(job)
        if stream is None:  # cancelled while this was on its way
            return
        if not -1 <= token < self._vocabulary or finish not in _FINISHES or stream.unread > self._settings.window:
            raise EncodingInvalid("a token, or an end, that cannot be.")
        if not 0 <= cached <= len(stream.job.prompt):
            raise EncodingInvalid("more tokens from the cache than the prompt has.")
        likelihoods = self._logprobs(stream.job, logprobs) if token >= 0 else None
        if finish:
            del self.streams[job]
        if finish == "error":
            stream.fail(EngineFailed(str(error)[:500]))
        elif finish == "refused":
            stream.fail(RequestInvalid(str(error)[:500]))
        else:
            stream.deliver(token, finish, cached=cached, logprobs=likelihoods)

    def _logprobs(self, job: Job, data: bytes) -> TokenLogprobs | None:
        """Raises ValueError for what is no answer to what the job asked."""
        if job.logprobs is None:
            return None
        own, top = read_logprobs(data)
        if len(top) != min(job.logprobs, LOGPROBS_LIMIT) or not all(0 <= at < self._vocabulary for at, _ in top):
            raise ValueError("other log probabilities than were asked for")
        return TokenLogprobs(logprob=own, top=top)

    @property
    def _vocabulary(self) -> int:
        return self.facts.vocabulary if self.facts is not None else 0

    def _no_blocks(self) -> KnownBlocks:
        return KnownBlocks(self._settings.slots * self._settings.context // CHUNK)
