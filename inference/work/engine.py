"""The node's side of an engine for work that is no token stream: which child runs a job, who waits, what comes back.

Lives here: `open_work_engine`, on which every such engine is built with a runner module and a meter. Must not know:
models, libraries, processes. It never loads a model itself, and checks all that a child says: a model file may have
taken it over.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import structlog

from inference.admission import Waiting
from inference.child_process import Child
from inference.devices import NO_CARDS, CardAccess
from inference.frames import Frame
from inference.isolation import child_command
from inference.work.orders import DIALECT, ChildSettings
from inference.work.stream import WorkStream
from market.errors import EncodingInvalid, EngineFailed, OctoError, RequestInvalid
from market.ports import EngineInfo, EngineLoad, Made, Meter, WorkJob
from market.work import BLOB_LIMIT_BYTES, REQUEST_LIMIT_BYTES, Work, encode_request, work_of

WAITING_LIMIT: Final = 4096
WAITING_LIMIT_BYTES: Final = 512 * 1024 * 1024
"""Of requests and blobs that have no slot."""
UNREAD_LIMIT_BYTES: Final = 160 * 1024 * 1024
"""Ten PNGs of 2048 x 2048 noise have 120 MB."""
_LONG_BYTES: Final = 16 * 1024
"""From here on a meter's work is done in a thread: 16 KiB of text take a tokenizer some 5 ms."""
_DEATHS_LIMIT: Final = 2
"""A job under which so many workers ended is not given another: it may be the cause."""


log = structlog.get_logger()


class _Worker:
    """A child and the jobs that it has. Implements `inference.child_process.Owner`."""

    def __init__(self, engine: SupervisedEngine, settings: ChildSettings, *, hang_s: float) -> None:
        self._engine = engine
        self._runner = settings.runner
        self.silence_limit_s = hang_s
        self.streams: dict[int, WorkStream] = {}
        command = child_command("inference.work.child")
        self.child = Child(DIALECT, settings, self, command=command, least_load_s=hang_s)

    def busy(self) -> bool:
        return bool(self.streams)

    def assign(self, stream: WorkStream) -> None:
        self.child.send(
            ["run", stream.number, stream.job.max_units, stream.job.priority], (stream.encoded, stream.job.blob)
        )
        self.streams[stream.number] = stream

    def cancel(self, stream: WorkStream) -> None:
        """Nobody waits for this job any more. Its slot is free at once: the child takes tasks as it can."""
        if self.streams.pop(stream.number, None) is not None:
            self.child.send(["cancel", stream.number])

    def up(self) -> None:
        facts = self.child.facts
        assert facts is not None, "it said so"
        log.info("work_child_ready", pid=self.child.pid, engine=facts.engine, isolation=facts.isolation)
        self._engine.dispatch()

    def down(self, error: OctoError) -> None:
        log.warning("work_child_lost", reason=error.message, runner=self._runner, failures=self.child.failures)
        lost, self.streams = self.streams, {}
        for stream in reversed(lost.values()):  # each goes to the head of its queue: the first comes last
            stream.worker = None
            self._engine.lost(
                stream, EngineFailed(error.message, next_step="Try again: the worker is being restarted.")
            )
        self._engine.dispatch()

    def hear(self, frame: Frame) -> None:
        match frame.message:
            case ["made", int(number), int(progress), ("" | "stop" | "length") as finish]:
                if stream := self.streams.get(number):  # else it was cancelled while this was on its way
                    self._made(stream, frame.parts, progress, finish)
            case ["refused", int(number), str(code), str(message), str(next_step)]:
                if stream := self.streams.pop(number, None):
                    kind = RequestInvalid if code == RequestInvalid.code else EngineFailed
                    stream.fail(kind(_one_line(message), next_step=_one_line(next_step)))
                    self._engine.dispatch()
            case _:
                raise EncodingInvalid("unknown frame.")

    def _made(
        self, stream: WorkStream, pieces: Sequence[bytes], progress: int, finish: Literal["", "stop", "length"]
    ) -> None:
        fits = stream.deliver(pieces, progress, finish)
        if not stream.ended:
            return
        if finish and fits:
            del self.streams[stream.number]
        else:
            self.cancel(stream)
        self._engine.dispatch()


