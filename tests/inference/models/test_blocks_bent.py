"""Valid blocks, bent at random: they say what they said, or something sound, or BlockInvalid; never anything else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.models import dagpb
from inference.models.cid import DAG_PB, RAW, Cid, cid_of_block
from inference.models.directory import build_directory, is_directory, parse_directory
from inference.models.names import check_name
from inference.models.paths import list_entries, read_with
from inference.models.shards import build_shards, parse_shard
from inference.models.unixfs import Leaf, build_tree
from inference.models.walk import TreeWalk, parse_node
from market.errors import BlockInvalid
from tests.inference.models.dag_kit import field, leaf_block, node_block

CIDS = [cid_of_block(RAW, bytes([n])) for n in range(5)]
NAMED = {f"name-{n}": (cid, n) for n, cid in enumerate(CIDS)}
VALID = {
    "file": build_tree([Leaf(n * 300, 300, hashlib.sha256(bytes([n])).digest()) for n in range(5)]).nodes[0][1],
    "file with time and mode": node_block([(CIDS[0], 5, 5)], more=b"\x38\xa4\x03" + field(8, b"\x08\x05")),
    "leaf": leaf_block(b"twenty bytes of data"),
    "raw leaf": leaf_block(b"x" * 200, kind=0),
    "empty": leaf_block(b""),
    "directory": build_directory(NAMED).nodes[0][1],
    "shard": build_shards([(check_name(name), *entry) for name, entry in NAMED.items()])[1][-1][1],
}


@st.composite
def bent(draw: st.DrawFn) -> bytes:
    """One valid block, with up to four bytes or runs changed, removed, doubled or taken from another."""
    block = bytearray(VALID[draw(st.sampled_from(sorted(VALID)))])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(block)))
        run = draw(st.integers(0, 12))
        kind = draw(st.sampled_from(["flip", "cut", "double", "insert", "graft"]))
        if kind == "flip" and at < len(block):
            block[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del block[at : at + run]
        elif kind == "double":
            block[at:at] = block[at : at + run]
        elif kind == "insert":
            block[at:at] = draw(st.binary(max_size=12))
        elif kind == "graft":
            other = VALID[draw(st.sampled_from(sorted(VALID)))]
            start = draw(st.integers(0, len(other)))
            block[at : at + run] = other[start : start + 50]
    return bytes(block)


def or_invalid(read: Callable[[bytes], object], block: bytes) -> object:
    try:
        return read(block)
    except BlockInvalid:
        return None


@given(bent())
@settings(max_examples=800, deadline=None)
def test_a_bent_block_is_sound_or_refused(block: bytes) -> None:
    node = or_invalid(parse_node, block)
    if node is not None:
        assert node.head + block[len(node.head) : len(block) - len(node.tail)] + node.tail == block or node.links
        assert node.size_bytes == (
            sum(link.size_bytes for link in node.links) if node.links else len(block) - len(node.head) - len(node.tail)
        )
        assert all(link.size_bytes > 0 for link in node.links)
    directory = or_invalid(parse_directory, block)
    if directory is not None:
        for name in directory.entries:
            check_name(name)
    shard = or_invalid(parse_shard, block)
    if shard is not None:
        assert all(0 <= slot < 1 << shard.bits for slot in shard.slots)
    assert sum(found is not None for found in (node, directory, shard)) <= 1
    or_invalid(is_directory, block)
    or_invalid(dagpb.total_bytes, block)


@given(bent())
@settings(max_examples=300, deadline=None)
def test_a_walk_or_listing_that_begins_with_a_bent_block_ends_well(block: bytes) -> None:
    root = cid_of_block(DAG_PB, block)

    def walk(block: bytes) -> list[Leaf]:
        tree = TreeWalk(root, limit_bytes=1 << 30)
        tree.give(root, block)
        return tree.leaves()

    def nobody(cid: Cid) -> bytes:
        if cid == root:
            return block
        raise BlockInvalid("nobody has it")

    or_invalid(walk, block)
    or_invalid(lambda _: read_with(list_entries(root), nobody), block)


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_garbage_is_refused_and_never_crashes(data: bytes) -> None:
    for read in (parse_node, parse_directory, parse_shard):
        or_invalid(read, data)


@pytest.mark.parametrize("what", sorted(VALID))
def test_every_valid_block_has_one_encoding(what: str) -> None:
    """A byte that is cut off at the end, or one too many, is noticed; so is a number in a longer form."""
    block = VALID[what]
    reads = [parse_node, parse_directory, parse_shard]
    assert sum(or_invalid(read, block) is not None for read in reads) == 1
    for other in (block[:-1], block + b"\0", block + b"\x0a\x00", block[:1] + bytes([block[1] | 0x80, 0]) + block[2:]):
        assert [or_invalid(read, other) for read in reads] == [None] * 3


def test_a_full_node_of_a_thousand_links_of_any_kind_is_read() -> None:
    block = node_block([(CIDS[n % 5], 1 + n, None if n % 2 else n) for n in range(1024)])
    assert len(parse_node(block).links) == 1024


def test_both_orders_of_a_nodes_fields_are_read_but_not_a_mixture() -> None:
    block = VALID["file"]
    cut = block.rindex(b"\x0a" + bytes([len(block) - block.rindex(b"\x08\x02\x18")]))
    links, data = block[:cut], block[cut:]
    assert parse_node(data + links) == parse_node(links + data)
    one = links[: len(links) // 5]
    with pytest.raises(BlockInvalid, match="does not belong"):
        parse_node(one + data + links[len(one) :])


LINK = field(1, CIDS[0].binary)
FILE = b"\x08\x02"


@pytest.mark.parametrize(
    "block",
    [
        field(1, FILE + field(2, b"a") + b"\x18\x01") * 2,
        field(1, FILE + field(2, b"a") + field(2, b"b")),
        field(1, FILE + FILE + field(2, b"a")),
        field(1, FILE + b"\x18\x01" + b"\x18\x01" + field(2, b"a")),
        field(1, FILE + field(8, b"") + field(8, b"") + field(2, b"a")),
        field(1, FILE + field(2, b"a") + b"\x48\x01"),
        field(1, b"\x08\x06" + field(2, b"a")),
        field(1, field(2, b"a")),
        field(2, LINK + b"\x18\x01" + b"\x18\x01") + field(1, FILE + b"\x18\x01\x20\x01"),
        field(2, LINK + b"\x18\x01" + field(2, b"")) + field(1, FILE + b"\x18\x01\x20\x01"),
        field(2, LINK + field(4, b"x")) + field(1, FILE + b"\x18\x01\x20\x01"),
        field(2, LINK[:-1]) + field(1, FILE + b"\x18\x01\x20\x01"),
        field(2, b"") + field(1, FILE + b"\x18\x01\x20\x01"),
        field(2, LINK) + field(1, FILE + b"\x18\x02\x20\x01\x20\x01"),
        field(2, LINK + field(2, b"named")) + field(1, FILE + b"\x18\x01\x20\x01"),
        field(2, LINK) + field(1, b"\x08\x00\x18\x01\x20\x01"),
        field(3, b"") + field(1, FILE + field(2, b"a")),
        b"",
    ],
    ids=[
        *("data twice", "bytes twice", "type twice", "size twice", "time twice", "unknown number", "unknown type"),
        *("no type", "tsize twice", "name after tsize", "unknown in link", "torn cid", "empty link", "too many sizes"),
        *("named link", "raw type with links", "unknown in node", "nothing"),
    ],
)
def test_what_is_repeated_unknown_or_torn_is_refused(block: bytes) -> None:
    with pytest.raises(BlockInvalid):
        parse_node(block)


def test_packed_block_sizes_are_read() -> None:
    block = node_block([(CIDS[0], 5, 5), (CIDS[1], 6, 6)])
    packed = block.replace(b"\x20\x05\x20\x06", b"\x22\x02\x05\x06")
    assert packed != block
    assert parse_node(packed).size_bytes == 11
