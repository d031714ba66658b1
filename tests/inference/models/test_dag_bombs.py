"""Roots that promise too much: each kind of bomb is refused by name, early and cheaply."""

from __future__ import annotations

import sys

import pytest

from inference.models.cid import DAG_CBOR, DAG_PB, Cid, cid_of_block
from inference.models.unixfs import Leaf, build_tree
from inference.models.walk import DEPTH_LIMIT, TreeWalk, parse_node
from market.errors import BlockInvalid
from tests.inference.models.dag_kit import NOBODY, Child, field, leaf_block, node_block, node_of, raw_child

MIB = 1024 * 1024


def give_all(root: Cid, blocks: dict[Cid, bytes], **options: int) -> TreeWalk:
    walk = TreeWalk(root, **options)
    while wanted := walk.wanted():
        for cid in wanted:
            walk.give(cid, blocks[cid])
    return walk


def tower(levels: int, width: int, leaf: Child) -> tuple[Cid, dict[Cid, bytes]]:
    """`levels` nodes, each of which links the one below `width` times."""
    blocks: dict[Cid, bytes] = {}
    child = leaf
    for _ in range(levels):
        cid, blocks[cid] = node_of([child] * width)
        child = cid, child[1] * width, None
    return child[0], blocks


def pb_child(data: bytes) -> tuple[Child, bytes]:
    block = leaf_block(data)
    return (cid_of_block(DAG_PB, block), len(data), len(block)), block


def test_a_block_with_other_bytes_is_refused_by_its_hash() -> None:
    root, block = node_of([(NOBODY, 1, 1)])
    with pytest.raises(BlockInvalid, match="does not hash"):
        TreeWalk(root).give(root, block + b"\0")


def test_sizes_that_do_not_sum_are_refused() -> None:
    block = node_block([(NOBODY, 7, 7)] * 3)
    with pytest.raises(BlockInvalid, match="links sum to"):
        parse_node(block.replace(b"\x18\x15\x20", b"\x18\x16\x20"))


def test_a_child_of_another_size_than_its_parent_says_is_refused() -> None:
    child = build_tree([Leaf(0, 5, bytes(32)), Leaf(5, 5, bytes(32))])
    root, block = node_of([(child.root, 9, 9), (NOBODY, 1, 1)])
    with pytest.raises(BlockInvalid, match="10 bytes where 9 were announced"):
        give_all(root, {root: block, **dict(child.nodes)})


def test_one_child_with_two_announced_sizes_is_refused() -> None:
    leaf, block = pb_child(b"x" * 10)
    root, top = node_of([leaf, (leaf[0], 11, None)])
    with pytest.raises(BlockInvalid, match="10 bytes where 11 were announced"):
        give_all(root, {root: top, leaf[0]: block})


def test_another_size_than_the_manifest_says_is_refused() -> None:
    root, blocks = tower(2, 3, (NOBODY, 7, 7))
    assert give_all(root, blocks, size_bytes=63).size_bytes == 63
    with pytest.raises(BlockInvalid, match="announced"):
        give_all(root, blocks, size_bytes=64)


def test_a_dag_deeper_than_eight_levels_is_refused() -> None:
    assert give_all(*tower(DEPTH_LIMIT, 1, (NOBODY, 1, 1))).leaves() == [Leaf(0, 1, bytes(32))]
    with pytest.raises(BlockInvalid, match="deeper"):
        give_all(*tower(DEPTH_LIMIT + 1, 1, (NOBODY, 1, 1)))


@pytest.mark.parametrize("size", [1, 1024, MIB])
def test_a_bomb_of_repeated_links_is_stopped_by_the_count(size: int) -> None:
    with pytest.raises(BlockInvalid, match=r"more than|over the limit"):
        give_all(*tower(4, 1024, (NOBODY, size, size)))


def test_a_bomb_of_one_dag_pb_leaf_linked_again_and_again_is_stopped_by_the_count() -> None:
    leaf, block = pb_child(b"x")
    root, blocks = tower(4, 300, leaf)
    with pytest.raises(BlockInvalid, match="more than"):
        give_all(root, {**blocks, leaf[0]: block})


