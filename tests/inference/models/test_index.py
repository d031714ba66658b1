"""The index: what it costs, how an older one is brought up to date, what damage to it looks like."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from inference.models.database import open_index
from inference.models.folders import stamp_of
from inference.models.index import FileRow, Index
from inference.models.leaf_table import leaf_table
from inference.models.store import Store
from inference.models.unixfs import PROFILE_2025, PROFILE_CLASSIC, Leaf, Profile, build_file, build_tree
from market.errors import BlockInvalid, NodeMisconfigured
from tests.inference.models.store_kit import MIB, put, seeded

GIB = 1024 * MIB
OLD_SCHEMA = """
create table files(
  id integer primary key, root text unique not null, size integer not null, whole integer not null,
  public integer not null, mtime_ns integer not null, inode integer not null);
create table leaves(
  digest blob not null, file integer not null references files(id) on delete cascade,
  offset integer not null, length integer not null, primary key(digest, file, offset)) without rowid;
create table nodes(
  digest blob not null, file integer not null references files(id) on delete cascade,
  data blob not null, primary key(digest, file));
create table blocks(cid text primary key, public integer not null, data blob not null) without rowid;
create index leaves_by_file on leaves(file);
create index nodes_by_file on nodes(file);
"""


@pytest.mark.parametrize("profile", [PROFILE_2025, PROFILE_CLASSIC])
def test_the_index_of_a_gibibyte_is_at_most_half_a_thousandth_of_it(tmp_path: Path, profile: Profile) -> None:
    size = profile.leaf_bytes
    dag = build_tree([Leaf(at, size, seeded(32, str(at))) for at in range(0, GIB, size)], profile)
    index = Index(tmp_path / "index.db")
    row = FileRow(root=str(dag.root), whole=True, public=True, stamp=stamp_of(tmp_path.stat()))
    index.save_file(row, leaves=dag.leaves, nodes=dag.nodes)
    assert leaf_table(dag.root, index.spans_of(str(dag.root)), index.nodes_of(str(dag.root))) == dag.leaves
    index.close()
    assert (tmp_path / "index.db").stat().st_size <= GIB * 0.0005


async def test_an_index_of_the_first_version_is_read_and_upgraded_once(tmp_path: Path) -> None:
    data = seeded(3 * MIB + 5)
    source = tmp_path / "model"
    source.write_bytes(data)
    dag = build_file(source)
    root = str(dag.root)
    (tmp_path / "models" / "files").mkdir(parents=True)
    source.rename(tmp_path / "models" / "files" / root)
    stamp = stamp_of((tmp_path / "models" / "files" / root).stat())
    old = sqlite3.connect(tmp_path / "models" / "index.db")
    old.executescript(OLD_SCHEMA)
    old.execute("insert into files values(1,?,?,1,1,?,?)", (root, stamp.size_bytes, stamp.mtime_ns, stamp.inode))
    old.executemany(
        "insert into leaves values(?,1,?,?)", [(leaf.digest, leaf.offset, leaf.length) for leaf in dag.leaves]
    )
    old.executemany("insert into nodes values(?,1,?)", [(cid.digest, block) for cid, block in dag.nodes])
    old.execute("insert into blocks values('bafyreiabc',0,x'a0')")
    old.commit()
    old.close()
    for _ in range(2):
        store = Store(tmp_path / "models")
        assert [(f.root, f.public) for f in store.list()] == [(root, True)]
        assert await store.read_block(str(dag.leaves[3].cid), public_only=True) == data[3 * MIB :]
        await store.verify(root)
        store.close()


def test_an_index_from_a_newer_node_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    database = sqlite3.connect(path)
    database.execute("pragma user_version=99")
    database.close()
    with pytest.raises(NodeMisconfigured, match="version 99"):
        open_index(path, writable=True)


def test_an_index_that_is_no_database_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    with pytest.raises(NodeMisconfigured, match="models gc"):
        Index(path)


async def test_an_index_that_lost_rows_is_told_from_a_damaged_file_and_made_anew(store: Store, tmp_path: Path) -> None:
    root = await put(store, tmp_path, seeded(3 * MIB + 5))
    database = sqlite3.connect(tmp_path / "models" / "index.db")
    database.execute("delete from leaves where offset > 0")
    database.commit()
    database.close()
    with pytest.raises(BlockInvalid, match="index of the stored file"):
        await store.verify(root)
    assert not store.has(root)
    assert (await store.gc()).adopted == [root]
    await store.verify(root)


def test_a_leaf_table_that_does_not_lead_to_its_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(seeded(3 * MIB))
    dag = build_file(tmp_path / "file")
    index = Index(tmp_path / "index.db")
    row = FileRow(root=str(dag.root), whole=True, public=False, stamp=stamp_of(tmp_path.stat()))
    index.save_file(row, leaves=dag.leaves, nodes=dag.nodes)
    spans, nodes = index.spans_of(row.root), index.nodes_of(row.root)
    index.close()
    assert leaf_table(dag.root, spans, nodes) == dag.leaves
    for broken in (spans[:-1], spans[1:], [*spans, spans[-1]], [spans[0], spans[2], spans[1]]):
        with pytest.raises(BlockInvalid):
            leaf_table(dag.root, broken, nodes)
    with pytest.raises(BlockInvalid):
        leaf_table(dag.root, spans, {})
    (tmp_path / "other").write_bytes(seeded(3 * MIB, "other"))
    with pytest.raises(BlockInvalid, match="does not hash"):
        leaf_table(dag.root, spans, {dag.root: build_file(tmp_path / "other").nodes[0][1]})


def test_an_index_that_another_process_makes_in_this_moment_is_waited_for(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "index.db", isolation_level=None, check_same_thread=False)
    other.execute("begin immediate")
    other.execute("create table half(made)")
    ending = threading.Timer(0.2, other.execute, ["rollback"])
    ending.start()
    open_index(tmp_path / "index.db", writable=True).close()
    ending.join()
    other.close()
