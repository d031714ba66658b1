"""Taking in the same bytes twice, moving, verifying all: nothing is stored twice, lost, or believed unseen."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from inference.models.disk import Disk
from inference.models.progress import Progress
from inference.models.store import Store
from inference.models.unixfs import PROFILE_CLASSIC
from market.errors import BlockInvalid, ContentUnavailable, RequestInvalid
from tests.inference.models.store_kit import MIB, bend, put, seeded

DATA = seeded(3 * MIB + 5)


class Counting(Disk):
    """Counts the bytes that are written, and can be asked to do something at the first write."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0
        self.at_write = lambda: None

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        self.at_write()
        self.written += len(data)
        super().write(descriptor, data, offset)


@pytest.fixture
def disk() -> Counting:
    return Counting()


@pytest.fixture
def counted(tmp_path: Path, disk: Counting):  # type: ignore[no-untyped-def]  # a generator fixture
    store = Store(tmp_path / "counted", disk=disk)
    yield store
    store.close()


async def test_the_same_file_twice_is_stored_once_and_written_once(
    counted: Store, disk: Counting, tmp_path: Path
) -> None:
    first = await put(counted, tmp_path, DATA)
    inode = counted.path_of(first).stat().st_ino
    for options in ({}, {"public": True}, {"move": True}):
        assert await put(counted, tmp_path, DATA, **options) == first
    assert disk.written == len(DATA)
    assert counted.path_of(first).stat().st_ino == inode  # an engine may have it mapped
    assert counted.list()[0].public
    assert not any(path.name.startswith("in-") for path in tmp_path.iterdir())  # the move was one


async def test_many_at_once_store_one_file(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_bytes(DATA)
    roots = await asyncio.gather(*(store.add(source) for _ in range(6)))
    assert len(set(roots)) == 1
    assert [path.name for path in (tmp_path / "models" / "files").iterdir()] == [roots[0]]
    assert list(store.parts.iterdir()) == []
    await store.verify(roots[0])


async def test_another_file_of_the_same_size_is_another_file(store: Store, tmp_path: Path) -> None:
    first = await put(store, tmp_path, DATA)
    second = await put(store, tmp_path, seeded(len(DATA), "other"))
    assert first != second
    assert store.path_of(second).read_bytes() == seeded(len(DATA), "other")


async def test_a_damaged_file_is_mended_by_adding_it_again(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    bend(store.path_of(root))
    assert await put(store, tmp_path, DATA) == root
    assert store.path_of(root).read_bytes() == DATA
    await store.verify(root)


async def test_a_move_writes_nothing(counted: Store, disk: Counting, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_bytes(DATA)
    inode = source.stat().st_ino
    root = await counted.add(source, move=True)
    assert counted.path_of(root).stat().st_ino == inode
    assert (disk.written, source.exists()) == (0, False)


async def test_what_has_another_name_is_copied_so_that_nobody_writes_to_it(store: Store, tmp_path: Path) -> None:
    """A blob of another program's cache: a hard link, or a symbolic one."""
    blob = tmp_path / "blob"
    blob.write_bytes(DATA)
    os.link(blob, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(blob)
    hard = await store.add(tmp_path / "hard", move=True)
    assert await store.add(tmp_path / "soft", move=True) == hard
    assert not (tmp_path / "hard").exists()
    assert not (tmp_path / "soft").is_symlink()
    blob.write_bytes(b"changed")
    assert store.path_of(hard).read_bytes() == DATA


async def test_a_file_that_changes_while_it_is_taken_in_is_refused(
    counted: Store, disk: Counting, tmp_path: Path
) -> None:
    source = tmp_path / "growing"
    source.write_bytes(DATA)
    disk.at_write = lambda: os.truncate(source, MIB)
    with pytest.raises(RequestInvalid, match="changed while"):
        await counted.add(source)
    disk.at_write = lambda: None
    assert list(counted.parts.iterdir()) == []
    assert counted.list() == []


async def test_a_file_that_is_written_to_while_it_is_taken_in_is_refused(
    counted: Store, disk: Counting, tmp_path: Path
) -> None:
    source = tmp_path / "written"
    source.write_bytes(DATA)
    disk.at_write = lambda: os.utime(source, ns=(1, 1))  # what any write does: another time
    with pytest.raises(RequestInvalid, match="changed while"):
        await counted.add(source)
    assert list(counted.parts.iterdir()) == []
    assert counted.list() == []


async def test_a_cancelled_add_stops_and_leaves_nothing(counted: Store, disk: Counting, tmp_path: Path) -> None:
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.truncate(64 * MIB)
    started, cancelled = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold() -> None:
        loop.call_soon_threadsafe(started.set)
        cancelled.wait(60)

    disk.at_write = hold
    adding = asyncio.create_task(counted.add(source))
    await started.wait()
    adding.cancel()
    await asyncio.sleep(0)  # the task has heard of it
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert list(counted.parts.iterdir()) == []
    assert disk.written < 64 * MIB


async def test_an_empty_file_is_a_file(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, b"")
    assert store.path_of(root).read_bytes() == b""
    assert await store.read_block(root) == b""
    await store.verify(root)


async def test_verify_all_says_which_file_is_wrong_and_how_far_it_is(store: Store, tmp_path: Path) -> None:
    good = await put(store, tmp_path, DATA)
    bad = await put(store, tmp_path, seeded(2 * MIB, "bad"))
    small = await put(store, tmp_path, b"small", profile=PROFILE_CLASSIC)
    bend(store.path_of(bad))
    heard: list[Progress] = []
    verdicts = {verdict.root: verdict.error for verdict in await store.verify_all(heard.append)}
    assert (verdicts[good], verdicts[small]) == ("", "")
    assert "1 of 2 blocks" in verdicts[bad]
    assert not store.has(bad)
    await asyncio.sleep(0)
    total = len(DATA) + 2 * MIB + 5
    assert {progress.total_bytes for progress in heard} == {total}
    assert [progress.done_bytes for progress in heard] == sorted(progress.done_bytes for progress in heard)
    assert heard[-1].done_bytes == total


async def test_verify_all_can_be_cancelled_at_any_time(store: Store, tmp_path: Path) -> None:
    roots = [await put(store, tmp_path, seeded(MIB, str(number))) for number in range(8)]
    heard = 0

    def cancel(progress: Progress) -> None:
        nonlocal heard
        heard += 1
        verifying.cancel()

    verifying = asyncio.create_task(store.verify_all(cancel))
    with pytest.raises(asyncio.CancelledError):
        await verifying
    assert heard < len(roots)
    assert all(store.has(root) for root in roots)
    await store.verify(roots[-1])


async def test_an_open_file_can_be_sent_without_copying(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    reader, writer = os.pipe()
    try:
        async with store.open_file(root) as file:
            assert os.sendfile(writer, file.fileno(), MIB, 1000) == 1000
            assert os.fstat(file.fileno()).st_size == file.size_bytes
        assert os.read(reader, 2000) == DATA[MIB : MIB + 1000]
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_file_put_in_the_place_of_another_is_noticed(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    other = tmp_path / "other"
    other.write_bytes(seeded(len(DATA), "other"))
    other.replace(store.path_of(root))
    with pytest.raises(BlockInvalid):
        await store.checked_path(root)
    with pytest.raises(ContentUnavailable):
        async with store.open_file(root):
            pass
