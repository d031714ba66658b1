"""The node's side of one engine worker: starts it, feeds it, watches it, starts it again.

Lives here: the process's lives and the streams of the jobs it runs. Must not know: which worker a job
should go to, llama.cpp, the network. What a worker says is checked: a model file may have taken it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Literal, TypeVar

import structlog

from inference.frames import FrameBuffer, Order, WorkerFacts, WorkerSettings, pack, pack_tokens
from inference.isolation import child_command, child_environment
from inference.prefix import KnownBlocks, block_keys, scope_key
from inference.restarting import LoadPatience, pause_s, silence_limit_s
from inference.sampler import LOGPROBS_LIMIT, read_logprobs
from inference.scheduler import CHUNK
from market.errors import EncodingInvalid, EngineFailed, ModelFileInvalid, NodeMisconfigured, OctoError, RequestInvalid
from market.ports import Generated, Job, TokenLogprobs
from market.values import from_plain, to_plain

RESTART_LIMIT_S: Final = 10.0
_LEAST_LOAD_S: Final = 20.0
_LAST_WORDS_S: Final = 1.0
_READ_BYTES: Final = 1 << 16
_FINISHES: Final = ("", "stop", "length", "error", "refused")

T = TypeVar("T")

log = structlog.get_logger()


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Short work that a cancellation may not cut in two: a process half started, or killed and not yet gone."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


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
    """One worker and its lives. `run` is its whole story; everything else is called while that runs. `hang_s` without
    a word while it is busy counts as hung; None: what its own speed says (`inference.restarting.silence_limit_s`)."""

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
        self._command = command or child_command("inference.worker")
        self._hang_s = hang_s
        self._on_change = on_change
        self._on_lost = on_lost
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._began_at = self._heard_at = 0.0
        self._patience = LoadPatience(_LEAST_LOAD_S if hang_s is None else hang_s)
        self._failures = 0
        """Starts since it last came up."""
        self.facts: WorkerFacts | None = None
        self.ready = False
        self.broken: OctoError | None = None
        """Why the latest start failed; None as long as it may come up."""
        self.streams: dict[int, JobStream] = {}
        self.blocks = self._no_blocks()
        """What its lanes hold of prompts, roughly."""
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self.ready else None

    def assign(self, stream: JobStream) -> None:
        """Run a job, or go on with it; the worker has a free slot."""
        if not self.streams:
            self._heard_at = asyncio.get_running_loop().time()
        self.streams[stream.number] = stream
        stream.worker = self
        stream.told = stream.read
        self.blocks.note(stream.blocks)
        self._send(["run", stream.number, to_plain(Order, stream.order())])

    def acknowledge(self, stream: JobStream) -> None:
        """Tell the worker what was read, a quarter of a window at a time: it never has to stop for a steady reader."""
        if not stream.ended and stream.read - stream.told >= max(1, self._settings.window // 4):
            stream.told = stream.read
            self._send(["read", stream.number, stream.read])

    def cancel(self, stream: JobStream) -> None:
        """Nobody reads this job any more; its slot is free at once, since the worker obeys frames in order."""
        if self.streams.pop(stream.number, None) is not None:
            self._send(["cancel", stream.number])

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def run(self) -> None:
        """Live, die, and live again, ever more slowly if it never comes up. A first start that fails is the last."""
        while True:
            try:
                await self._live()
                error: OctoError = EngineFailed("the engine's worker closed its stream.")
            except OctoError as caught:
                error = caught
            except OSError as caught:  # no memory, or no process, for another child
                error = EngineFailed(f"the engine's worker cannot be started: {caught.strerror}.")
            came_up, self.ready = self.ready, False
            lost, self.streams = self.streams, {}
            self.blocks = self._no_blocks()
            self._failures = 0 if came_up else self._failures + 1
            self.broken = None if came_up else error
            for stream in lost.values():
                stream.worker = None
                self._on_lost(
                    stream, EngineFailed(error.message, next_step="Try again: the worker is being restarted.")
                )
            if not self.started.done():
                self.started.set_exception(error)
                return
            log.warning("worker lost", reason=error.message, jobs=len(lost), failures=self._failures)
            self._on_change()
            await asyncio.sleep(pause_s(self._failures, first_s=0.05, limit_s=RESTART_LIMIT_S))

    async def _live(self) -> None:
        self._process = self._writer = None
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                await _to_its_end(self._spawn(theirs))
            reader, self._writer = await asyncio.open_unix_connection(sock=ours)
            self._writer.write(pack(to_plain(WorkerSettings, self._settings)))
            await self._listen(reader)
            with contextlib.suppress(TimeoutError):  # let it end by itself, to know how it did
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._wait()
        finally:
            self.kill()
            if self._writer is not None:
                self._writer.close()
            else:
                ours.close()
            status = await _to_its_end(self._wait())
        raise self._ended(status)

    async def _spawn(self, theirs: socket.socket) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=theirs.fileno(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=child_environment(self._settings.threads),
            start_new_session=True,  # Ctrl-C is for the node, which then ends its workers itself
        )

    async def _wait(self) -> int:
        return await self._process.wait() if self._process is not None else 0

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Hand on what the worker says until it stops speaking. Raises EngineFailed if it hangs or talks nonsense."""
        buffer = FrameBuffer()
        loop = asyncio.get_running_loop()
        self._began_at = self._heard_at = loop.time()
        while True:
            began_at, look_s = loop.time(), self.silence_limit_s / 4
            try:
                async with asyncio.timeout(look_s):
                    data = await reader.read(_READ_BYTES)
            except TimeoutError:
                # If this process stood still, what was said meanwhile is not read yet.
                self._heard_at += loop.time() - began_at - look_s
                self._check_alive(loop.time() - self._heard_at)
                continue
            except ConnectionError:
                return
            if not data:
                return
            self._heard_at = loop.time()
            try:
                for frame in buffer.feed(data):
                    self._hear(frame)
            except (EncodingInvalid, TypeError, ValueError):
                raise EngineFailed("the engine's worker sent a frame that makes no sense.") from None

    def _check_alive(self, silent_s: float) -> None:
        if not self.ready and silent_s > self._patience.limit_s(self._failures):
            raise EngineFailed(f"the model was not loaded after {silent_s:.0f} s.")
        if self.ready and self.streams and silent_s > self.silence_limit_s:
            raise EngineFailed(f"the engine's worker was silent for {silent_s:.1f} s and was ended.")

    def _hear(self, frame: Any) -> None:
        match frame:
            case ["step", list(emissions)]:
                for emission in emissions:
                    self._deliver(*emission)
                if any(emission[2] for emission in emissions):
                    self._on_change()
            case ["alive"]:
                pass
            case ["ready", facts] if not self.ready:
                self.facts = from_plain(WorkerFacts, facts)
                self.ready, self.broken = True, None
                self._patience.loaded(self._heard_at - self._began_at)
                if not self.started.done():
                    self.started.set_result(None)
                log.info("worker ready", pid=self.pid, engine=self.facts.engine, isolation=self.facts.isolation)
                self._on_change()
            case ["fail", str(code), str(message), str(next_step)] if not self.ready:
                kinds: dict[str, type[OctoError]] = {
                    ModelFileInvalid.code: ModelFileInvalid,
                    NodeMisconfigured.code: NodeMisconfigured,
                }
                raise kinds.get(code, EngineFailed)(message, next_step=next_step)
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
    def silence_limit_s(self) -> float:
        """How long it may say nothing while it is busy."""
        if self._hang_s is not None:
            return self._hang_s
        return silence_limit_s(self.facts.chunk_s if self.facts is not None else 0.0)

    @property
    def _vocabulary(self) -> int:
        return self.facts.vocabulary if self.facts is not None else 0

    def _no_blocks(self) -> KnownBlocks:
        return KnownBlocks(self._settings.slots * self._settings.context // CHUNK)

    def _send(self, message: list[Any]) -> None:
        # If the process has just died the write is lost; `run` then fails the job.
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack(message))

    def _ended(self, status: int) -> OctoError:
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        if self.ready:
            return EngineFailed(f"the engine's worker ended ({how}).")
        return ModelFileInvalid(
            f"the engine's worker ended while loading the model ({how}).",
            next_step="Pull the model again; if it is whole, there may be too little memory.",
        )
