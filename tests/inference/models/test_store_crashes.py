"""Crashes between any two writes: never a wrong byte, never the loss of what was promised, always on from there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inference.models.locks import open_pull_lock
from inference.models.store import Store
from inference.models.unixfs import FileDag, Profile, build_file
from market.errors import BlockInvalid
from tests.inference.models.crash_kit import Image, Recorder, forget
from tests.inference.models.store_kit import seeded

TINY = Profile(name="tiny", leaf_bytes=4096, width=4)
DATA = seeded(5 * 4096 + 17)
OLDER = seeded(2 * 4096, "older")
KINDS = [("kill", 0), ("worst", 0), ("some", 1), ("some", 2)]


@asynccontextmanager
async def recorded(tmp_path: Path) -> AsyncIterator[tuple[Store, Recorder, FileDag]]:
    """A store that holds a file already, and another to be taken in."""
    (tmp_path / "live" / "in").mkdir(parents=True)
    (tmp_path / "older").write_bytes(OLDER)
    (tmp_path / "live" / "in" / "new").write_bytes(DATA)
    before = Store(tmp_path / "live" / "models")
    await before.add(tmp_path / "older", profile=TINY)
    before.close()
    disk = Recorder(tmp_path / "live")
    disk.promised.add(str(build_file(tmp_path / "older", TINY).root))
    store = Store(tmp_path / "live" / "models", disk=disk)
    try:
        yield store, disk, build_file(tmp_path / "live" / "in" / "new", TINY)
    finally:
        store.close()


async def after_each_crash(
    disk: Recorder, tmp_path: Path, check: Callable[[Store, Image, Path], Awaitable[None]]
) -> int:
    """Open a store on what every crash leaves; all that it says is here must be right."""
    seen = set()
    for image in disk.images:
        for kind, seed in KINDS:
            folder = tmp_path / "crashed"
            state = image.state(kind, seed)
            told = repr(sorted(state.items())), repr(sorted(image.index.items())), image.promised
            if told in seen:
                continue
            seen.add(told)
            image.write(folder, state)
            store = Store(folder / "models")
            try:
                for root in [file.root for file in store.list()]:
                    try:
                        path = await store.checked_path(root)
                    except BlockInvalid:
                        assert root not in image.promised, (image.what, kind, seed)
                    else:
                        assert path.read_bytes() in (DATA, OLDER), (image.what, kind, seed)
                for root in image.promised:
                    if isinstance(root, str):
                        assert store.has(root), (image.what, kind, seed)
                await check(store, image, folder)
            except Exception as error:
                error.add_note(f"{image.what}, {kind} {seed}")
                raise
            finally:
                store.close()
                forget(folder)
    return len(seen)


@pytest.mark.parametrize("move", [False, True])
async def test_a_crash_while_a_file_is_added(tmp_path: Path, move: bool) -> None:
    async with recorded(tmp_path) as (store, disk, _):
        root = await store.add(tmp_path / "live" / "in" / "new", profile=TINY, move=move)
        disk.promised.add(root)
        disk.take("added")

    async def check(again: Store, image: Image, folder: Path) -> None:
        source = folder / "in" / "new"
        assert again.has(root) or source.read_bytes() == DATA  # never in neither place
        if not again.has(root):
            await again.add(source, profile=TINY)
        assert again.path_of(root).read_bytes() == DATA
        await again.verify(root)
        await again.gc()
        assert list(again.parts.iterdir()) == []

    assert await after_each_crash(disk, tmp_path, check) > 3


async def test_a_crash_during_a_pull_loses_unverified_blocks_at_most(tmp_path: Path) -> None:
    async with recorded(tmp_path) as (store, disk, dag):
        root = str(dag.root)
        leaves = [DATA[leaf.offset : leaf.offset + leaf.length] for leaf in dag.leaves]
        store.save_nodes(root, len(DATA), dict(dag.nodes))
        for group in ((3, 0), (1, 5), (2, 4)):  # out of order; a process that ends after each
            partial = await store.open_partial(root, dag.leaves, len(DATA))
            for number in group:
                assert partial.accept(number, leaves[number])
                if number in (3, 1):
                    partial.save()
                    disk.promised |= {n for n, done in enumerate(partial.done) if done}
            if not partial.whole:
                partial.save()
                partial.close()
        await asyncio.to_thread(store.commit, root, partial, public=False)
        partial.close()
        disk.promised.add(root)
        disk.take("committed")

    async def check(again: Store, image: Image, folder: Path) -> None:
        if again.has(root):
            return
        async with open_pull_lock(again.parts, root):
            partial = await again.open_partial(root, dag.leaves, len(DATA))
            here = partial.part.read_bytes()
            for number, leaf in enumerate(dag.leaves):
                if partial.done[number]:
                    assert leaf.matches(here[leaf.offset : leaf.offset + leaf.length])
                else:
                    assert number not in image.promised
                    assert partial.accept(number, leaves[number])
            again.save_nodes(root, len(DATA), dict(dag.nodes))
            again.commit(root, partial, public=False)
            partial.close()
        assert again.path_of(root).read_bytes() == DATA
        await again.verify(root)

    assert await after_each_crash(disk, tmp_path, check) > 50


async def test_a_crash_during_a_removal_leaves_all_or_nothing(tmp_path: Path) -> None:
    async with recorded(tmp_path) as (store, disk, _):
        root = await store.add(tmp_path / "live" / "in" / "new", profile=TINY)
        disk.images.clear()
        await store.remove(root)
        disk.take("removed")

    async def check(again: Store, image: Image, folder: Path) -> None:
        if again.has(root):
            await again.verify(root)
        assert root not in (await again.gc()).adopted

    assert await after_each_crash(disk, tmp_path, check) > 3
