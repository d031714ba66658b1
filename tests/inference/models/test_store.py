"""The store: plain files under their CIDs, changes on disk noticed, nothing private handed out."""

from __future__ import annotations

import os
from pathlib import Path

import libipld
import pytest

from inference.models.cid import RAW, cid_of_block, parse_cid
from inference.models.store import Store
from inference.models.unixfs import PROFILE_CLASSIC
from market.errors import BlockInvalid, ContentUnavailable, EncodingInvalid, RequestInvalid
from tests.inference.models.store_kit import MIB, bend, put, seeded

DATA = seeded(3 * MIB + 5)


def leaf(number: int) -> str:
    return str(cid_of_block(RAW, DATA[number * MIB : (number + 1) * MIB]))


async def test_an_added_file_is_plain_read_only_and_found_by_its_root(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    assert store.has(root)
    assert store.path_of(root).read_bytes() == DATA
    assert store.path_of(root).stat().st_mode & 0o777 == 0o444
    assert [(f.root, f.size_bytes, f.public) for f in store.list()] == [(root, len(DATA), False)]


async def test_add_copies_and_move_moves(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(DATA)
    root = await store.add(source)
    assert source.exists()
    assert await store.add(source, move=True) == root
    assert not source.exists()
    assert store.path_of(root).read_bytes() == DATA


async def test_what_is_no_plain_file_is_refused_and_left_alone(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "folder"
    source.mkdir()
    (source / "inside").write_bytes(b"precious")
    with pytest.raises(RequestInvalid):
        await store.add(source, move=True)
    assert (source / "inside").read_bytes() == b"precious"
    assert list(store.parts.iterdir()) == []


async def test_both_profiles_of_one_file_live_side_by_side(store: Store, tmp_path: Path) -> None:
    one = await put(store, tmp_path, DATA)
    two = await put(store, tmp_path, DATA, profile=PROFILE_CLASSIC)
    assert one != two
    assert store.path_of(two).read_bytes() == DATA


async def test_blocks_are_read_out_of_the_file_and_out_of_the_index(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    assert await store.read_block(leaf(1)) == DATA[MIB : 2 * MIB]
    assert str(cid_of_block(parse_cid(root).codec, await store.read_block(root))) == root


async def test_a_leaf_that_two_files_share_outlives_one_of_them(store: Store, tmp_path: Path) -> None:
    first = await put(store, tmp_path, DATA)
    await put(store, tmp_path, DATA[:MIB] + b"another")
    await store.remove(first)
    assert not store.has(first)
    assert await store.read_block(leaf(0)) == DATA[:MIB]


async def test_a_file_touched_but_intact_is_hashed_again_and_served(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    os.utime(store.path_of(root), ns=(1, 1))
    async with store.open_file(root) as file:
        assert await file.read(0, 100) == DATA[:100]
    assert await store.checked_path(root) == store.path_of(root)


async def test_a_file_changed_on_disk_is_noticed_and_quarantined(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    path = store.path_of(root)
    bend(path)
    with pytest.raises(BlockInvalid, match="damaged or changed"):
        await store.checked_path(root)
    assert not store.has(root)
    assert not path.exists()
    assert [p.name.split(".")[0] for p in (path.parents[1] / "quarantine").iterdir()] == [root]
    with pytest.raises(ContentUnavailable):
        store.path_of(root)


async def test_rot_that_leaves_no_trace_in_the_file_times_is_caught_when_a_block_is_read(
    store: Store, tmp_path: Path
) -> None:
    root = await put(store, tmp_path, DATA)
    path, before = store.path_of(root), store.path_of(root).stat()
    bend(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ContentUnavailable):
        await store.read_block(leaf(0))
    assert not store.has(root)


async def test_verify_finds_a_corrupt_model_file(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    await store.verify(root)
    bend(store.path_of(root), at=len(DATA) - 1)
    with pytest.raises(BlockInvalid, match="1 of 4 blocks"):
        await store.verify(root)


async def test_a_shortened_file_is_noticed(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    store.path_of(root).chmod(0o644)
    os.truncate(store.path_of(root), MIB)
    with pytest.raises(BlockInvalid):
        async with store.open_file(root):
            pass


async def test_a_private_root_and_its_blocks_stay_inside(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA)
    for cid in (root, leaf(0)):
        with pytest.raises(ContentUnavailable):
            await store.read_block(cid, public_only=True)
    with pytest.raises(ContentUnavailable):
        async with store.open_file(root, public_only=True):
            pass
    await store.set_public(root)
    assert await store.read_block(leaf(0), public_only=True) == DATA[:MIB]
    await store.set_public(root, False)
    with pytest.raises(ContentUnavailable):
        await store.read_block(leaf(0), public_only=True)


async def test_a_small_block_is_kept_and_garbage_is_not(store: Store) -> None:
    block = libipld.encode_dag_cbor({"a": 1})
    cid = await store.add_block(block)
    assert await store.read_block(cid) == block
    assert store.blocks() == {cid: block}
    with pytest.raises(EncodingInvalid):
        await store.add_block(b"\xff\xff")


async def test_what_was_added_is_there_after_a_restart(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, DATA, public=True)
    again = Store(tmp_path / "models")
    try:
        assert again.path_of(root).read_bytes() == DATA
        assert await again.read_block(leaf(2), public_only=True) == DATA[2 * MIB : 3 * MIB]
    finally:
        again.close()


@pytest.mark.parametrize("name", ["..", "../../etc/passwd", "x" * 59, "/etc/passwd"])
async def test_only_a_cid_ever_becomes_a_path(store: Store, name: str) -> None:
    with pytest.raises((EncodingInvalid, ContentUnavailable)):
        store.path_of(name)
