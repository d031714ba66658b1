"""Any importer's file can be walked; dag-pb leaves cost one block, and a wrong guess about them is found and mended."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.models.cid import DAG_PB, RAW, Cid, cid_of_block, parse_cid
from inference.models.dagpb import total_bytes
from inference.models.walk import TreeWalk
from market.errors import BlockInvalid
from tests.inference.models.dag_kit import FILE_TYPE, RAW_TYPE, Child, Pull, leaf_block, node_of, raw_child
from tests.inference.models.store_kit import seeded

FORMS = json.loads((Path(__file__).parents[2] / "vectors" / "unixfs.json").read_text())["forms"]
DATA = seeded(45_613_057)


def blocks_of(row: dict) -> dict[Cid, bytes]:
    """The importer's nodes, and leaves in every form that it knows."""
    blocks = [base64.b64decode(block) for block in row["nodes"]]
    data, step = DATA[: row["size"]], row["leaf_bytes"]
    for at in range(0, len(data), step):
        blocks += [leaf_block(data[at : at + step], kind) for kind in (FILE_TYPE, RAW_TYPE)]
    if row["form"] == "v0" and not data:
        blocks.append(leaf_block(b""))
    return {cid_of_block(DAG_PB, block): block for block in (*blocks, leaf_block(b""))}


@pytest.mark.parametrize("row", FORMS, ids=lambda row: f"{row['form']}-{row['size']}")
def test_what_the_reference_importer_makes_is_walked_with_few_leaf_blocks(row: dict) -> None:
    root, data, blocks = parse_cid(row["root"]), DATA[: row["size"]], blocks_of(row)
    if root.codec == RAW:
        assert root == cid_of_block(RAW, data)
        return
    pull = Pull(root, blocks, data, announced=len(data))
    assert not pull.wrong
    leaves = [cid for cid in pull.brought if cid not in pull.walk.nodes]
    assert len(leaves) == len(set(leaves)) <= 1
    assert total_bytes(blocks[root]) == row["total_bytes"]


def test_all_forms_are_covered() -> None:
    assert {row["form"] for row in FORMS} == {
        *("v0", "pb-v1", "pb-v1-4k-8", "trickle-pb-raw-type", "trickle-pb", "trickle-raw", "data-first"),
        *("raw-single-wrapped", "mode-and-mtime", "pb-mode-and-mtime"),
    }


def leaf_child(blocks: dict[Cid, bytes], data: bytes, kind: int = FILE_TYPE, total: int | None = -1) -> Child:
    block = leaf_block(data, kind)
    cid = cid_of_block(DAG_PB, block)
    blocks[cid] = block
    return cid, len(data), len(block) if total == -1 else total


def test_a_leaf_of_another_type_than_the_first_is_found_and_mended() -> None:
    blocks: dict[Cid, bytes] = {}
    data = [bytes([n]) * 100 for n in range(20)]
    children = [leaf_child(blocks, piece, RAW_TYPE if n == 13 else FILE_TYPE) for n, piece in enumerate(data)]
    root, blocks[root] = node_of(children)
    pull = Pull(root, blocks, b"".join(data))
    assert [leaf.offset for leaf in pull.wrong] == [1300]


def test_an_inner_node_that_claims_a_leafs_size_is_found_and_mended() -> None:
    blocks: dict[Cid, bytes] = {}
    inner, blocks[inner] = node_of([raw_child(b"b" * 60), raw_child(b"c" * 40)])
    lie = len(leaf_block(b"x" * 100))
    root, blocks[root] = node_of([leaf_child(blocks, b"a" * 100), (inner, 100, lie), leaf_child(blocks, b"d" * 100)])
    pull = Pull(root, blocks, b"a" * 100 + b"b" * 60 + b"c" * 40 + b"d" * 100)
    assert [leaf.offset for leaf in pull.wrong] == [100]
    assert [leaf.length for leaf in pull.table] == [100, 60, 40, 100]


@pytest.mark.parametrize("total", [0, None])
def test_without_tsize_leaves_are_guessed_by_their_size_and_a_wrapped_one_is_mended(total: int | None) -> None:
    blocks: dict[Cid, bytes] = {}
    data = [bytes([n]) * 100 for n in range(9)]
    first, blocks[first] = node_of([leaf_child(blocks, piece, total=total) for piece in data[:8]])
    last, blocks[last] = node_of([leaf_child(blocks, data[8], total=total)])
    root, blocks[root] = node_of([(first, 800, total), (last, 100, total)])
    pull = Pull(root, blocks, b"".join(data))
    assert [leaf.offset for leaf in pull.wrong] == [800]


