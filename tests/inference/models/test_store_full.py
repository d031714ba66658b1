"""A disk that fills up at any write: DiskFull that says so, nothing lost, and on from there once there is room."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inference.models.disk import Disk
from inference.models.locks import open_pull_lock
from inference.models.store import Store
from inference.models.unixfs import Profile, build_file
from market.errors import DiskFull
from tests.inference.models.store_kit import put, seeded
from tests.inference.models.test_store_processes import ROOT, namespaces

TINY = Profile(name="tiny", leaf_bytes=4096, width=4)
DATA = seeded(5 * 4096 + 17)


class Filling(Disk):
    """Has room for so many changes; the one after them is done by half."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def _spend(self) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(self, path: Path, size_bytes: int, *, reserve: bool = False) -> int:
        self._spend()
        return super().create(path, size_bytes, reserve=reserve)

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        if self.room == 0:
            super().write(descriptor, memoryview(data)[: len(data) // 2], offset)
        self._spend()
        super().write(descriptor, data, offset)

    def sync_data(self, descriptor: int) -> None:
        self._spend()
        super().sync_data(descriptor)

    def sync(self, descriptor: int) -> None:
        self._spend()
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._spend()
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._spend()
        super().sync_folder(folder)


@pytest.mark.parametrize("move", [False, True])
async def test_an_add_that_meets_a_full_disk_at_any_step(tmp_path: Path, move: bool) -> None:
    source = tmp_path / "new"
    refused = 0
    for room in range(100):
        source.write_bytes(DATA)
        disk = Filling(room)
        store = Store(tmp_path / f"models-{room}", disk=disk)
        try:
            try:
                await store.add(source, profile=TINY, move=move)
            except DiskFull as error:
                refused += 1
                assert error.next_step
                assert list(store.parts.iterdir()) == []
                assert source.exists() or store.list()
                disk.room = 1000
                await store.add(source if source.exists() else store.path_of(store.list()[0].root), profile=TINY)
            (file,) = store.list()
            assert store.path_of(file.root).read_bytes() == DATA
            await store.verify(file.root)
        finally:
            store.close()
        if disk.room < 1000 and disk.room >= 0 and room > refused:
            break
    assert refused >= (3 if move else 8)


async def test_a_pull_that_meets_a_full_disk_at_any_step(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(DATA)
    dag = build_file(tmp_path / "new", TINY)
    root = str(dag.root)
    refused = 0
    for room in range(100):
        disk = Filling(room)
        store = Store(tmp_path / f"models-{room}", disk=disk)
        store.save_nodes(root, len(DATA), dict(dag.nodes))
        done: set[int] = set()
        try:
            while not store.has(root):
                async with open_pull_lock(store.parts, root):
                    partial = None
                    try:
                        partial = await store.open_partial(root, dag.leaves, len(DATA))
                        assert all(partial.done[number] for number in done)  # nothing that had arrived is lost
                        for number in partial.missing():
                            leaf = dag.leaves[number]
                            assert partial.accept(number, DATA[leaf.offset : leaf.offset + leaf.length])
                            done.add(number)
                            partial.save()
                        store.commit(root, partial, public=False)
                    except DiskFull as error:
                        refused += 1
                        assert "full" in str(error)
                        disk.room = 1000
                    finally:
                        if partial is not None:
                            partial.close()
            assert store.path_of(root).read_bytes() == DATA
            await store.verify(root)
        finally:
            store.close()
        if disk.room >= 0 and room > refused:
            break
    assert refused > 15


SMALL_DISK = 'mount -t tmpfs -o size=3m tmpfs "$1" && shift && exec "$@"'
ON_A_SMALL_DISK = """
import asyncio, os, sys
from pathlib import Path
from inference.models.locks import open_pull_lock
from inference.models.store import Store
from inference.models.unixfs import PROFILE_CLASSIC, build_file
from market.errors import DiskFull

disk, big, small = map(Path, sys.argv[1:])

async def refused(work):
    try:
        await work
    except DiskFull as error:
        assert error.next_step
    else:
        raise AssertionError("there was room")

async def main():
    store = Store(disk / "models")
    root = await store.add(small)
    await refused(store.add(big))                           # 4 MiB into 3
    assert list(store.parts.iterdir()) == []
    dag, data = build_file(small, PROFILE_CLASSIC), small.read_bytes()
    async with open_pull_lock(store.parts, str(dag.root)):
        partial = await store.open_partial(str(dag.root), dag.leaves, len(data))
        partial.accept(0, data[: 256 * 1024])
        partial.save()
        room = os.statvfs(disk)
        filler = os.open(disk / "filler", os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(filler, 0, room.f_bavail * room.f_frsize)
        try:                                                # a leaf
            partial.accept(1, data[256 * 1024 : 512 * 1024])
        except DiskFull as error:
            assert error.next_step
        else:
            raise AssertionError("there was room")
        partial.save()                                      # the map lies on the disk already
        number = 0
        try:                                                # the index
            for number in range(10_000):
                await store.add_block(b"\\x59\\x04\\x00" + number.to_bytes(2, "big") + bytes(1022))
        except DiskFull as error:
            assert error.next_step
        else:
            raise AssertionError("there was room")
        os.close(filler)
        (disk / "filler").unlink()
        partial.close()
        partial = await store.open_partial(str(dag.root), dag.leaves, len(data))
        assert partial.done[0] and not partial.done[1]
        for number in partial.missing():
            leaf = dag.leaves[number]
            assert partial.accept(number, data[leaf.offset : leaf.offset + leaf.length])
        store.save_nodes(str(dag.root), len(data), dict(dag.nodes))
        store.commit(str(dag.root), partial, public=False)
        partial.close()
    await store.verify(str(dag.root))
    await store.verify(root)
    store.close()
    print("sound")
asyncio.run(main())
"""


@pytest.mark.processes
async def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(seeded(4 * 1024 * 1024))
    (tmp_path / "small").write_bytes(seeded(700_000))
    disk = tmp_path / "disk"
    disk.mkdir()
    prefix = namespaces(SMALL_DISK, disk)
    command = [
        *prefix,
        sys.executable,
        "-c",
        ON_A_SMALL_DISK,
        str(disk),
        str(tmp_path / "big"),
        str(tmp_path / "small"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.endswith("sound\n"), done.stderr


async def test_a_file_larger_than_the_disk_is_refused_before_it_is_read(store: Store, tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 43)
    heard: list[int] = []
    with pytest.raises(DiskFull, match=r"bytes are still needed, [1-9]\d* are free"):
        await store.add(huge, progress=heard.append)
    assert heard == []
    assert await put(store, tmp_path, b"small")
