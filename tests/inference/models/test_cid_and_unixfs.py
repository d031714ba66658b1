"""CIDs and UnixFS: equal to the reference importer, and strict about what others send."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.models.cid import DAG_PB, RAW, Cid, cid_from_binary, cid_of_block, parse_cid
from inference.models.unixfs import (
    PROFILE_2025,
    PROFILE_CLASSIC,
    PROFILES,
    FileDag,
    Leaf,
    Profile,
    build_file,
    build_tree,
)
from inference.models.walk import TreeWalk, parse_node
from market.errors import BlockInvalid, EncodingInvalid
from tests.inference.models.content_kit import seeded

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "unixfs.json").read_text())


def small_dag(leaves: int = 10, width: int = 3) -> FileDag:
    digests = [hashlib.sha256(bytes([n])).digest() for n in range(leaves)]
    return build_tree([Leaf(n * 7, 7, d) for n, d in enumerate(digests)], Profile(name="t", leaf_bytes=7, width=width))


def walk(dag: FileDag, size_bytes: int | None = None) -> TreeWalk:
    blocks, tree = dict(dag.nodes), TreeWalk(dag.root, size_bytes=size_bytes)
    while wanted := tree.wanted():
        for cid in wanted:
            tree.give(cid, blocks[cid])
    return tree


@pytest.mark.parametrize("row", VECTORS["files"], ids=lambda row: str(row["size"]))
def test_roots_equal_the_reference_importer_in_both_profiles(row: dict, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(seeded(row["size"], VECTORS["seed"]))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
    for name, profile in PROFILES.items():
        assert str(build_file(path, profile).root) == row[name]


def test_known_roots_of_nothing_and_of_two_leaves(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert str(build_file(tmp_path / "empty").root) == "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"


@pytest.mark.parametrize("profile", [PROFILE_2025, PROFILE_CLASSIC])
def test_walking_a_dag_gives_back_the_leaf_table(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(seeded(5_000_001))
    dag = build_file(path, profile)
    tree = walk(dag, size_bytes=5_000_001)
    assert tree.leaves() == dag.leaves


@given(st.integers(2, 60), st.integers(2, 6))
def test_any_balanced_tree_walks_back(leaves: int, width: int) -> None:
    dag = small_dag(leaves, width)
    assert walk(dag).leaves() == dag.leaves


def test_cid_text_and_binary_are_one_to_one() -> None:
    cid = cid_of_block(RAW, b"octo")
    assert parse_cid(str(cid)) == cid == cid_from_binary(cid.binary)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbd0",
        "BAFKREIHDWDCEFGH4DQKJV67UZCMW7OJEE6XEDZDETOJUZJEVTENXQUVYKU",
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyk1",
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku ",
        "../../../etc/passwd/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "b" * 59,
        "é" * 59,
    ],
)
def test_what_is_not_a_cid_is_refused(text: str) -> None:
    with pytest.raises(EncodingInvalid):
        parse_cid(text)


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_garbage_is_refused_as_a_block_and_never_crashes(data: bytes) -> None:
    with pytest.raises(BlockInvalid):
        parse_node(data)


def test_every_flipped_bit_of_a_node_is_refused_or_keeps_its_sums() -> None:
    (_, block), *_ = small_dag(3).nodes
    for bit in range(len(block) * 8):
        bent = bytearray(block)
        bent[bit // 8] ^= 1 << bit % 8
        try:
            node = parse_node(bytes(bent))
        except BlockInvalid:
            continue
        assert node.size_bytes == sum(link.size_bytes for link in node.links) == 21


def test_a_block_with_other_bytes_is_refused_by_its_hash() -> None:
    dag = small_dag()
    blocks = dict(dag.nodes)
    tree = TreeWalk(dag.root)
    with pytest.raises(BlockInvalid, match="does not hash"):
        tree.give(dag.root, blocks[dag.root] + b"\0")


def test_sizes_that_do_not_sum_are_refused() -> None:
    (_, block), *_ = small_dag(3).nodes
    with pytest.raises(BlockInvalid, match="links sum to"):
        parse_node(block.replace(b"\x18\x15\x20", b"\x18\x16\x20"))


def test_a_child_of_another_size_than_its_parent_says_is_refused() -> None:
    child = build_tree([Leaf(0, 5, bytes(32)), Leaf(5, 5, bytes(32))])
    sham = [(child.root, 9), (Cid(codec=RAW, digest=bytes(32)), 1)]
    root, block = node_of(sham)
    tree = TreeWalk(root)
    tree.give(root, block)
    with pytest.raises(BlockInvalid, match="10 bytes where 9 were announced"):
        tree.give(child.root, dict(child.nodes)[child.root])


def test_another_size_than_the_manifest_says_is_refused() -> None:
    with pytest.raises(BlockInvalid, match="announced"):
        walk(small_dag(), size_bytes=69)


def test_a_dag_deeper_than_eight_levels_is_refused() -> None:
    node = (Cid(codec=RAW, digest=bytes(32)), 1)
    chain = []
    for _ in range(9):
        root, block = node_of([node])
        chain.append((root, block))
        node = (root, 1)
    tree = TreeWalk(root)
    with pytest.raises(BlockInvalid, match="deeper"):
        for cid, block in reversed(chain):
            tree.give(cid, block)


def test_a_bomb_of_repeated_links_is_stopped_by_the_count() -> None:
    node = (Cid(codec=RAW, digest=bytes(32)), 1)
    chain = []
    for _ in range(4):
        root, block = node_of([node] * 1024)
        chain.append((root, block))
        node = (root, node[1] * 1024)
    tree = TreeWalk(root)
    with pytest.raises(BlockInvalid, match=r"more than|over the limit"):
        for cid, block in reversed(chain):
            tree.give(cid, block)


def test_a_leaf_over_two_mebibytes_is_refused() -> None:
    root, block = node_of([(Cid(codec=RAW, digest=bytes(32)), 2 * 1024 * 1024 + 1)])
    with pytest.raises(BlockInvalid, match="leaf"):
        TreeWalk(root).give(root, block)


def test_an_empty_child_is_refused() -> None:
    _, block = node_of([(Cid(codec=RAW, digest=bytes(32)), 0)])
    with pytest.raises(BlockInvalid):
        parse_node(block)


def node_of(children: list[tuple[Cid, int]]) -> tuple[Cid, bytes]:
    """A file node written by hand, as an attacker would."""
    links = b"".join(_field(2, _field(1, c.binary) + _field(2, b"") + b"\x18" + _number(s)) for c, s in children)
    inner = b"\x08\x02\x18" + _number(sum(s for _, s in children)) + b"".join(b"\x20" + _number(s) for _, s in children)
    block = links + _field(1, inner)
    return cid_of_block(DAG_PB, block), block


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _number(len(data)) + data


def _number(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])