def test_a_true_guess_is_settled_as_true_and_a_seen_leaf_is_none() -> None:
    blocks: dict[Cid, bytes] = {}
    root, blocks[root] = node_of([leaf_child(blocks, bytes([n]) * 50) for n in range(4)])
    walk = Pull(root, blocks, b"".join(bytes([n]) * 50 for n in range(4))).walk
    first, second, *_ = walk.leaves()
    assert not walk.is_guess(first)
    assert walk.is_guess(second)
    assert walk.settle(second, blocks[second.cid])
    assert not walk.is_guess(second)
    assert walk.wanted() == []


def test_settling_with_a_block_of_somebody_else_is_refused() -> None:
    blocks: dict[Cid, bytes] = {}
    root, blocks[root] = node_of([leaf_child(blocks, bytes([n]) * 50) for n in range(4)])
    walk = Pull(root, blocks, b"".join(bytes([n]) * 50 for n in range(4))).walk
    with pytest.raises(BlockInvalid, match="does not hash"):
        walk.settle(walk.leaves()[1], leaf_block(b"x" * 50))


def test_a_raw_leaf_is_never_a_guess() -> None:
    root, block = node_of([raw_child(b"one"), raw_child(b"two")])
    walk = TreeWalk(root)
    walk.give(root, block)
    assert not any(walk.is_guess(leaf) for leaf in walk.leaves())


def test_a_block_that_is_not_needed_any_more_may_still_be_given() -> None:
    blocks: dict[Cid, bytes] = {}
    root, blocks[root] = node_of([leaf_child(blocks, bytes([n]) * 50) for n in range(4)])
    pull = Pull(root, blocks, b"".join(bytes([n]) * 50 for n in range(4)))
    for cid, block in blocks.items():
        pull.walk.give(cid, block)
    assert pull.walk.leaves() == pull.table


def test_before_the_first_leaf_is_seen_one_block_is_asked_for_at_a_time() -> None:
    blocks: dict[Cid, bytes] = {}
    inner = []
    for n in range(30):
        cid, blocks[cid] = node_of([leaf_child(blocks, bytes([n, m]) * 50) for m in range(5)])
        inner.append((cid, 500, None))
    root, blocks[root] = node_of(inner)
    walk = TreeWalk(root)
    rounds = []
    while wanted := walk.wanted():
        rounds.append(len(wanted))
        for cid in wanted:
            walk.give(cid, blocks[cid])
    assert rounds == [1, 1, 1, 29]


# ---- any shape -----------------------------------------------------------------------------------


def random_dag(rng: random.Random) -> tuple[Cid, dict[Cid, bytes], bytes]:
    """A sound DAG: leaf forms, Tsizes (right, 0, none, wrong), depths at will; few contents: blocks recur."""
    blocks: dict[Cid, bytes] = {}
    data = bytearray()

    def child(depth: int) -> Child:
        if depth == 0 or rng.random() < 0.4:
            piece = bytes([rng.randrange(4)]) * rng.choice([1, 7, 7, 7, 130])
            data.extend(piece)
            kind = rng.choice([None, FILE_TYPE, FILE_TYPE, RAW_TYPE])
            made = raw_child(piece) if kind is None else leaf_child(blocks, piece, kind)
        else:
            made = inner(depth)
        total = made[2] or 0
        return made[0], made[1], rng.choice([total, total, total, 0, None, total + 1, 14])

    def inner(depth: int) -> Child:
        children = [child(depth - 1) for _ in range(rng.randint(1, 4))]
        cid, blocks[cid] = node_of(children)
        return cid, sum(size for _, size, _ in children), len(blocks[cid]) + sum(total or 0 for *_, total in children)

    root, *_ = inner(4)
    return root, blocks, bytes(data)


@given(st.integers(0, 1 << 32))
@settings(max_examples=400, deadline=None)
def test_any_sound_dag_gives_back_exactly_its_file(seed: int) -> None:
    root, blocks, data = random_dag(random.Random(seed))
    Pull(root, blocks, data)
