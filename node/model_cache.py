"""Models in memory, loaded when the first task asks and unloaded when another needs the room.

Lives here: the life of each loaded model, who waits for one, what failed and when it is tried again. Which model goes
is `inference.residency`'s to say; what a model is, `node.serving`'s. A model is opened and closed by one task of its
own, all on this thread: the kernel ends workers with the thread that started them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from inference.residency import PATIENCE_S, Resident, Wish, next_step
from inference.restarting import pause_s
from market.errors import EngineFailed, NodeMisconfigured, OctoError
from market.parts import Serving
from node.figures import size_words

RETRY_FIRST_S: Final = 5.0
RETRY_LIMIT_S: Final = 600.0
RETRY_PRIORITY: Final = 1000
"""Behind every task."""
_WEIGH_AGAIN_S: Final = 10.0

Open = Callable[[], AbstractAsyncContextManager[Serving]]
Weigh = Callable[[Serving], Awaitable[int | None]]
"""What a loaded model takes in memory; None if nobody can say."""

log = structlog.get_logger()


class Listener(Protocol):
    """Who keeps the offers."""

    def loaded(self, model: str, serving: Serving, size_bytes: int) -> None:
        """For the first time, again, or again after it failed."""

    def unloaded(self, model: str, size_bytes: int) -> None:
        """`size_bytes` is the most that it was seen to take."""

    def failed(self, model: str, error: OctoError) -> None:
        """It cannot be loaded now; it is tried again by itself."""


@dataclass(slots=True)
class CacheCounts:
    """Tasks that found their model loaded, or not; models loaded, unloaded for others, and not loaded for a fault."""

    hits: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0
    failures: int = 0


@dataclass(eq=False, slots=True)
class _Waiter:
    priority: int
    since: float
    ready: asyncio.Future[Serving]


@dataclass(slots=True)
class _Entry:
    """A model that may be loaded. `life` is its task while it is in memory, or on its way in or out; `size_bytes` the
    most that it was `measured` to take, or else what it is expected to."""

    model: str
    open: Open
    size_bytes: int
    pinned: bool
    measured: bool
    serving: Serving | None = None
    life: asyncio.Task[None] | None = None
    leaving: bool = False
    users: int = 0
    used_at: float = 0.0
    weighed_at: float = 0.0
    waiters: list[_Waiter] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    error: OctoError | None = None
    failures: int = 0
    retry: asyncio.TimerHandle | None = None
    retry_since: float | None = None


class ModelCache:
    """`budget` gives the bytes for all models together, told what the loaded ones take; `weigh` what one takes."""

    def __init__(
        self,
        *,
        budget: Callable[[int], int],
        weigh: Weigh,
        listener: Listener,
        retry_first_s: float = RETRY_FIRST_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.counts = CacheCounts()
        self._budget = budget
        self._weigh = weigh
        self._listener = listener
        self._retry_first_s = retry_first_s
        self._patience_s = patience_s
        self._entries: dict[str, _Entry] = {}
        self._clock = asyncio.get_running_loop().time
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def add(
        self, model: str, open_model: Open, *, size_bytes: int, measured: bool = False, pinned: bool = False
    ) -> None:
        """A model that may be loaded from now on, with what it is expected to take, or was measured to."""
        self._entries[model] = _Entry(model, open_model, size_bytes, pinned, measured)

    def is_warm(self, model: str) -> bool:
        entry = self._entries.get(model)
        return entry is not None and entry.serving is not None and not entry.leaving

    def failing(self) -> Mapping[str, OctoError]:
        """Those that could not be loaded when it was last tried, and why."""
        return {entry.model: entry.error for entry in self._entries.values() if entry.error is not None}

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._entries.values() if entry.serving is not None)

    @asynccontextmanager
    async def use(self, model: str, priority: int = 0) -> AsyncIterator[Serving]:
        """The model, loaded and kept loaded for the length of the block. Many who come at once load it once.

        A lower `priority` is loaded first. Raises what loading raised; EngineFailed if it does not fit beside those
        that stay, or failed a moment ago.
        """
        entry = self._entries[model]
        if self.is_warm(model):
            self.counts.hits += 1
        else:
            self.counts.misses += 1
        serving = await self._enter(entry, priority)
        try:
            yield serving
        finally:
            self._leave(entry)

    async def load(self, model: str, priority: int = 0) -> Serving:
        """As a first task would, without one."""
        entry = self._entries[model]
        serving = await self._enter(entry, priority)
        self._leave(entry)
        return serving

    async def aclose(self) -> None:
        """Everything is unloaded; who waits is told so."""
        self._closed = True
        for entry in self._entries.values():
            self._fail_waiters(entry, EngineFailed("the node is stopping."))
            if entry.retry is not None:
                entry.retry.cancel()
        if self._timer is not None:
            self._timer.cancel()
        lives = [entry.life for entry in self._entries.values() if entry.life is not None]
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)

    # ---- tasks come and go ----

    async def _enter(self, entry: _Entry, priority: int) -> Serving:
        if self._closed:
            raise EngineFailed("the node is stopping.")
        if entry.error is not None:
            raise _again(entry.error)
        if entry.serving is not None and not entry.leaving:
            self._seat(entry)
            return entry.serving
        waiter = _Waiter(priority, self._clock(), asyncio.get_running_loop().create_future())
        entry.waiters.append(waiter)
        self._look()
        try:
            return await waiter.ready
        except asyncio.CancelledError:
            if waiter in entry.waiters:
                entry.waiters.remove(waiter)
            elif not waiter.ready.cancelled() and waiter.ready.exception() is None:
                self._leave(entry)  # it had been given its seat already
            raise

    def _seat(self, entry: _Entry) -> None:
        entry.users += 1
        entry.used_at = self._clock()

    def _leave(self, entry: _Entry) -> None:
        entry.users -= 1
        entry.used_at = self._clock()
        if entry.users == 0:
            entry.news.set()
            self._look()

    def _fail_waiters(self, entry: _Entry, error: OctoError) -> None:
        waiters, entry.waiters = entry.waiters, []
        for waiter in waiters:
            if not waiter.ready.done():
                waiter.ready.set_exception(_again(error))

    # ---- who is in memory ----

    def _look(self, *, grown: bool = False) -> None:
        """Do what can be done now for those who wait; and, if something has `grown`, for the budget."""
        wishes = [wish for entry in self._entries.values() if (wish := _wish(entry)) is not None]
        if self._closed or not (wishes or grown):
            return
        residents = [_resident(entry) for entry in self._entries.values() if entry.life is not None]
        held = sum(resident.size_bytes for resident in residents if not resident.arriving)
        budget = self._budget(held)
        step = next_step(residents, wishes, budget_bytes=budget, now=self._clock(), patience_s=self._patience_s)
        for model in step.load:
            entry = self._entries[model]
            entry.retry_since = None
            entry.life = asyncio.create_task(self._live(entry), name=f"model {model}")
        for model in (*step.unload, *step.drain):
            entry = self._entries[model]
            self.counts.evictions += 1
            entry.leaving = True
            entry.news.set()
            log.info("model_makes_room", model=model, size_bytes=entry.size_bytes, busy=entry.users)
        for model, most in step.refuse:
            entry = self._entries[model]
            self._failed(
                entry,
                NodeMisconfigured(
                    f"the model needs {size_words(entry.size_bytes)} of memory, and {size_words(most)} can be freed.",
                    next_step="Raise engine.memory, or serve a smaller model.",
                ),
            )
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(step.again_s, self._look) if step.again_s else None

    async def _live(self, entry: _Entry) -> None:
        """One stay in memory, from the first byte read to the last worker gone."""
        try:
            async with entry.open() as serving:
                await self._arrived(entry, serving)
                while not entry.leaving or entry.users:
                    await entry.news.wait()
                    entry.news.clear()
                    if self._clock() - entry.weighed_at > _WEIGH_AGAIN_S:
                        await self._weighed(entry, serving)
                        self._look(grown=True)
        except Exception as caught:  # noqa: BLE001 - whatever it is, the other models still serve
            error = caught if isinstance(caught, OctoError) else EngineFailed(f"it failed with {caught!r:.200}.")
            if entry.serving is None:
                self._failed(entry, error)
            else:
                log.warning("model_not_closed_well", model=entry.model, why=error.message)
        finally:
            was_loaded = entry.serving is not None
            entry.serving, entry.life, entry.leaving = None, None, False
            if was_loaded:
                self._listener.unloaded(entry.model, entry.size_bytes)
                log.info("model_unloaded", model=entry.model)
            self._look()

    async def _arrived(self, entry: _Entry, serving: Serving) -> None:
        await self._weighed(entry, serving)
        self.counts.loads += 1
        entry.serving, entry.failures, entry.error = serving, 0, None
        entry.used_at = self._clock()
        self._listener.loaded(entry.model, serving, entry.size_bytes)
        waiters, entry.waiters = entry.waiters, []
        for waiter in waiters:
            if not waiter.ready.done():
                self._seat(entry)
                waiter.ready.set_result(serving)
        self._look(grown=True)

    async def _weighed(self, entry: _Entry, serving: Serving) -> None:
        entry.weighed_at = self._clock()
        size_bytes = await self._weigh(serving)
        if size_bytes is None:
            return
        entry.size_bytes = max(entry.size_bytes, size_bytes) if entry.measured else size_bytes
        entry.measured = True

    def _failed(self, entry: _Entry, error: OctoError) -> None:
        """Nobody is asked to wait for it until it has been tried again; later each time."""
        wait_s = pause_s(entry.failures, first_s=self._retry_first_s, limit_s=RETRY_LIMIT_S)
        entry.failures += 1
        entry.error = error
        entry.retry_since = None
        self.counts.failures += 1
        self._fail_waiters(entry, error)
        log.warning("model_not_loaded", model=entry.model, why=error.message, next_step=error.next_step, again_s=wait_s)
        self._listener.failed(entry.model, error)
        if not self._closed:
            entry.retry = asyncio.get_running_loop().call_later(wait_s, self._try_again, entry)

    def _try_again(self, entry: _Entry) -> None:
        entry.retry = None
        entry.retry_since = self._clock()
        self._look()


def _wish(entry: _Entry) -> Wish | None:
    if entry.life is not None:
        return None
    since = [waiter.since for waiter in entry.waiters]
    priorities = [waiter.priority for waiter in entry.waiters]
    if entry.retry_since is not None:
        since.append(entry.retry_since)
        priorities.append(RETRY_PRIORITY)
    if not since:
        return None
    return Wish(model=entry.model, size_bytes=entry.size_bytes, priority=min(priorities), since=min(since))


def _resident(entry: _Entry) -> Resident:
    return Resident(
        model=entry.model,
        size_bytes=entry.size_bytes,
        users=entry.users,
        used_at=entry.used_at,
        pinned=entry.pinned,
        arriving=entry.serving is None,
        leaving=entry.leaving,
    )


def _again(error: OctoError) -> OctoError:
    """A new one for each who waits: a traceback belongs to one task."""
    return type(error)(error.message, next_step=error.next_step)
