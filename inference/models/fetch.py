"""The one verified, multi-source writer: bytes from anyone, a file only if every leaf hashes.

Lives here: who fetches which segment, whom to blame, when to stop. Inner nodes first (each hashed), then large
ranges of the file from all sources at once, each leaf hashed before it counts. A source that sends wrong bytes
is dropped at once and for good; one that fails thrice in a row is given up. Knows sources by their port only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

import structlog

from inference.models.cid import BLOCK_LIMIT_BYTES, RAW, Cid, check_block, parse_cid
from inference.models.partial import Partial, open_pull_lock
from inference.models.progress import OnProgress, Progress, quiet
from inference.models.store import Store
from inference.models.unixfs import Leaf
from inference.models.walk import TreeWalk
from market.errors import BlockInvalid, ContentError, ContentUnavailable, DiskFull, OctoError
from market.ports import ContentSource

_log = structlog.get_logger()

SEGMENT_BYTES = 16 * 1024 * 1024
STREAMS_PER_SOURCE = 2
"""Two ranges in flight hide a round trip; more gained nothing (464-608 MB/s with two, 341-516 with four)."""
LEAF_TIMEOUT_S = 60.0
"""1 MiB in a minute is 17 kB/s: below that a 100 MB model takes over an hour and a half."""
_STRIKES = 3
_STEAL_AFTER_S = 2.0
_SAVE_EVERY_S = 2.0


async def fetch_file(
    store: Store,
    root: str,
    sources: Sequence[ContentSource],
    *,
    size_bytes: int | None = None,
    public: bool = False,
    progress: OnProgress = quiet,
    leaf_timeout_s: float = LEAF_TIMEOUT_S,
) -> Path:
    """Bring a file into the store and return its path; what an earlier pull brought is kept.

    `size_bytes`: what the manifest says; another size is refused before anything is downloaded. A source
    that needs longer than `leaf_timeout_s` for a leaf of at most 2 MiB gets a strike.
    Raises ContentUnavailable if no source is left, BlockInvalid if the DAG itself is unsound, DiskFull.
    """
    parsed = parse_cid(root)
    async with open_pull_lock(store.parts, root):
        if not store.has(root):
            pull = _Pull(store, parsed, sources, progress, leaf_timeout_s)
            await pull.run(size_bytes, public)
        elif public:
            await store.set_public(root)
    return store.path_of(root)


async def fetch_block(cid: str, sources: Sequence[ContentSource]) -> bytes:
    """One block that hashes to `cid`, from the first source that has it. Raises ContentUnavailable."""
    return await _Sources(sources).block(parse_cid(cid))


class _Sources:
    """Who is still in the game, and why the others are not."""

    def __init__(self, sources: Sequence[ContentSource]) -> None:
        self.live = list(sources)
        self._strikes: dict[str, int] = {}
        self._reasons: dict[str, ContentError] = {}

    async def block(self, cid: Cid) -> bytes:
        for pause in (0.0, 0.5):  # a source that is busy for a moment gets a second chance
            await asyncio.sleep(pause)
            for source in list(self.live):
                try:
                    data = await source.block(str(cid))
                    if len(data) > BLOCK_LIMIT_BYTES:
                        raise BlockInvalid(f"{source.name} sent more than {BLOCK_LIMIT_BYTES} bytes as one block.")
                    check_block(cid, data)
                except BlockInvalid as error:
                    self.drop(source, cid, error)
                except ContentError as error:
                    self._reasons[source.name] = error
                else:
                    return data
        raise self.nobody(cid)

    def drop(self, source: ContentSource, cid: Cid, error: ContentError) -> None:
        self._reasons[source.name] = error
        if source in self.live:
            self.live.remove(source)
            _log.warning("content_source_dropped", cid=str(cid), source=source.name, code=error.code, why=error.message)

    def strike(self, source: ContentSource, cid: Cid, error: ContentError) -> float:
        """Count a failure that proves no lie; seconds to wait before the next try."""
        count = self._strikes[source.name] = self._strikes.get(source.name, 0) + 1
        if count >= _STRIKES:
            self.drop(source, cid, error)
        return 0.2 * 2.0**count

    def praise(self, source: ContentSource) -> None:
        self._strikes.pop(source.name, None)

    def nobody(self, cid: Cid) -> ContentUnavailable:
        said = "; ".join(f"{name}: {error.message}" for name, error in self._reasons.items())
        return ContentUnavailable(
            f"No source delivers {cid}. {said or 'There is no source at all.'}",
            next_step="Try again when a provider that has the model is online; what has arrived is kept.",
        )


class _Segment:
    """Neighbouring leaves that one request brings. `since` is when it last moved, on the loop's clock."""

    def __init__(self, numbers: Sequence[int], since: float = 0.0) -> None:
        self.numbers = deque(numbers)
        self.since = since


