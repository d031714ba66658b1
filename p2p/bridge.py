"""The one place where asyncio and trio meet.

asyncio owns the process; trio runs in one thread of its own, started by `run_trio`. Two kinds of traffic cross:

- calls (`Bridge.in_trio`, `Bridge.in_asyncio`): a result, an error and a cancellation cross; about 100 us.
- queues (`ToTrio`, `ToAsyncio`): token streams. The sleeping side is woken once for everything that has
  gathered meanwhile, and a busy side is not woken at all, so that a message costs a few us, not a round trip.

Knows nothing of networks.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import structlog
import trio

T = TypeVar("T")

_log = structlog.get_logger()
_STOP_LIMIT_S = 10.0


class TrioStopped(Exception):
    """The trio thread is not running (any more): what was asked of it may or may not have happened."""


class QueueClosed(Exception):
    """Nobody will take from this queue."""


class Bridge:
    """One run of trio, as both sides hold it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, token: trio.lowlevel.TrioToken, nursery: trio.Nursery) -> None:
        self._loop = loop
        self._token = token
        self._nursery = nursery
        self._calls: set[asyncio.Future[Any]] = set()

    async def hold(self, work: Callable[..., Awaitable[object]]) -> Any:
        """trio: start a task that outlives the cancellation of `main`, and wait for what it reports as started.

        For what must still be there while `main` cleans up. It is cancelled when `main` has ended.
        """
        return await self._nursery.start(work)

    def post_to_trio(self, fn: Callable[..., object], *args: object) -> None:
        """Run a plain function in trio soon; raises TrioStopped. From any thread."""
        try:
            self._token.run_sync_soon(fn, *args)
        except trio.RunFinishedError:
            raise TrioStopped from None

    def post_to_asyncio(self, fn: Callable[..., object], *args: object) -> None:
        """Run a plain function in asyncio soon, in the order of posting. Lost if the loop is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(fn, *args)

    async def in_trio(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        """From asyncio: run `fn` in trio. Cancelling us cancels it, without waiting for it to unwind.

        Raises what `fn` raises, or TrioStopped.
        """
        answer: asyncio.Future[T] = self._loop.create_future()
        scope = trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    result = await fn(*args)
                    self.post_to_asyncio(_succeed, answer, result)
            except trio.Cancelled:  # not ours: the whole run is ending
                self.post_to_asyncio(_fail, answer, TrioStopped())
                raise
            except Exception as error:  # noqa: BLE001 - it crosses to who asked
                self.post_to_asyncio(_fail, answer, error)

        self._calls.add(answer)
        try:
            self.post_to_trio(self._nursery.start_soon, run)
            return await answer
        except asyncio.CancelledError:
            with suppress(TrioStopped):
                self.post_to_trio(scope.cancel)
            raise
        finally:
            self._calls.discard(answer)

    async def in_asyncio(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        """From trio: run `fn` in asyncio. Cancelling us cancels it. Raises what `fn` raises."""

        async def call() -> T:
            return await fn(*args)

        done = trio.Event()
        future = asyncio.run_coroutine_threadsafe(call(), self._loop)

        def wake(_: object) -> None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(done.set)

        future.add_done_callback(wake)
        try:
            await done.wait()
        except trio.Cancelled:
            future.cancel()
            raise
        return future.result()

    def abandon_calls(self) -> None:
        """asyncio side, once trio has ended: whoever still waits for an answer gets TrioStopped."""
        for answer in tuple(self._calls):
            _fail(answer, TrioStopped())


class ToTrio(Generic[T]):
    """asyncio puts, trio takes. Bounded by weight: who puts first asks `ready()`, which waits while it is full."""

    def __init__(self, bridge: Bridge, *, limit: int) -> None:
        self._bridge = bridge
        self._limit = limit
        self._lock = threading.Lock()
        self._items: list[T] = []
        self._weight = 0
        self._closed = False
        self._taker: trio.Event | None = None
        self._putters: deque[asyncio.Future[None]] = deque()

    async def ready(self) -> None:
        """asyncio: returns when there is room; raises QueueClosed."""
        while True:
            with self._lock:
                if self._closed:
                    raise QueueClosed
                if self._weight < self._limit:
                    return
                room = asyncio.get_running_loop().create_future()
                self._putters.append(room)
            await room

    def put(self, item: T, weight: int) -> None:
        """asyncio: never waits, so that numbering and queueing are one step; raises QueueClosed."""
        with self._lock:
            if self._closed:
                raise QueueClosed
            self._items.append(item)
            self._weight += weight
            taker, self._taker = self._taker, None
        if taker is not None:
            try:
                self._bridge.post_to_trio(taker.set)
            except TrioStopped:
                raise QueueClosed from None

    @property
    def is_full(self) -> bool:
        return self._weight >= self._limit

    async def take_all(self) -> list[T]:
        """trio: everything that was put, at least one item; an empty list once the queue is closed."""
        while True:
            with self._lock:
                if self._items or self._closed:
                    items, self._items, self._weight = self._items, [], 0
                    putters, self._putters = self._putters, deque()
                    break
                event = self._taker = trio.Event()
            await event.wait()
        if putters:
            self._bridge.post_to_asyncio(_release, putters)
        return items

    def close(self) -> None:
        """From either side: what was put is dropped unless taken at once, putters get QueueClosed."""
        with self._lock:
            self._closed = True
            taker, self._taker = self._taker, None
            putters, self._putters = self._putters, deque()
        self._bridge.post_to_asyncio(_release, putters)
        if taker is not None:
            with suppress(TrioStopped):
                self._bridge.post_to_trio(taker.set)


class ToAsyncio(Generic[T]):
    """trio puts, a plain function takes in asyncio. While asyncio is more than `limit` behind, `put` waits."""

    def __init__(self, bridge: Bridge, *, limit: int) -> None:
        self._bridge = bridge
        self._limit = limit
        self._lock = threading.Lock()
        self._items: list[T] = []
        self._weight = 0
        self._is_scheduled = False
        self._room: trio.Event | None = None
        self._receiver: Callable[[list[T]], None] | None = None

    async def put(self, items: Sequence[T], weight: int) -> None:
        """trio: hand over; waits afterwards while the other side is too far behind."""
        room = self._put(items, weight)
        if room is not None:
            await room.wait()

    def put_last(self, item: T) -> None:
        """trio: hand over a last item without waiting for room."""
        self._put((item,), 0)

    def _put(self, items: Sequence[T], weight: int) -> trio.Event | None:
        with self._lock:
            self._items.extend(items)
            self._weight += weight
            must_wake = not self._is_scheduled and self._receiver is not None
            self._is_scheduled |= must_wake
            if weight and self._weight > self._limit and self._room is None:
                self._room = trio.Event()
            room = self._room
        if must_wake:
            self._bridge.post_to_asyncio(self._drain)
        return room

    def attach(self, receiver: Callable[[list[T]], None]) -> None:
        """asyncio: from now on `receiver` gets the items, beginning with those that already wait."""
        with self._lock:
            self._receiver = receiver
            self._is_scheduled = True
        self._drain()

    def _drain(self) -> None:
        with self._lock:
            items, self._items, self._weight = self._items, [], 0
            self._is_scheduled = False
            room, self._room = self._room, None
            receiver = self._receiver
        if room is not None:
            with suppress(TrioStopped):
                self._bridge.post_to_trio(room.set)
        if items and receiver is not None:
            receiver(items)


async def run_trio(main: Callable[[Bridge], Awaitable[None]]) -> None:
    """From asyncio: run `main` in trio, in a thread of its own, until it ends; raises what it raises.

    Cancelling us cancels `main` and waits for the thread, at most 10 s: a socket that never closes must
    not keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()
    lock = threading.Lock()
    run: dict[str, Any] = {}
    stopping = threading.Event()

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            token = trio.lowlevel.current_trio_token()
            bridge = Bridge(loop, token, nursery)
            with trio.CancelScope() as scope:
                with lock:
                    run.update(token=token, scope=scope, bridge=bridge)
                if not stopping.is_set():
                    await main(bridge)
            nursery.cancel_scope.cancel()

    def thread() -> None:
        error: BaseException | None = None
        try:
            trio.run(body)
        except BaseException as raised:  # noqa: BLE001 - it crosses to asyncio
            error = raised
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_succeed, ended, error)

    def stop() -> None:
        stopping.set()
        with lock, suppress(KeyError, trio.RunFinishedError):
            run["token"].run_sync_soon(run["scope"].cancel)

    threading.Thread(target=thread, name="octo-trio", daemon=True).start()
    try:
        error = await asyncio.shield(ended)
    except asyncio.CancelledError:
        stop()
        _, late = await asyncio.wait({ended}, timeout=_STOP_LIMIT_S)
        if late:
            _log.warning("p2p.trio_thread_does_not_end", waited_s=_STOP_LIMIT_S)
        raise
    finally:
        if "bridge" in run:
            run["bridge"].abandon_calls()
    if error is not None:
        raise error


def _succeed(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _release(putters: deque[asyncio.Future[None]]) -> None:
    for putter in putters:
        _succeed(putter, None)