class SupervisedEngine:
    """A `market.ports.WorkEngine`. `isolation` is the word the Offer publishes."""

    def __init__(self, works: frozenset[Work], meter: Meter, *, slots: int) -> None:
        self.works = works
        self.info = EngineInfo(name="", context=0, slots=0)
        self.isolation = ""
        self._meter = meter
        self._slots = slots
        self._workers: Sequence[_Worker] = ()
        self._waiting: Waiting[WorkStream] = Waiting()
        self._waiting_bytes = 0
        self._numbers = 0
        self._closed = False

    async def start(self, workers: Sequence[_Worker]) -> None:
        """Wait until every child is up. Raises what the first that does not come up says."""
        self._workers = workers
        await asyncio.gather(*(worker.child.started for worker in workers))
        facts = workers[0].child.facts
        assert facts is not None, "it has started"
        self.isolation = facts.isolation
        self.info = EngineInfo(name=facts.engine, context=facts.context, slots=self._slots * len(workers))

    @property
    def worker_pids(self) -> tuple[int, ...]:
        return tuple(worker.child.pid for worker in self._workers if worker.child.pid is not None)

    def close(self) -> None:
        """Every job that runs or waits ends with an error; so does each that comes later."""
        error = EngineFailed("the engine is closed.")
        self._closed = True
        streams = [stream for worker in self._workers for stream in worker.streams.values()]
        for stream in (*streams, *self._waiting.drain()):
            stream.fail(error)
        for worker in self._workers:
            worker.streams.clear()
        self._waiting_bytes = 0

    def load(self) -> EngineLoad:
        return EngineLoad(running=sum(len(worker.streams) for worker in self._workers), waiting=len(self._waiting))

    async def make(self, job: WorkJob) -> AsyncGenerator[Made]:
        """See the port."""
        encoded = await self._check(job)
        if self._closed:
            raise EngineFailed("the engine is closed.")
        self._numbers += 1
        stream = WorkStream(self._numbers, job, encoded, self._meter, unread_limit_bytes=UNREAD_LIMIT_BYTES)
        self._make_room(stream)
        self._wait(stream)
        expiry = None
        if job.deadline_s > 0:
            expiry = asyncio.get_running_loop().call_later(job.deadline_s, self._expire, stream)
        try:
            self.dispatch()
            while True:
                made = await stream.take()
                yield made
                if made.finish:
                    return
        finally:
            if expiry is not None:
                expiry.cancel()
            self._retire(stream)

    def dispatch(self) -> None:
        """Give waiting jobs to the least loaded children. If none can come up, they fail instead of waiting."""
        while len(self._waiting):
            if all(worker.child.broken for worker in self._workers):
                reason = next(worker.child.broken.message for worker in self._workers if worker.child.broken)
                for stream in self._waiting.drain():
                    self._waiting_bytes -= stream.size_bytes
                    stream.fail(EngineFailed(f"no engine worker is running: {reason}"))
                return
            worker = self._roomiest(self._waiting.peek())
            if worker is None:
                return
            stream = self._waiting.pop()
            self._waiting_bytes -= stream.size_bytes
            stream.worker = worker
            worker.assign(stream)

    def lost(self, stream: WorkStream, error: OctoError) -> None:
        """A worker ended under this job. If nobody has seen anything of it, it is begun again, once and by itself."""
        stream.deaths += 1
        if stream.deaths >= _DEATHS_LIMIT or stream.begun or stream.late:
            stream.fail(error)
        else:
            self._wait(stream, again=True)

    def _roomiest(self, stream: WorkStream) -> _Worker | None:
        """The least loaded child with room for it. A job under which one ended may be the cause: it has a child to
        itself, so that it ends no other job a second time."""
        slots = 1 if stream.deaths else self._slots
        free = [
            worker
            for worker in self._workers
            if worker.child.ready
            and len(worker.streams) < slots
            and not any(other.deaths for other in worker.streams.values())
        ]
        return min(free, key=lambda worker: len(worker.streams), default=None)

    async def _check(self, job: WorkJob) -> bytes:
        """The encoded request, once the meter has said that both are what they should be."""
        if work_of(job.request) not in self.works:
            raise RequestInvalid(
                f"this engine does not do {job.request.kind!r}.",
                next_step=f"It does {', '.join(sorted(self.works))}.",
                param="model",
            )
        if job.max_units < 1:
            raise RequestInvalid("max_units must be at least 1.", param="max_units")
        try:
            encoded = encode_request(job.request)
        except ValueError:
            raise RequestInvalid("the request holds half a character (a lone surrogate).", param="input") from None
        if len(encoded) > REQUEST_LIMIT_BYTES or len(job.blob) > BLOB_LIMIT_BYTES:
            raise RequestInvalid(
                f"the request has {len(encoded)} bytes and its blob {len(job.blob)}: {REQUEST_LIMIT_BYTES} and "
                f"{BLOB_LIMIT_BYTES} are the limits.",
                next_step="Send it in parts.",
            )
        if len(encoded) + len(job.blob) > _LONG_BYTES:
            await asyncio.to_thread(self._meter.units_in, job.request, job.blob)
        else:
            self._meter.units_in(job.request, job.blob)
        return encoded

    def _make_room(self, stream: WorkStream) -> None:
        job = stream.job
        full = EngineFailed(f"{len(self._waiting)} jobs are waiting already.", next_step="Try again later.")
        if self._waiting_bytes + stream.size_bytes > WAITING_LIMIT_BYTES:
            raise full
        if len(self._waiting) >= WAITING_LIMIT:
            shed = self._waiting.shed(job.priority, job.client)
            if shed is None:
                raise full
            self._waiting_bytes -= shed.size_bytes
            shed.fail(full)

    def _wait(self, stream: WorkStream, *, again: bool = False) -> None:
        job = stream.job
        self._waiting_bytes += stream.size_bytes
        cost = stream.size_bytes / max(1, job.weight)
        self._waiting.add(stream, priority=job.priority, client=job.client, cost=cost, again=again)

    def _retire(self, stream: WorkStream) -> None:
        worker = stream.worker
        if isinstance(worker, _Worker):
            worker.cancel(stream)
        elif not stream.ended:
            self._leave(stream)
        self.dispatch()

    def _leave(self, stream: WorkStream) -> None:
        self._waiting.discard(stream)
        self._waiting_bytes -= stream.size_bytes

    def _expire(self, stream: WorkStream) -> None:
        stream.late = True
        if stream.worker is None and not stream.ended:
            self._leave(stream)
            stream.fail(
                EngineFailed(
                    f"the job waited {stream.job.deadline_s:g} s for a slot, and its deadline has passed.",
                    next_step="Try again later, or allow more time.",
                )
            )