class _Pull:
    def __init__(
        self, store: Store, root: Cid, sources: Sequence[ContentSource], progress: OnProgress, leaf_timeout_s: float
    ) -> None:
        self._store = store
        self._root = root
        self._name = str(root)
        self._sources = _Sources(sources)
        self._progress = progress
        self._leaf_timeout_s = leaf_timeout_s
        self._queue: deque[_Segment] = deque()
        self._active: dict[_Segment, ContentSource] = {}

    async def run(self, size_bytes: int | None, public: bool) -> None:
        only: bytes | None = None
        if self._root.codec == RAW:
            only = await self._sources.block(self._root)
            leaves = [Leaf(0, len(only), self._root.digest)]
        else:
            leaves = await self._leaf_table(size_bytes)
        total = leaves[-1].offset + leaves[-1].length
        if size_bytes not in (None, total):
            raise BlockInvalid(f"{self._name} holds {total} bytes where {size_bytes} were announced.")
        partial = await self._store.in_thread(Partial, self._store.parts, self._name, leaves, total)
        try:
            self._progress(Progress(what=self._name, done_bytes=partial.done_bytes, total_bytes=total))
            try:
                if only is None:
                    self._queue.extend(_segments(partial.missing(), leaves))
                    await self._work(partial)
                else:
                    await self._store.in_thread(partial.accept, 0, only)
            finally:
                with contextlib.suppress(DiskFull):  # it cannot hide why we stopped
                    await self._store.in_thread(partial.save)
            if not partial.whole:
                raise self._sources.nobody(self._root)
            await self._store.in_thread(lambda: self._store.commit(self._name, partial, public=public))
        finally:
            partial.close()
        _log.info("model_file_whole", cid=self._name, bytes=total, blocks=len(leaves))

    # ---- inner nodes -----------------------------------------------------------------------------

    async def _leaf_table(self, size_bytes: int | None) -> list[Leaf]:
        known = await self._store.in_thread(self._store.known_nodes, self._name)
        walk = TreeWalk(self._root, size_bytes=size_bytes)
        while wanted := walk.wanted():
            for start in range(0, len(wanted), 8):
                some = wanted[start : start + 8]
                blocks = await asyncio.gather(*(self._node(cid, known) for cid in some))
                for cid, block in zip(some, blocks, strict=True):
                    await self._store.in_thread(walk.give, cid, block)  # 1,024 links take 10 ms to parse
        await self._store.in_thread(self._store.save_nodes, self._name, walk.size_bytes, walk.nodes)
        return walk.leaves()

    async def _node(self, cid: Cid, known: Mapping[Cid, bytes]) -> bytes:
        return known[cid] if cid in known else await self._sources.block(cid)

    # ---- leaves ----------------------------------------------------------------------------------

    async def _work(self, partial: Partial) -> None:
        """Workers for every source until nothing is missing or nobody is left."""
        workers = [
            asyncio.create_task(self._worker(source, partial))
            for source in self._sources.live
            for _ in range(STREAMS_PER_SOURCE)
        ]
        saver = asyncio.create_task(self._save_now_and_then(partial))
        try:
            pending: set[asyncio.Task[None]] = set(workers)
            while pending and not partial.whole:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # DiskFull, or a bug: both end the pull
        finally:
            for task in (*workers, saver):
                task.cancel()
            await asyncio.gather(*workers, saver, return_exceptions=True)

    async def _worker(self, source: ContentSource, partial: Partial) -> None:
        clock = asyncio.get_running_loop().time
        while source in self._sources.live and not partial.whole:
            segment = self._take(source, clock())
            if segment is None:
                await asyncio.sleep(0.1)
                continue
            pause = 0.0
            try:
                await self._stream(source, segment, partial)
            except BlockInvalid as error:
                self._sources.drop(source, self._root, error)
            except DiskFull:
                raise
            except ContentError as error:
                pause = self._sources.strike(source, self._root, error)
            finally:
                del self._active[segment]
                if segment.numbers:
                    self._queue.appendleft(segment)
            await asyncio.sleep(pause)

    def _take(self, source: ContentSource, now: float) -> _Segment | None:
        """The next segment; if none waits, the rest of one that stands still at another source."""
        segment = self._queue.popleft() if self._queue else None
        if segment is None:
            for other, owner in self._active.items():
                if owner is not source and other.numbers and now - other.since > _STEAL_AFTER_S:
                    segment = _Segment(other.numbers)
                    other.numbers.clear()
                    break
        if segment is not None:
            segment.since = now
            self._active[segment] = source
        return segment

    async def _stream(self, source: ContentSource, segment: _Segment, partial: Partial) -> None:
        """One range request, leaf by leaf. Raises BlockInvalid for a lie, ContentUnavailable for a failure."""
        leaves, clock = partial.leaves, asyncio.get_running_loop().time
        start, last = leaves[segment.numbers[0]].offset, leaves[segment.numbers[-1]]
        buffer, blocks, verified = bytearray(), 0, 0
        pieces = source.read_range(self._name, start, last.offset + last.length - start)
        try:
            while segment.numbers:
                number = segment.numbers[0]
                leaf = leaves[number]
                await self._fill(buffer, pieces, leaf.length, source)
                data = bytes(memoryview(buffer)[: leaf.length])
                del buffer[: leaf.length]
                if not await self._store.in_thread(partial.accept, number, data):
                    raise BlockInvalid(f"{source.name} sent wrong bytes at offset {leaf.offset} of {self._name}.")
                if segment.numbers:  # else another source took the rest over meanwhile
                    segment.numbers.popleft()
                segment.since = clock()
                self._sources.praise(source)
                blocks, verified = blocks + 1, verified + leaf.length
                self._tell(partial, source)
        finally:
            await pieces.aclose()
            if blocks:
                _log.info("blocks_verified", cid=self._name, **{"from": source.name}, blocks=blocks, bytes=verified)

    async def _fill(self, buffer: bytearray, pieces: AsyncGenerator[bytes], length: int, source: ContentSource) -> None:
        try:
            async with asyncio.timeout(self._leaf_timeout_s):
                while len(buffer) < length:
                    buffer += await anext(pieces)
        except StopAsyncIteration:
            raise ContentUnavailable(f"{source.name} ended {self._name} early.") from None
        except TimeoutError:
            raise ContentUnavailable(f"{source.name} needs over {self._leaf_timeout_s:g} s for a block.") from None

    def _tell(self, partial: Partial, source: ContentSource) -> None:
        total = partial.leaves[-1].offset + partial.leaves[-1].length
        self._progress(Progress(what=self._name, done_bytes=partial.done_bytes, total_bytes=total, sources={source.name: 0.0}))

    async def _save_now_and_then(self, partial: Partial) -> None:
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            with contextlib.suppress(OctoError):  # a full disk is told by whoever writes data
                await self._store.in_thread(partial.save)


def _segments(missing: Sequence[int], leaves: Sequence[Leaf]) -> list[_Segment]:
    """Runs of missing leaves, cut at SEGMENT_BYTES."""
    segments: list[_Segment] = []
    run: list[int] = []
    held = 0
    for number in missing:
        if run and (number != run[-1] + 1 or held + leaves[number].length > SEGMENT_BYTES):
            segments.append(_Segment(run))
            run, held = [], 0
        run.append(number)
        held += leaves[number].length
    if run:
        segments.append(_Segment(run))
    return segments
