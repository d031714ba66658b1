"""One job's pieces on their way from its worker to its reader.

Lives here: the pieces that nobody has read yet, counted by the meter and cut at what was agreed. Knows no process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from market.errors import EngineFailed, OctoError
from market.ports import Made, Meter, WorkJob


class WorkStream:
    """`worker` is who has the job, None while it waits."""

    def __init__(self, number: int, job: WorkJob, encoded: bytes, meter: Meter, *, unread_limit_bytes: int) -> None:
        self.number = number
        self.job = job
        self.encoded = encoded
        self.worker: object | None = None
        self.ended = False
        self.begun = False
        """There were pieces: another worker could not go on behind them."""
        self.late = False
        """Its deadline has passed: it may not wait again."""
        self.deaths = 0
        """How many workers ended under it."""
        self._meter = meter
        self._unread_limit_bytes = unread_limit_bytes
        self._pieces: list[bytes] = []
        self._unread_bytes = 0
        self._units = 0
        self._progress = 0
        self._finish: Literal["", "stop", "length"] = ""
        self._error: OctoError | None = None
        self._news = asyncio.Event()

    @property
    def size_bytes(self) -> int:
        return len(self.encoded) + len(self.job.blob)

    def deliver(self, pieces: Sequence[bytes], progress: int, finish: Literal["", "stop", "length"]) -> bool:
        """Take in what the worker made. False if it is more than was agreed: the rest is cut off, and all is over.

        Raises EncodingInvalid for a piece that is none.
        """
        for piece in pieces:
            units = self._meter.units_of(self.job.request, piece)
            if self._units + units > self.job.max_units:
                self._end("length")
                return False
            self._units += units
            self._unread_bytes += len(piece)
            self.begun = True
            self._pieces.append(piece)
        if self._unread_bytes > self._unread_limit_bytes:
            self.fail(EngineFailed(f"{self._unread_bytes} bytes of results were not read.", next_step="Read faster."))
            return False
        self._progress = max(self._progress, min(progress, 100))
        if finish:
            self._end(finish)
        self._news.set()
        return True

    def fail(self, error: OctoError) -> None:
        self._error = error
        self.ended = True
        self._news.set()

    async def take(self) -> Made:
        """All that is there, waiting for something; then the end, or the error."""
        while not (self.ended or self._news.is_set()):
            await self._news.wait()
        self._news.clear()
        if self._error is not None and not self._pieces:
            raise self._error
        pieces, self._pieces, self._unread_bytes = tuple(self._pieces), [], 0
        return Made(pieces=pieces, progress=self._progress, finish="" if self._error else self._finish)

    def _end(self, finish: Literal["stop", "length"]) -> None:
        self._finish = finish
        self._progress = 100
        self.ended = True
        self._news.set()
