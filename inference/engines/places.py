"""A bounded number of jobs at a time; the others wait their turn, fairly, and not for ever.

Lives here: places, the queue before them, deadlines. Knows no server and no worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from inference.admission import Waiting
from market.errors import EngineFailed
from market.ports import EngineLoad, Job

WAITING_LIMIT: Final = 1024

_Turn = asyncio.Future[None]


class Places:
    """Order and sharing are those of `inference.admission`."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._running = 0
        self._waiting: Waiting[_Turn] = Waiting()

    def load(self) -> EngineLoad:
        return EngineLoad(running=self._running, waiting=len(self._waiting))

    @asynccontextmanager
    async def place(self, job: Job) -> AsyncIterator[None]:
        """Wait for a place and hold it. Raises EngineFailed if too many wait, or when the job's deadline passes."""
        if self._free and not len(self._waiting):
            self._take()
        else:
            await self._wait(job)
        try:
            yield
        finally:
            self._running -= 1
            self._free += 1
            self._next()

    async def _wait(self, job: Job) -> None:
        full = EngineFailed(f"{WAITING_LIMIT} jobs are waiting already.", next_step="Try again later.")
        if len(self._waiting) >= WAITING_LIMIT:
            shed = self._waiting.shed(job.priority, job.client)
            if shed is None:
                raise full
            _fail(shed, full)
        turn: _Turn = asyncio.get_running_loop().create_future()
        cost = (len(job.prompt) + job.max_tokens) / max(1, job.weight)
        self._waiting.add(turn, priority=job.priority, client=job.client, cost=cost)
        try:
            async with asyncio.timeout(job.deadline_s or None):
                await turn
        except BaseException as error:
            self._waiting.discard(turn)
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # it had just been given a place
                self._running -= 1
                self._free += 1
                self._next()
            if isinstance(error, TimeoutError):
                raise EngineFailed(
                    f"the job waited {job.deadline_s:g} s for a place, and its deadline has passed.",
                    next_step="Try again later, or allow more time.",
                ) from None
            raise

    def _next(self) -> None:
        while self._free and len(self._waiting):
            turn = self._waiting.pop()
            if not turn.done():
                self._take()
                turn.set_result(None)

    def _take(self) -> None:
        self._free -= 1
        self._running += 1


def _fail(turn: _Turn, error: EngineFailed) -> None:
    if not turn.done():
        turn.set_exception(error)
