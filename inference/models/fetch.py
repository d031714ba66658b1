"""Pulling: bytes from anyone, a file only if every leaf hashes.

Lives here: the story of a pull. Inner nodes first, each hashed; they make the table of leaves. Then ranges of the file
from all sources at once (`crew`), each leaf hashed before it counts. What an earlier pull brought is kept.
Knows sources by their port only; who lied is told to `blame`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from inference.models.cid import RAW, Cid, parse_cid
from inference.models.crew import Crew
from inference.models.locks import open_pull_lock
from inference.models.partial import Partial
from inference.models.progress import Meter, OnProgress, quiet
from inference.models.standing import Blame, Crowd, Patience
from inference.models.store import Store
from inference.models.unixfs import Leaf
from inference.models.walk import TreeWalk
from market.errors import BlockInvalid, ContentUnavailable, OctoError
from market.ports import ContentSource

_log = structlog.get_logger()

Clock = Callable[[], float]
PATIENCE = Patience()
_NODES_AT_ONCE = 16
_BROUGHT_LIMIT_BYTES = 16 * 1024 * 1024


def forgive(source: str, why: str) -> None:
    """For callers that remember no liars beyond one pull."""


async def fetch_file(
    store: Store,
    root: str,
    sources: Sequence[ContentSource],
    *,
    size_bytes: int | None = None,
    public: bool = False,
    progress: OnProgress = quiet,
    blame: Blame = forgive,
    patience: Patience = PATIENCE,
    clock: Clock | None = None,
) -> Path:
    """Bring a file into the store and return its path; what an earlier pull brought is kept.

    `size_bytes`: what the manifest says; another size is refused before anything is downloaded. `blame` is called once
    for each source that sent wrong bytes. `clock` gives the seconds by which sources are slow or quick; None: the event
    loop's. Cancelling the task stops everything; nothing that was verified is lost.
    Raises ContentUnavailable if no source is left, BlockInvalid if the DAG itself is unsound, DiskFull.
    """
    parsed = parse_cid(root)
    async with open_pull_lock(store.parts, root):
        if not store.has(root):
            crowd = new_crowd(root, sources, patience, blame, clock)
            await _Pull(store, parsed, crowd, progress, patience).run(size_bytes, public)
        elif public:
            await store.set_public(root)
    return store.path_of(root)


async def fetch_block(
    cid: str, sources: Sequence[ContentSource], *, blame: Blame = forgive, patience: Patience = PATIENCE
) -> bytes:
    """One block that hashes to `cid`, from the first source that has it. Raises ContentUnavailable."""
    return await new_crowd(cid, sources, patience, blame).block(parse_cid(cid))


def new_crowd(
    cid: str, sources: Sequence[ContentSource], patience: Patience, blame: Blame, clock: Clock | None = None
) -> Crowd:
    """All sources of one pull, none with a mark against it yet."""
    return Crowd(
        cid,
        sources,
        patience=patience,
        clock=clock or asyncio.get_running_loop().time,
        jitter=random.random,  # spreads retries, guards nothing
        blame=blame,
    )


class _TableWasWrong(Exception):
    """What was guessed about dag-pb leaves does not hold; there is a new table now."""


class _Pull:
    def __init__(self, store: Store, root: Cid, crowd: Crowd, progress: OnProgress, patience: Patience) -> None:
        self._store = store
        self._root = root
        self._name = str(root)
        self._crowd = crowd
        self._progress = progress
        self._patience = patience
        self._brought: dict[Cid, bytes] = {}
        self._settling = asyncio.Lock()

    async def run(self, size_bytes: int | None, public: bool) -> None:
        if self._root.codec == RAW:
            leaves = await self._only_leaf(size_bytes)
            await self._fill(None, leaves, size_bytes, public)
            return
        walk = TreeWalk(self._root, size_bytes=size_bytes)
        while True:
            leaves = await self._leaf_table(walk)
            try:
                await self._fill(walk, leaves, size_bytes, public)
            except _TableWasWrong:
                _log.info("model_tree_walked_again", cid=self._name)
            else:
                return

    async def _fill(self, walk: TreeWalk | None, leaves: Sequence[Leaf], size_bytes: int | None, public: bool) -> None:
        total = leaves[-1].offset + leaves[-1].length
        if size_bytes not in (None, total):
            raise BlockInvalid(f"{self._name} holds {total} bytes where {size_bytes} were announced.")
        partial = await self._store.open_partial(self._name, leaves, total)
        try:
            meter = Meter(self._name, total, self._progress, self._crowd.clock, self._crowd.speeds)
            meter.say(partial.done_bytes)
            try:
                await self._use_brought(partial)
                await self._crew(walk, partial, meter).work()
            finally:
                with contextlib.suppress(OctoError):  # it cannot hide why we stopped
                    await self._store.in_thread(partial.save)
            if not partial.whole:
                raise self._crowd.nobody()
            await self._store.in_thread(lambda: self._store.commit(self._name, partial, public=public))
            meter.say(partial.done_bytes)
        finally:
            partial.close()
        _log.info("model_file_whole", cid=self._name, bytes=total, blocks=len(leaves))

    def _crew(self, walk: TreeWalk | None, partial: Partial, meter: Meter) -> Crew:
        async def doubt(leaf: Leaf) -> None:
            if walk is None or not walk.is_guess(leaf):
                return
            block = await self._crowd.block(leaf.cid)
            async with self._settling:
                if not await self._store.in_thread(walk.settle, leaf, block):
                    raise _TableWasWrong

        return Crew(
            self._name,
            partial,
            self._crowd,
            meter,
            patience=self._patience,
            in_thread=self._store.in_thread,
            doubt=doubt,
        )

    async def _only_leaf(self, size_bytes: int | None) -> list[Leaf]:
        """A file of one raw block is its own leaf. If nobody gives blocks, a range of all of it will do."""
        try:
            block = await self._crowd.block(self._root)
        except ContentUnavailable:
            if not size_bytes:
                raise
            return [Leaf(0, size_bytes, self._root.digest)]
        self._brought[self._root] = block
        return [Leaf(0, len(block), self._root.digest)]

    async def _leaf_table(self, walk: TreeWalk) -> list[Leaf]:
        known = await self._store.in_thread(self._store.known_nodes, self._name)
        while wanted := walk.wanted(_NODES_AT_ONCE):
            blocks = await asyncio.gather(*(self._node(cid, known) for cid in wanted))
            for cid, block in zip(wanted, blocks, strict=True):
                await self._store.in_thread(walk.give, cid, block)  # 1,024 links take 3 ms to parse
                if cid not in walk.nodes and sum(map(len, self._brought.values())) < _BROUGHT_LIMIT_BYTES:
                    self._brought[cid] = block
        await self._store.in_thread(self._store.save_nodes, self._name, walk.size_bytes, walk.nodes)
        return walk.leaves()

    async def _node(self, cid: Cid, known: Mapping[Cid, bytes]) -> bytes:
        return known[cid] if cid in known else await self._crowd.block(cid)

    async def _use_brought(self, partial: Partial) -> None:
        """Leaves that came as blocks while the tree was walked need not come again."""
        for number, leaf in enumerate(partial.leaves):
            if leaf.cid in self._brought:
                await self._store.in_thread(partial.accept, number, leaf.cut(self._brought[leaf.cid]))
