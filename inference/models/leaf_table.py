"""The leaves of a stored file, from its inner nodes and from where the index says that they lie.

Lives here: reading the nodes in file order, and noticing when the index does not fit them. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from inference.models.cid import RAW, Cid, check_block
from inference.models.unixfs import Leaf
from inference.models.walk import DEPTH_LIMIT, parse_node
from market.errors import BlockInvalid


class Span(NamedTuple):
    """`length` bytes of a file at `offset`, between `head` and `tail` in the leaf's block."""

    offset: int
    length: int
    head: bytes
    tail: bytes


def leaf_table(root: Cid, spans: Sequence[Span], nodes: Mapping[Cid, bytes]) -> list[Leaf]:
    """Every leaf in file order. Raises BlockInvalid if nodes and spans do not fit, or do not lead to `root`."""
    leaves: list[Leaf] = []
    end = 0
    for cid, size in _leaves_below(root, None, nodes, DEPTH_LIMIT):
        if len(leaves) == len(spans):
            raise BlockInvalid(f"the index of {root} lacks leaves from offset {end} on.")
        leaf = Leaf(spans[len(leaves)].offset, spans[len(leaves)].length, cid.digest, *spans[len(leaves)][2:])
        if leaf.offset != end or size not in (None, leaf.length) or (cid.codec == RAW) == bool(leaf.head):
            raise BlockInvalid(f"the index of {root} has another leaf at offset {end} than its nodes say.")
        leaves.append(leaf)
        end += leaf.length
    if len(leaves) != len(spans):
        raise BlockInvalid(f"the index of {root} holds leaves that do not belong to it.")
    return leaves


def _leaves_below(
    cid: Cid, size: int | None, nodes: Mapping[Cid, bytes], depth: int
) -> Iterator[tuple[Cid, int | None]]:
    if cid not in nodes:
        yield cid, size
        return
    if not depth:
        raise BlockInvalid(f"{cid} lies deeper than {DEPTH_LIMIT} levels.")
    check_block(cid, nodes[cid])
    for link in parse_node(nodes[cid]).links:
        yield from _leaves_below(link.cid, link.size_bytes, nodes, depth - 1)