@asynccontextmanager
async def open_work_engine(
    runner: str,
    folder: Path,
    *,
    works: frozenset[Work],
    meter: Meter,
    options: Mapping[str, Any] | None = None,
    readable: Sequence[Path] = (),
    cards: CardAccess = NO_CARDS,
    workers: int = 1,
    slots: int = 8,
    threads: int = 1,
    memory_bytes: int,
    hang_s: float = 30.0,
) -> AsyncIterator[SupervisedEngine]:
    """An engine of `workers` children, each with `slots` jobs at once and so many `threads`.

    `runner` is a module with an `open_runner` (see `inference.work.runner`), to which `options` go: plain data.
    `memory_bytes` bounds a child's private memory, libraries and threads' stacks included. `cards` are what it may
    compute on beside the processor. `hang_s` is the longest that the runner is silent while it works.
    Must be opened on a thread that lives as long as the engine (the kernel ends children with it).
    Raises ModelFileInvalid, NodeMisconfigured, EngineFailed if a child does not come up.
    """
    settings = ChildSettings(
        parent=os.getpid(),
        runner=runner,
        folder=str(folder),
        readable=(*map(str, readable), *cards.readable),
        options=dict(options or {}),
        threads=threads,
        memory_bytes=memory_bytes,
        devices=cards.devices,
    )
    engine = SupervisedEngine(works, meter, slots=slots)
    children = [_Worker(engine, settings, hang_s=hang_s) for _ in range(workers)]
    lives = [asyncio.create_task(worker.child.run(), name=f"{runner} {at}") for at, worker in enumerate(children)]
    try:
        await engine.start(children)
        yield engine
    finally:
        engine.close()
        for life in lives:
            life.cancel()
        for worker in children:
            worker.child.started.cancel()
        await asyncio.gather(*lives, *(worker.child.started for worker in children), return_exceptions=True)


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text[:500])
