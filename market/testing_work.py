"""Doubles for engines and meters of work that is no token stream, and the kits that real ones run."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from market.errors import EncodingInvalid, OctoError, RequestInvalid
from market.ports import EngineInfo, EngineLoad, Made, Meter, WorkEngine, WorkJob
from market.task import TaskId
from market.work import EmbedInput, EmbedRequest, Work, WorkRequest


class HashEmbedder:
    """Embeds: a vector of 8 floats made of the text's hash. `fail_after` pieces it fails with `failure`."""

    works = frozenset((Work.EMBED,))

    def __init__(
        self, *, delay_s: float = 0.0, fail_after: int | None = None, failure: OctoError | None = None
    ) -> None:
        self.info = EngineInfo(name="hash-embedder/1", context=100_000, slots=4)
        self._delay_s = delay_s
        self._fail_after = fail_after
        self._failure = failure
        self._running = 0

    async def make(self, job: WorkJob) -> AsyncGenerator[Made]:
        if not isinstance(job.request, EmbedRequest):
            raise RequestInvalid("this engine embeds and nothing else.")
        self._running += 1
        try:
            for number, text in enumerate(job.request.inputs):
                await asyncio.sleep(self._delay_s)
                if number == self._fail_after and self._failure is not None:
                    raise self._failure
                done = (number + 1) * 100 // len(job.request.inputs)
                yield Made(pieces=(hashlib.sha256(_bytes_of(text)).digest(),), progress=done)
            yield Made(progress=100, finish="stop")
        finally:
            self._running -= 1

    def load(self) -> EngineLoad:
        return EngineLoad(running=self._running, waiting=0)


class ByteMeter:
    """A unit in is a byte of text, a unit out a vector of 32 bytes."""

    def units_in(self, request: WorkRequest, blob: bytes) -> int:
        if not isinstance(request, EmbedRequest) or blob:
            raise RequestInvalid("this meter counts texts to embed.")
        return max(1, sum(len(_bytes_of(text)) for text in request.inputs))

    def units_out_limit(self, request: WorkRequest, blob: bytes) -> int:  # noqa: ARG002 - the port's shape
        assert isinstance(request, EmbedRequest)
        return len(request.inputs)

    def units_of(self, request: WorkRequest, piece: bytes) -> int:  # noqa: ARG002
        if len(piece) != 32:
            raise EncodingInvalid("a vector has 32 bytes here.")
        return 1


def _bytes_of(given: EmbedInput) -> bytes:
    """A text's bytes; of token ids, one for each."""
    return given.encode() if isinstance(given, str) else bytes(token % 256 for token in given)


async def check_work_engine(
    engine: WorkEngine, meter: Meter, request: WorkRequest, *, blob: bytes = b"", wrong: WorkRequest
) -> Sequence[bytes]:
    """Run every rule of the port with a request that the engine can do, and a `wrong` one that it cannot.

    Returns the pieces. Raises AssertionError naming the rule.
    """
    limit = meter.units_out_limit(request, blob)
    assert meter.units_in(request, blob) >= 1 <= limit, "a task counts for something"
    made = [item async for item in engine.make(_job(request, blob, limit))]
    pieces = [piece for item in made for piece in item.pieces]
    assert made[-1].finish in ("stop", "length"), "the last item says why it ended"
    assert all(not item.finish for item in made[:-1]), "only the last item does"
    assert [item.progress for item in made] == sorted(item.progress for item in made), "progress never falls"
    assert 0 < sum(meter.units_of(request, piece) for piece in pieces) <= limit, "no more comes than was agreed"
    again = [item async for item in engine.make(_job(request, blob, limit))]
    assert [piece for item in again for piece in item.pieces] == pieces, "the same request gives the same pieces"
    try:
        async with aclosing(engine.make(_job(wrong, b"", 1_000_000))) as stream:
            await anext(stream)
    except RequestInvalid:
        pass
    else:
        raise AssertionError("what it cannot do is RequestInvalid")
    async with aclosing(engine.make(_job(request, blob, limit))) as stream:
        await anext(stream)
    async with asyncio.timeout(10):
        while engine.load().running:  # noqa: ASYNC110 - an engine's load has no event
            await asyncio.sleep(0.01)
    return pieces


def _job(request: WorkRequest, blob: bytes, max_units: int) -> WorkJob:
    return WorkJob(task=TaskId(bytes(32)), request=request, blob=blob, max_units=max_units)


class OneMeter:
    """`market.ports.Meters` with one meter for every model."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    async def meter(self, model: str, work: Work) -> Meter:  # noqa: ARG002 - the port's shape
        return self._meter
