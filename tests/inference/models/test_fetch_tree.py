"""Pulling folders: all files of a directory, nested or sharded, within limits, from sources that may lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.models.cid import RAW, cid_of_block, parse_cid
from inference.models.directory import DirectoryDag, build_directory, build_folder
from inference.models.fetch_tree import TreeLimits, fetch_tree
from inference.models.progress import Progress
from inference.models.shards import build_shards
from inference.models.standing import Patience
from inference.models.store import Store
from market.errors import BlockInvalid, ContentUnavailable, DiskFull
from market.testing_content import MemorySource
from node.content.listener import content_app
from tests.inference.models.content_kit import MIB, PLENTY, blocks_of, put, seeded, sources

HASTE = Patience(strikes=2, pause_s=0.05)
FILES = {
    "config.json": b"{}",
    "weights/one.safetensors": seeded(3 * MIB + 5),
    "weights/two.safetensors": seeded(2 * MIB, "two"),
    "copy.safetensors": seeded(2 * MIB, "two"),
}


async def publish(store: Store, folder: Path, files: dict[str, bytes]) -> str:
    roots = {}
    for path, data in files.items():
        (folder / "in").write_bytes(data)
        dag_root, blocks = blocks_of(folder / "in")
        assert await put(store, folder, data) == dag_root
        roots[path] = (parse_cid(dag_root), sum(map(len, blocks.values())))
    return await store.add_directory(build_folder(roots), public=True)


async def test_a_folder_comes_with_every_file_and_can_be_served_on(
    store: Store, other_store: Store, tmp_path: Path
) -> None:
    root, seen = await publish(other_store, tmp_path, FILES), list[Progress]()
    async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
        files = await fetch_tree(store, root, [peer], public=True, progress=seen.append)
    assert {path: store.path_of(cid).read_bytes() for path, cid in files.items()} == FILES
    assert await store.resolve(root, "weights/two.safetensors", public_only=True) == files["copy.safetensors"]
    assert seen[-1].done_bytes == seen[-1].total_bytes == 5 * MIB + 7
    assert [event.done_bytes for event in seen] == sorted(event.done_bytes for event in seen)
    third = Store(tmp_path / "third")
    async with sources(content_app(store, limits=PLENTY)) as (peer,):
        assert await fetch_tree(third, root, [peer]) == files
    third.close()


async def test_a_root_that_is_a_file_comes_alone(store: Store, other_store: Store, tmp_path: Path) -> None:
    for data in (b"tiny", seeded(2 * MIB)):
        root = await put(other_store, tmp_path, data, public=True)
        async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
            assert await fetch_tree(store, root, [peer]) == {root: root}
        assert store.path_of(root).read_bytes() == data


async def test_a_sharded_folder_comes_whole_and_not_at_all_above_the_limit(store: Store) -> None:
    datas = {f"file-{number:05}": b"%d" % number for number in range(20)}
    cids = {name: cid_of_block(RAW, data) for name, data in datas.items()}
    root, nodes, _ = build_shards([(name.encode(), cids[name], len(data)) for name, data in datas.items()])
    blocks = {str(cid): block for cid, block in nodes} | {str(cids[name]): data for name, data in datas.items()}
    source = MemorySource("m", blocks=blocks, files={})
    with pytest.raises(BlockInvalid, match="over the limit of 19"):
        await fetch_tree(store, str(root), [source], limits=TreeLimits(files=19))
    files = await fetch_tree(store, str(root), [source])
    assert {name: store.path_of(cid).read_bytes() for name, cid in files.items()} == datas


async def test_a_folder_larger_than_the_limit_is_refused_before_any_file_comes(
    store: Store, other_store: Store, tmp_path: Path
) -> None:
    root = await publish(other_store, tmp_path, FILES)
    async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
        for limits in (TreeLimits(files=2), TreeLimits(size_bytes=MIB), TreeLimits(directory_bytes=10)):
            with pytest.raises(BlockInvalid):
                await fetch_tree(store, root, [peer], limits=limits)
    assert not store.list()


async def test_a_folder_that_does_not_fit_the_quota_is_refused_before_any_file_comes(
    other_store: Store, tmp_path: Path
) -> None:
    root = await publish(other_store, tmp_path, FILES)
    small = Store(tmp_path / "small", quota_bytes=4 * MIB)
    async with sources(content_app(other_store, limits=PLENTY)) as (peer,):
        with pytest.raises(DiskFull):
            await fetch_tree(small, root, [peer])
    assert not small.list()
    small.close()


async def test_a_liar_in_one_file_is_not_asked_for_the_next(store: Store, tmp_path: Path) -> None:
    blocks: dict[str, bytes] = {}
    roots, contents = {}, {}
    for name, data in (("a", seeded(2 * MIB, "a")), ("b", seeded(2 * MIB, "b"))):
        (tmp_path / name).write_bytes(data)
        root, own = blocks_of(tmp_path / name)
        blocks |= own
        roots[name] = (parse_cid(root), len(data))
        contents[root] = data
    dag: DirectoryDag = build_folder(roots)
    blocks |= {str(cid): block for cid, block in dag.nodes}
    blamed: list[str] = []
    good = MemorySource("good", blocks=blocks, files=contents)
    bad = MemorySource("bad", blocks=blocks, files={root: bytes(len(data)) for root, data in contents.items()})
    files = await fetch_tree(store, str(dag.root), [bad, good], blame=lambda name, _: blamed.append(name))
    assert {name: store.path_of(cid).read_bytes() for name, cid in files.items()} == {
        name: contents[str(root)] for name, (root, _) in roots.items()
    }
    assert blamed in ([], ["bad"])


async def test_a_directory_block_that_lies_blames_its_source(store: Store) -> None:
    dag = build_directory({"a": (cid_of_block(RAW, b"a"), 1)})
    good = MemorySource("good", blocks={str(dag.root): dag.nodes[0][1], str(cid_of_block(RAW, b"a")): b"a"}, files={})
    bad = MemorySource("bad", blocks={str(dag.root): b"\x0a\x02\x08\x01"}, files={})
    blamed: list[str] = []
    files = await fetch_tree(store, str(dag.root), [bad, good], blame=lambda name, _: blamed.append(name))
    assert list(files) == ["a"]
    assert blamed == ["bad"]


async def test_nobody_with_the_folder_says_so(store: Store) -> None:
    dag = build_directory({"a": (cid_of_block(RAW, b"a"), 1)})
    with pytest.raises(ContentUnavailable):
        await fetch_tree(store, str(dag.root), [MemorySource("m", blocks={}, files={})], patience=HASTE)
