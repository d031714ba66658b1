"""Quota: the least recently used goes, whole; never what is in use or on its way in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.models.disk import Disk
from inference.models.eviction import Room, StoredFile, choose_victims
from inference.models.folders import Folders
from inference.models.index import Index
from inference.models.locks import in_use, open_pull_lock
from inference.models.partial import Partial
from inference.models.store import Store
from inference.models.unixfs import build_file
from market.errors import ContentUnavailable, DiskFull
from tests.inference.models.store_kit import MIB, put, seeded

KIB = 1024
HOLDER = """
import sys, time
from inference.models.locks import in_use
from pathlib import Path
with in_use(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


class Hand:
    """A clock that is moved by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@contextlib.contextmanager
def quota(tmp_path: Path, size: int, clock: Hand | None = None) -> Iterator[Store]:
    store = Store(tmp_path / "models", quota_bytes=size, clock=clock or Hand())
    try:
        yield store
    finally:
        store.close()


def data(number: int, size: int = 100 * KIB) -> bytes:
    return seeded(size, f"file {number}")


FILES = st.lists(
    st.tuples(st.integers(0, 100), st.integers(0, 20), st.booleans()), max_size=12
).map(lambda rows: [
    StoredFile(root=f"r{n}", size_bytes=size, public=False, last_used_ms=used, in_use=busy)
    for n, (size, used, busy) in enumerate(rows)
])  # fmt: skip


@given(FILES, st.integers(0, 500))
def test_victims_are_enough_idle_and_none_for_nothing(files: list[StoredFile], needed: int) -> None:
    victims = choose_victims(files, needed)
    idle = sum(file.size_bytes for file in files if not file.in_use)
    if victims is None:
        assert idle < needed
        return
    freed = sum(file.size_bytes for file in victims)
    assert freed >= needed
    assert not any(file.in_use for file in victims)
    assert all(freed - file.size_bytes < needed for file in victims)
    spared = [file for file in files if not file.in_use and file not in victims and file.size_bytes > 0]
    # Whoever is spared was used later than some victim, or was too small to spare that one.
    assert all(
        any(file.last_used_ms >= victim.last_used_ms or file.size_bytes < victim.size_bytes for victim in victims)
        for file in spared
        if victims
    )


async def test_the_least_recently_used_file_makes_room(tmp_path: Path) -> None:
    clock = Hand()
    with quota(tmp_path, 310 * KIB, clock) as store:
        first, second, third = [await put(store, tmp_path, data(n)) for n in range(3)]
        clock.now += 3600
        async with store.open_file(first):  # used after the others
            pass
        fourth = await put(store, tmp_path, data(3))
        assert [store.has(root) for root in (first, second, third, fourth)] == [True, False, True, True]
        assert not (tmp_path / "models" / "files" / second).exists()
        with pytest.raises(ContentUnavailable):
            await store.read_block(second)


async def test_a_use_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    clock = Hand()
    with quota(tmp_path, 10 * MIB, clock) as store:
        first, second = [await put(store, tmp_path, data(n)) for n in range(2)]
        clock.now += 3600
        await store.touch([first])
    with quota(tmp_path, 250 * KIB, clock) as store:
        await put(store, tmp_path, data(2))
        assert (store.has(first), store.has(second)) == (True, False)


async def test_a_use_is_written_once_a_minute_and_costs_no_sync(tmp_path: Path) -> None:
    clock = Hand()
    with quota(tmp_path, 10 * MIB, clock) as store:
        root = await put(store, tmp_path, data(0))
        log = tmp_path / "models" / "index.db-wal"
        clock.now += 3600
        await store.touch([root])
        size = log.stat().st_size
        for _ in range(20):
            async with store.open_file(root):
                pass
        assert log.stat().st_size == size
        assert store.list()[0].last_used_ms > 1_003_600_000


async def test_a_model_in_use_stays_and_the_error_names_it(tmp_path: Path) -> None:
    with quota(tmp_path, 250 * KIB) as store:
        first, second = [await put(store, tmp_path, data(n)) for n in range(2)]
        with store.using(first), store.using(second):
            assert [file.in_use for file in store.list()] == [True, True]
            with pytest.raises(DiskFull, match="quota of 256000 bytes") as full:
                await put(store, tmp_path, data(2))
            assert first in str(full.value)
            assert store.has(first)
        assert [file.in_use for file in store.list()] == [False, False]
        with store.using(first):
            third = await put(store, tmp_path, data(2))
        assert [store.has(root) for root in (first, second, third)] == [True, False, True]
        assert list(store.parts.iterdir()) == []


async def test_a_model_that_comes_into_use_after_the_choice_stays(tmp_path: Path) -> None:
    with quota(tmp_path, 10 * MIB) as store:
        first, second = [await put(store, tmp_path, data(n)) for n in range(2)]
        folders = Folders(tmp_path / "models")
        index = Index(folders.index)

        class LooksTooEarly(Room):
            looks = 0

            def files(self) -> list[StoredFile]:
                self.looks += 1
                return [replace(file, in_use=file.in_use and self.looks > 1) for file in super().files()]

        with store.using(first):
            LooksTooEarly(folders, index, Disk(), 250 * KIB).make(100 * KIB)
        index.close()
        assert (store.has(first), store.has(second)) == (True, False)


async def test_one_room_is_not_promised_twice(tmp_path: Path) -> None:
    sources = [tmp_path / name for name in "ab"]
    for source in sources:
        source.write_bytes(data(len(source.name), 200 * KIB) + source.name.encode())
    dags = [build_file(source) for source in sources]

    class Slow(Disk):
        def resize(self, descriptor: int, size_bytes: int) -> None:
            time.sleep(0.2)
            super().resize(descriptor, size_bytes)

    with contextlib.closing(Store(tmp_path / "models", quota_bytes=300 * KIB, disk=Slow())) as store:
        opened = await asyncio.gather(
            *(store.open_partial(str(dag.root), dag.leaves, dag.size_bytes) for dag in dags), return_exceptions=True
        )
        assert {type(one) for one in opened} == {DiskFull, Partial}
        for one in opened:
            if isinstance(one, Partial):
                one.close()


async def test_a_file_that_is_being_read_stays(tmp_path: Path) -> None:
    with quota(tmp_path, 150 * KIB) as store:
        first = await put(store, tmp_path, data(0))
        async with store.open_file(first) as file:
            with pytest.raises(DiskFull):
                await put(store, tmp_path, data(1))
            assert await file.read(0, 5) == data(0)[:5]


async def test_what_cannot_fit_evicts_nothing(tmp_path: Path) -> None:
    with quota(tmp_path, 250 * KIB) as store:
        first, second = [await put(store, tmp_path, data(n)) for n in range(2)]
        with pytest.raises(DiskFull):
            await put(store, tmp_path, data(2, 300 * KIB))
        assert store.has(first)
        assert store.has(second)


async def test_without_a_quota_nothing_ever_goes(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, data(0))
    await store.make_room(1 << 50)
    assert store.has(root)


@pytest.mark.processes
async def test_a_file_mapped_by_another_process_stays_until_that_process_dies(tmp_path: Path) -> None:
    with quota(tmp_path, 150 * KIB) as store:
        root = await put(store, tmp_path, data(0))
        child = subprocess.Popen([sys.executable, "-c", HOLDER, str(store.path_of(root))], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"held\n"
            with pytest.raises(DiskFull):
                await store.make_room(100 * KIB)
        finally:
            child.kill()
            child.wait()
        await store.make_room(100 * KIB)
        assert not store.has(root)


async def test_a_download_on_its_way_counts_and_is_not_evicted(tmp_path: Path) -> None:
    source = tmp_path / "coming"
    source.write_bytes(data(7, 200 * KIB))
    dag = build_file(source)
    with quota(tmp_path, 350 * KIB) as store:
        first = await put(store, tmp_path, data(0))
        async with open_pull_lock(store.parts, str(dag.root)):
            partial = await store.open_partial(str(dag.root), dag.leaves, dag.size_bytes)
            assert store.has(first)
            second = await put(store, tmp_path, data(1))  # 100 + 200 (coming) + 100: the first has to go
            assert (store.has(first), store.has(second)) == (False, True)
            with store.using(second), pytest.raises(DiskFull, match=r"2048.. belong to unfinished downloads"):
                await put(store, tmp_path, data(2))
            assert partial.accept(0, data(7, 200 * KIB))
            partial.close()
            again = await store.open_partial(str(dag.root), dag.leaves, dag.size_bytes)  # does not count itself twice
            assert again.whole
            store.save_nodes(str(dag.root), dag.size_bytes, dict(dag.nodes))
            store.commit(str(dag.root), again, public=False)
            again.close()
        assert store.has(str(dag.root))
        assert store.has(second)


async def test_old_waste_goes_before_any_model(tmp_path: Path) -> None:
    with quota(tmp_path, 250 * KIB) as store:
        root = await put(store, tmp_path, data(0))
        left = store.parts / "bafkold.part"
        left.write_bytes(bytes(100 * KIB))
        os.utime(left, (0, 0))
        await put(store, tmp_path, data(1))
        assert store.has(root)
        assert not left.exists()


async def test_eviction_takes_the_views_of_a_file_along(tmp_path: Path) -> None:
    with quota(tmp_path, 150 * KIB) as store:
        root = await put(store, tmp_path, data(0))
        view = await store.folder_of({"weights/model.gguf": root})
        await put(store, tmp_path, data(1))
        assert not view.exists()


async def test_a_folder_in_use_by_an_engine_keeps_its_files(tmp_path: Path) -> None:
    with quota(tmp_path, 150 * KIB) as store:
        root = await put(store, tmp_path, data(0))
        view = await store.folder_of({"model.gguf": root})
        with in_use(view / "model.gguf"), pytest.raises(DiskFull):
            await put(store, tmp_path, data(1))
        assert store.has(root)


async def test_using_what_is_not_here_says_so(tmp_path: Path) -> None:
    with quota(tmp_path, MIB) as store, pytest.raises(ContentUnavailable), store.using("bafkreib" + "a" * 51):
        raise AssertionError("never used")


async def test_moving_a_file_in_counts_too(tmp_path: Path) -> None:
    with quota(tmp_path, 150 * KIB) as store:
        first = await put(store, tmp_path, data(0), move=True)
        second = await put(store, tmp_path, data(1), move=True)
        assert (store.has(first), store.has(second)) == (False, True)
        with pytest.raises(DiskFull):
            await put(store, tmp_path, data(2, 200 * KIB), move=True)
        assert store.has(second)
