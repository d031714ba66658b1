"""Directories in the store: walked, public with all below, removed with what only they need; views; waste."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from inference.models.cid import DAG_PB, RAW, Cid, parse_cid
from inference.models.directory import DirectoryDag, build_directory, build_folder
from inference.models.locks import open_pull_lock
from inference.models.store import Store
from inference.models.unixfs import Leaf, build_file, build_tree
from market.errors import BlockInvalid, ContentUnavailable, EncodingInvalid
from tests.inference.models.store_kit import MIB, bend, put, seeded


async def folder(store: Store, tmp_path: Path, files: Mapping[str, bytes], *, public: bool = False) -> str:
    """Put files in, and the directory over them."""
    entries = {name: (parse_cid(await put(store, tmp_path, data)), len(data)) for name, data in files.items()}
    return await store.add_directory(build_folder(entries), public=public)


FILES = {"config.json": b"{}", "shards/a.gguf": seeded(2 * MIB + 1), "shards/deep/b.gguf": b"b" * 100}


async def test_a_path_is_walked_to_its_file(store: Store, tmp_path: Path) -> None:
    root = await folder(store, tmp_path, FILES)
    assert await store.resolve(root, "") == root
    for name, data in FILES.items():
        cid = await store.resolve(root, name)
        assert store.path_of(cid).read_bytes() == data
    inner = await store.resolve(root, "shards")
    assert await store.resolve(inner, "deep/b.gguf") == await store.resolve(root, "shards/deep/b.gguf")
    assert store.directories() == [root]
    for name in ("nothing", "config.json/x", "shards/deep/b.gguf/x", "Shards"):
        with pytest.raises(ContentUnavailable):
            await store.resolve(root, name)
    for name in ("../shards", "shards/../config.json", "./config.json"):
        with pytest.raises((ContentUnavailable, EncodingInvalid)):
            await store.resolve(root, name)


async def test_a_directory_of_shards_is_walked_and_its_blocks_are_served(store: Store) -> None:
    names = {f"{number:05d}-{'x' * 200}": (Cid(codec=RAW, digest=seeded(32, str(number))), 1) for number in range(1500)}
    dag = build_directory(names)
    assert len(dag.nodes) > 1
    root = await store.add_directory(dag)
    name = next(iter(names))
    assert await store.resolve(root, name) == str(names[name][0])
    for cid, block in dag.nodes:
        assert await store.read_block(str(cid)) == block


async def test_a_public_directory_opens_all_below_and_only_while_it_is_public(store: Store, tmp_path: Path) -> None:
    root = await folder(store, tmp_path, FILES)
    inside = await store.resolve(root, "shards/a.gguf")
    outside = await put(store, tmp_path, b"not in the folder")
    leaf = str(Cid(codec=RAW, digest=build_file(store.path_of(inside)).leaves[0].digest))
    for cid in (root, inside, leaf, await store.resolve(root, "shards")):
        with pytest.raises(ContentUnavailable):
            await store.read_block(cid, public_only=True)
        assert not store.serves(cid)
    await store.set_public(root)
    for cid in (root, inside, leaf, await store.resolve(root, "shards", public_only=True)):
        assert await store.read_block(cid, public_only=True)
        assert store.serves(cid)
    async with store.open_file(inside, public_only=True) as file:
        assert file.size_bytes == 2 * MIB + 1
    assert {file.root for file in store.list() if file.public} == {await store.resolve(root, name) for name in FILES}
    with pytest.raises(ContentUnavailable):
        await store.read_block(outside, public_only=True)
    await store.set_public(root, False)
    with pytest.raises(ContentUnavailable):
        await store.read_block(leaf, public_only=True)


async def test_a_file_that_comes_after_its_public_directory_is_public(store: Store, tmp_path: Path) -> None:
    data = b"late"
    (tmp_path / "late").write_bytes(data)
    root = build_file(tmp_path / "late").root
    await store.add_directory(build_folder({"late": (root, 4)}), public=True)
    await store.add(tmp_path / "late")
    assert await store.read_block(str(root), public_only=True) == data


async def test_a_directory_with_a_block_that_lies_is_refused(store: Store) -> None:
    dag = build_directory({"a": (Cid(codec=RAW, digest=bytes(32)), 1)})
    other = build_directory({"b": (Cid(codec=RAW, digest=bytes(32)), 1)})
    with pytest.raises(BlockInvalid):
        await store.add_directory(DirectoryDag(root=dag.root, nodes=[(dag.root, other.nodes[0][1])], total_bytes=1))
    assert store.directories() == []


async def test_removing_a_directory_leaves_its_files_unless_asked(store: Store, tmp_path: Path) -> None:
    root = await folder(store, tmp_path, FILES)
    inner = await store.resolve(root, "shards")
    files = [await store.resolve(root, name) for name in FILES]
    await store.remove(root)
    assert all(store.has(file) for file in files)
    for cid in (root, inner):
        with pytest.raises(ContentUnavailable):
            await store.read_block(cid)


async def test_removing_all_below_spares_what_others_need(store: Store, tmp_path: Path) -> None:
    alone, shared, marked, wanted = b"alone", b"shared", b"marked", b"wanted"
    first = await folder(store, tmp_path, {"x/a": alone, "x/s": shared, "x/m": marked, "x/w": wanted})
    second = await folder(store, tmp_path, {"s": shared})
    roots = {name: await store.resolve(first, f"x/{name}") for name in "asmw"}
    await store.set_public(roots["m"])
    await store.remove(first, below=True, keep={roots["w"]})
    assert {name for name, root in roots.items() if store.has(root)} == {"s", "m", "w"}
    assert await store.resolve(second, "s") == roots["s"]


async def test_a_directory_in_use_holds_all_below(store: Store, tmp_path: Path) -> None:
    root = await folder(store, tmp_path, FILES)
    with store.using(root):
        assert all(file.in_use for file in store.list())
    assert not any(file.in_use for file in store.list())


async def test_a_dag_pb_leaf_is_served_with_its_protobuf(store: Store, tmp_path: Path) -> None:
    """What `ipfs add` without --raw-leaves makes: type, data, filesize around the bytes."""
    data = seeded(300_000)
    head = b"\x0a\xea\xa7\x12\x08\x02\x12\xe0\xa7\x12"
    tail = b"\x18\xe0\xa7\x12"
    block = head + data + tail
    root = Cid(codec=DAG_PB, digest=sha256(block).digest())
    leaf = Leaf(0, len(data), root.digest, head, tail)
    async with open_pull_lock(store.parts, str(root)):
        partial = await store.open_partial(str(root), [leaf], len(data))
        assert partial.accept(0, data)
        store.commit(str(root), partial, public=True)
        partial.close()
    assert store.path_of(str(root)).read_bytes() == data
    assert await store.read_block(str(root), public_only=True) == block
    assert await store.read_block(str(Cid(codec=RAW, digest=root.digest)), public_only=True) == block
    await store.verify(str(root))
    bend(store.path_of(str(root)))
    with pytest.raises(BlockInvalid):
        await store.verify(str(root))


async def test_leaves_that_are_not_those_of_the_kept_nodes_never_become_a_file(store: Store) -> None:
    data = seeded(3 * MIB)
    leaves = [Leaf(at, MIB, seeded(32, str(at))) for at in range(0, 3 * MIB, MIB)]
    dag = build_tree(leaves)
    wrong = [Leaf(at, MIB, sha256(data[at : at + MIB]).digest()) for at in range(0, 3 * MIB, MIB)]
    store.save_nodes(str(dag.root), 3 * MIB, dict(dag.nodes))
    partial = await store.open_partial(str(dag.root), wrong, 3 * MIB)
    assert all(partial.accept(number, data[number * MIB : (number + 1) * MIB]) for number in range(3))
    with pytest.raises(BlockInvalid):
        store.commit(str(dag.root), partial, public=False)
    partial.close()
    assert not store.has(str(dag.root))


# ---- views -------------------------------------------------------------------------------------


async def test_a_view_is_a_folder_of_the_very_files(store: Store, tmp_path: Path) -> None:
    one, two = await put(store, tmp_path, b"one"), await put(store, tmp_path, b"two")
    names = {"config.json": one, "unet/weights.safetensors": two}
    view = await store.folder_of(names)
    assert (view / "unet" / "weights.safetensors").samefile(store.path_of(two))
    assert await store.folder_of(names) == view
    assert await store.folder_of({"config.json": one}) != view
    async with store.open_file(one):  # a link more is no change of the file
        pass


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b", "", ".", "a//b", "a\0b", "x" * 256, "a\\..\\b"])
async def test_a_name_that_leaves_the_view_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    root = await put(store, tmp_path, b"one")
    with pytest.raises(EncodingInvalid):
        await store.folder_of({name: root})
    assert list((tmp_path / "models" / "views").iterdir()) == []


async def test_a_file_that_is_also_a_folder_is_refused(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, b"one")
    with pytest.raises(EncodingInvalid):
        await store.folder_of({"a": root, "a/b": root})


async def test_a_view_goes_with_its_file_and_comes_anew(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, b"one")
    view = await store.folder_of({"a": root})
    await store.remove(root)
    assert not view.exists()
    with pytest.raises(ContentUnavailable):
        await store.folder_of({"a": root})
    await put(store, tmp_path, b"one")
    assert (await store.folder_of({"a": root}) / "a").read_bytes() == b"one"


# ---- waste -------------------------------------------------------------------------------------


async def test_gc_frees_what_nothing_needs_and_nothing_else(store: Store, tmp_path: Path) -> None:
    kept = await put(store, tmp_path, seeded(MIB + 1))
    directory = await folder(store, tmp_path, FILES)
    root = tmp_path / "models"
    gone = await put(store, tmp_path, b"its file is gone")
    (root / "files" / gone).unlink()
    (root / "files" / "bafkstray").write_bytes(b"no CID at all")
    (root / "quarantine" / "old").write_bytes(bytes(1000))
    for name in ("bafkold.part", "bafkold.map", "bafknew.part", "bafknew.map"):
        (root / "parts" / name).write_bytes(bytes(10_000))
    os.utime(root / "parts" / "bafkold.part", (0, 0))
    (root / "parts" / "add-dead").write_bytes(b"its writer has died")
    found = await store.gc()
    assert (found.parts, found.quarantined, found.rows, found.strays, found.views) == (2, 1, 1, 1, 0)
    assert found.freed_bytes >= 12_000
    assert sorted(path.name for path in (root / "parts").iterdir()) == ["bafknew.map", "bafknew.part"]
    assert store.has(kept)
    assert await store.read_block(directory)
    again = await store.gc()
    assert (again.freed_bytes, again.parts, again.rows, again.strays) == (0, 0, 0, 0)


async def test_gc_leaves_a_download_that_goes_on(store: Store) -> None:
    leaves = [Leaf(0, 10, bytes(32))]
    root = str(Cid(codec=RAW, digest=bytes(32)))
    async with open_pull_lock(store.parts, root):
        partial = await store.open_partial(root, leaves, 10)
        partial.close()
        os.utime(partial.part, (0, 0))
        assert (await store.gc()).parts == 0
        assert partial.part.exists()
    assert (await store.gc()).parts == 1


async def test_a_lost_index_is_made_again_from_files_that_are_what_they_are_called(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    good = await put(store, tmp_path, seeded(2 * MIB))
    bad = await put(store, tmp_path, seeded(2 * MIB, "bad"))
    bend(store.path_of(bad))
    store.close()
    for path in (tmp_path / "models").glob("index.db*"):
        path.unlink()
    store = Store(tmp_path / "models")
    try:
        assert not store.has(good)
        found = await store.gc()
        assert (found.adopted, found.strays) == ([good], 1)
        assert await store.read_block(good)
        assert not (tmp_path / "models" / "files" / bad).exists()
    finally:
        store.close()