def test_tiny_leaves_are_bounded_long_before_a_million() -> None:
    root, blocks = tower(2, 300, (NOBODY, 1, 1))
    with pytest.raises(BlockInvalid, match="more than 65623 blocks for 90000 bytes"):
        give_all(root, blocks)


def test_a_declared_size_over_the_limit_is_refused_at_the_root() -> None:
    root, block = node_of([(Cid(codec=DAG_PB, digest=bytes(32)), (1 << 42) + 1, None)])
    with pytest.raises(BlockInvalid, match="over the limit of 4398046511104"):
        TreeWalk(root).give(root, block)


def test_sizes_beyond_63_bits_are_refused() -> None:
    root, block = node_of([(NOBODY, 1 << 63, None)])
    with pytest.raises(BlockInvalid, match="malformed number"):
        TreeWalk(root).give(root, block)


def test_a_raw_leaf_over_two_mebibytes_is_refused_by_what_its_parent_says() -> None:
    root, block = node_of([(NOBODY, 2 * MIB + 1, None)])
    with pytest.raises(BlockInvalid, match="leaf"):
        TreeWalk(root).give(root, block)


def test_a_dag_pb_leaf_over_two_mebibytes_is_refused_by_its_length() -> None:
    leaf, block = pb_child(bytes(2 * MIB))
    root, top = node_of([leaf])
    with pytest.raises(BlockInvalid, match="over the limit"):
        give_all(root, {root: top, leaf[0]: block})


def test_an_empty_child_is_refused() -> None:
    with pytest.raises(BlockInvalid, match="empty"):
        parse_node(node_block([(NOBODY, 0, 0)]))


def test_a_node_with_padding_that_nothing_bounds_is_refused() -> None:
    with pytest.raises(BlockInvalid, match="time"):
        parse_node(node_block([(NOBODY, 1, 1)], more=field(8, bytes(1000))))


def test_inline_data_besides_links_is_refused_in_plain_words() -> None:
    with pytest.raises(BlockInvalid, match="both inline data and links"):
        parse_node(node_block([(NOBODY, 1, 1)], more=field(2, b"inline")))


def test_a_leaf_that_lies_about_its_length_is_refused() -> None:
    with pytest.raises(BlockInvalid, match="says otherwise"):
        parse_node(field(1, b"\x08\x02" + field(2, b"four") + b"\x18\x05"))


@pytest.mark.parametrize(("kind", "word"), [(1, "a directory"), (3, "metadata"), (4, "symbolic link"), (5, "sharded")])
def test_what_is_no_file_is_named(kind: int, word: str) -> None:
    with pytest.raises(BlockInvalid, match=word):
        parse_node(field(1, bytes([8, kind]) + field(2, b"../../etc/passwd")))


def test_a_link_to_something_that_is_no_part_of_a_file_is_refused() -> None:
    root, block = node_of([(Cid(codec=DAG_CBOR, digest=bytes(32)), 5, 5)])
    with pytest.raises(BlockInvalid, match="not a part of a file"):
        TreeWalk(root).give(root, block)


def test_a_link_with_a_hash_that_we_do_not_check_is_refused() -> None:
    link = field(2, field(1, b"\x01\x55\x00\x04abcd") + field(2, b"") + b"\x18\x04")
    with pytest.raises(BlockInvalid, match="sha2-256"):
        parse_node(link + field(1, b"\x08\x02\x18\x04\x20\x04"))


def test_a_raw_root_needs_no_walk() -> None:
    with pytest.raises(BlockInvalid, match="not the root of a tree"):
        TreeWalk(raw_child(b"x")[0])


@pytest.mark.parametrize("total", [7, 0])
def test_leaves_that_grow_and_never_fit_the_guess_cost_a_few_passes_not_one_each(total: int) -> None:
    """Tsizes that lie or are missing: many leaves are brought as blocks, none makes us look at all others again."""
    blocks: dict[Cid, bytes] = {}
    children = []
    for n in range(1500):
        (cid, size, _), blocks[cid] = pb_child(bytes(1 + n))
        children.append((cid, size, total))
    root, blocks[root] = node_of(children)
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        walk = give_all(root, blocks)
    finally:
        sys.setprofile(None)
    assert len(walk.leaves()) == 1500
    assert calls < 1500 * 200  # 103 each; with a pass for every leaf it is 10,000
