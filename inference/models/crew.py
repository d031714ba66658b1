"""The workers of one pull: each takes a segment, asks its source for it, and hashes leaf by leaf.

Lives here: streams of ranges and of single blocks, and what their failures mean. Who may work is `standing`'s business,
who does what `board`'s, what is on disk `partial`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Protocol, TypeVar

import structlog

from inference.models.board import Board, Segment
from inference.models.partial import Partial
from inference.models.progress import Meter
from inference.models.standing import Crowd, Patience, Standing, Way, checked_block
from inference.models.unixfs import Leaf
from market.errors import BlockInvalid, ContentUnavailable, DiskFull, NodeMisconfigured, OctoError

_log = structlog.get_logger()

_SOURCES_AT_WORK = 8
_STREAMS = 3
"""At least so many in all: while one hashes and writes, another receives. A fourth gained nothing on two cores. With
one for each of three sources they were 1.1 times as fast as one source with three; with two for each, 0.95 times."""
_BLOCKS_IN_FLIGHT = 16
_BLOCKS_LIMIT_BYTES = 24 * 1024 * 1024
"""A block is in memory whole, a range only in pieces of 2 MiB."""
_IDLE_S = 0.05
_SAVE_EVERY_S = 2.0
_SAVE_EVERY_BYTES = 256 * 1024 * 1024
"""The disk writes while the net brings more; one long sync at the end would be time added."""

Doubt = Callable[[Leaf], Awaitable[None]]
"""Called for a leaf that did not match. Returns if the sender is to blame, raises if the leaf table was wrong."""
T = TypeVar("T")


class InThread(Protocol):
    """Runs blocking work; a caller that is cancelled waits for its end."""

    async def __call__(self, work: Callable[..., T], *arguments: object) -> T: ...


class Crew:
    """Works on one partial file with all sources of a crowd."""

    def __init__(
        self,
        root: str,
        partial: Partial,
        crowd: Crowd,
        meter: Meter,
        *,
        patience: Patience,
        in_thread: InThread,
        doubt: Doubt,
    ) -> None:
        self._root = root
        self._partial = partial
        self._crowd = crowd
        self._meter = meter
        self._patience = patience
        self._in_thread = in_thread
        self._doubt = doubt
        self._board = Board(partial.leaves, partial.done)
        self._clock = crowd.clock
        self._workers: Counter[Standing] = Counter()
        self._unsaved = 0
        self._saving: asyncio.Task[None] | None = None

    async def work(self) -> None:
        """Until nothing is missing or nobody is left. Raises DiskFull, NodeMisconfigured, and what `doubt` raises."""
        tasks: set[asyncio.Task[None]] = set()
        saver = asyncio.create_task(self._save_now_and_then())
        try:
            while not self._partial.whole:
                for standing in self._next_workers():
                    self._workers[standing] += 1
                    tasks.add(asyncio.create_task(self._worker(standing)))
                if not tasks:
                    return
                done, tasks = await asyncio.wait(tasks, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # DiskFull, or a bug: both end the pull
        finally:
            for task in (*tasks, saver):
                task.cancel()
            await asyncio.gather(*tasks, saver, *([self._saving] if self._saving else []), return_exceptions=True)

    def _next_workers(self) -> list[Standing]:
        """Who starts another stream: those at work, up to their share; then whoever is next in line.

        A source that fails or waits makes room for the next one, so that eight bad ones in front stop nothing.
        """
        live, now = self._crowd.live, self._clock()
        at_work = [s for s in live if self._workers[s]]
        good = sum(1 for s in at_work if not s.strikes and now >= s.paused_until)
        at_work += [s for s in live if not self._workers[s]][: max(0, _SOURCES_AT_WORK - good)]
        self._board.streams = -(-_STREAMS // max(1, len(at_work)))
        return [s for s in at_work for _ in range(self._board.streams - self._workers[s])]

    async def _worker(self, standing: Standing) -> None:
        while self._crowd.is_live(standing) and not self._partial.whole:
            now = self._clock()
            if now < standing.paused_until:
                await asyncio.sleep(standing.paused_until - now)
                continue
            speeds: dict[Hashable, float] = {other: other.speed(now) for other in self._crowd.live}
            segment = self._board.take(standing, standing.speed(now), now, speeds=speeds)
            if segment is None:
                await asyncio.sleep(_IDLE_S)
                continue
            self._crowd.started(standing)
            way = standing.way
            try:
                await (self._ranges if way is Way.RANGES else self._blocks)(standing, segment)
            except (DiskFull, NodeMisconfigured):  # our own disk
                raise
            except OctoError as error:
                self._judge(standing, way, error)
            finally:
                self._board.end(segment)

    def _judge(self, standing: Standing, way: Way, error: OctoError) -> None:
        """Ranges that never worked may mean that a source has only blocks; it is a failure if those fail too."""
        lied = isinstance(error, BlockInvalid) or getattr(error, "retry_after_s", None) is not None
        if lied or standing.proven:
            self._crowd.failed(standing, error)
        elif way is Way.RANGES:
            standing.way = Way.BLOCKS
        else:
            standing.way = Way.RANGES
            self._crowd.failed(standing, error)

    # ---- ranges ----------------------------------------------------------------------------------

    async def _ranges(self, standing: Standing, segment: Segment) -> None:
        """One range request. Raises BlockInvalid for a lie, ContentUnavailable for a failure."""
        leaves, done = self._partial.leaves, self._partial.done
        first, last = leaves[segment.numbers[0]], leaves[segment.numbers[-1]]
        length = last.offset + last.length - first.offset
        spare, told = bytearray(), Told(self._root, standing.name)
        async with aclosing(standing.source.read_range(self._root, first.offset, length)) as pieces, told:
            deadline = self._clock() + self._patience.leaf_timeout_s
            while segment.numbers and not all(done[number] for number in segment.numbers):
                piece = await self._piece(pieces, deadline, standing)
                numbers = _within(segment.numbers, leaves, len(spare) + len(piece))
                good, bad = await self._in_thread(take_piece, self._partial, numbers, spare, piece, told)
                for number in numbers[:good]:
                    if segment.numbers and segment.numbers[0] == number:  # else another took it over meanwhile
                        segment.numbers.popleft()
                if good:
                    segment.since = self._clock()
                    deadline = segment.since + self._patience.leaf_timeout_s
                    self._count(standing, [leaves[number] for number in numbers[:good]])
                if bad is not None:
                    await self._doubt(leaves[bad])
                    raise BlockInvalid(
                        f"{standing.name} sent wrong bytes at offset {leaves[bad].offset} of {self._root}."
                    )

    async def _piece(
        self, pieces: AsyncGenerator[bytes | memoryview], deadline: float, standing: Standing
    ) -> memoryview:
        try:
            async with asyncio.timeout(deadline - self._clock()):
                return memoryview(await anext(pieces))
        except StopAsyncIteration:
            raise ContentUnavailable(f"{standing.name} ended {self._root} early.") from None
        except TimeoutError:
            raise self._too_slow(standing) from None

    # ---- blocks ----------------------------------------------------------------------------------

    async def _blocks(self, standing: Standing, segment: Segment) -> None:
        """Leaf by leaf, many in flight. Raises as `_ranges`."""
        largest = max(self._partial.leaves[number].length for number in segment.numbers) or 1
        window = _BLOCKS_LIMIT_BYTES // (largest * sum(self._workers.values()))
        window = max(1, min(_BLOCKS_IN_FLIGHT // self._board.streams, window))
        async with Told(self._root, standing.name) as told:
            tasks = [asyncio.create_task(self._some_blocks(standing, segment, told)) for _ in range(window)]
            try:
                for ended in asyncio.as_completed(tasks):
                    await ended
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _some_blocks(self, standing: Standing, segment: Segment, told: Told) -> None:
        while segment.numbers and self._crowd.is_live(standing):
            number = segment.numbers.popleft()
            if self._partial.done[number]:
                continue
            segment.flying.add(number)  # `board` sees to it if it does not arrive
            leaf = self._partial.leaves[number]
            try:
                async with asyncio.timeout(self._patience.leaf_timeout_s):
                    block = await checked_block(standing.source, leaf.cid)
            except TimeoutError:
                raise self._too_slow(standing) from None
            if not await self._in_thread(_accept, self._partial, number, leaf.cut(block), told):
                await self._doubt(leaf)
                raise BlockInvalid(f"the leaf at offset {leaf.offset} of {self._root} is not what its tree says.")
            segment.flying.discard(number)
            segment.since = self._clock()
            self._count(standing, [leaf])

    # ---- both ------------------------------------------------------------------------------------

    def _count(self, standing: Standing, leaves: Sequence[Leaf]) -> None:
        moved = sum(leaf.length for leaf in leaves)
        self._crowd.delivered(standing, moved)
        self._meter.moved(moved, self._partial.done_bytes)
        self._unsaved += moved
        if self._unsaved >= _SAVE_EVERY_BYTES and (self._saving is None or self._saving.done()):
            self._saving = asyncio.create_task(self._save())

    def _too_slow(self, standing: Standing) -> ContentUnavailable:
        return ContentUnavailable(f"{standing.name} needs over {self._patience.leaf_timeout_s:g} s for a block.")

    async def _save(self) -> None:
        self._unsaved = 0
        with contextlib.suppress(OctoError):  # a full disk is told by whoever writes data
            await self._in_thread(self._partial.save)

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            await self._save()


class Told:
    """One line in the log for what one request brought. `lengths` grows in the thread that writes the leaves: a worker
    that is cancelled because the file is whole may have written the last of them."""

    def __init__(self, root: str, name: str) -> None:
        self.lengths: list[int] = []
        self._root = root
        self._name = name

    async def __aenter__(self) -> Told:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.lengths:
            blocks, size = len(self.lengths), sum(self.lengths)
            _log.info("blocks_verified", cid=self._root, **{"from": self._name}, blocks=blocks, bytes=size)


def _within(numbers: Sequence[int], leaves: Sequence[Leaf], length: int) -> list[int]:
    """The first leaves that fit into `length` bytes, and the one that begins in them."""
    some: list[int] = []
    for number in islice(numbers, len(numbers)):
        some.append(number)
        length -= leaves[number].length
        if length < 0:
            break
    return some


def _accept(partial: Partial, number: int, data: bytes | bytearray | memoryview, told: Told) -> bool:
    """Blocking. Write leaf `number` if `data` hashes to it, and tell of it."""
    if not partial.accept(number, data):
        return False
    told.lengths.append(len(data))
    return True


def take_piece(
    partial: Partial, numbers: Sequence[int], spare: bytearray, piece: memoryview, told: Told
) -> tuple[int, int | None]:
    """Blocking. Write the leaves `numbers` of which `spare` and then `piece` are the bytes; what is left of an
    unfinished leaf goes into `spare`. (how many were right, the number of the one that was not)."""
    at = good = 0
    for number in numbers:
        wanted = partial.leaves[number].length - len(spare)
        if len(piece) - at < wanted:
            spare += piece[at:]
            break
        data: bytes | bytearray | memoryview = piece[at : at + wanted]
        if spare:
            spare += data
            data = bytes(spare)
            spare.clear()
        if not _accept(partial, number, data, told):
            return good, number
        at, good = at + wanted, good + 1
    return good, None
