"""Walking somebody else's file DAG without trusting it: from a root to the table of leaves.

Lives here: the rules of a sound DAG, their limits, and the order in which to ask for blocks. Any UnixFS file is
read: balanced or trickle, raw or dag-pb leaves, one block or many. Pure; knows no store and no network.
Sources: https://specs.ipfs.tech/unixfs/ .
"""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from inference.models import dagpb
from inference.models.cid import BLOCK_LIMIT_BYTES, DAG_PB, RAW, Cid, check_block
from inference.models.dagpb import varint
from inference.models.unixfs import Leaf
from market.errors import BlockInvalid
from market.values import value

DEPTH_LIMIT = 8
LEAVES_LIMIT = 1 << 20
"""1 TiB in 1 MiB leaves, 256 GiB in 256 KiB ones. Bounds the memory that a hostile root can make us spend."""

_SMALL_LEAVES = 1 << 16


class FileLink(NamedTuple):
    """`size_bytes` of the file lie below `cid`; `total_bytes` is its Tsize, if there is one."""

    cid: Cid
    size_bytes: int
    total_bytes: int | None


@value
class FileNode:
    """One parsed node, links in file order. A leaf has none: `head` and `tail` lie around its bytes in the block."""

    size_bytes: int
    links: tuple[FileLink, ...]
    head: bytes = b""
    tail: bytes = b""


def parse_node(block: bytes) -> FileNode:
    """One dag-pb node of a file, strictly: links with sizes that sum, or inline data, not both. Raises BlockInvalid."""
    links, unixfs = dagpb.parse_block(block)
    if unixfs.kind not in (dagpb.FILE, dagpb.BYTES):
        raise BlockInvalid(f"a block is {dagpb.KINDS[unixfs.kind]} where a file is expected.")
    start, end = unixfs.data
    if not links:
        if unixfs.sizes or unixfs.size not in (None, end - start):
            raise BlockInvalid(f"a file node without links holds {end - start} bytes and says otherwise.")
        return FileNode(size_bytes=end - start, links=(), head=block[:start] or block, tail=block[end:] if end else b"")
    if start != end:
        raise BlockInvalid("a file node with both inline data and links is not supported: no importer writes one.")
    sizes, total = unixfs.sizes, unixfs.size
    if unixfs.kind != dagpb.FILE or len(sizes) != len(links) or any(link.name for link in links):
        raise BlockInvalid(f"a file node has {len(links)} links, {len(sizes)} sizes, or names where none belong.")
    if total is None or sum(sizes) != total or 0 in sizes:
        raise BlockInvalid(f"a file node says {total} bytes, its links sum to {sum(sizes)}, and none may be empty.")
    return FileNode(
        size_bytes=total,
        links=tuple(FileLink(link.cid, size, link.total_bytes) for link, size in zip(links, sizes, strict=True)),
    )


class _Place(NamedTuple):
    """Where a block belongs that is not here yet; the root's size may be unknown."""

    offset: int
    size: int | None
    depth: int
    total: int | None


class TreeWalk:
    """The leaf table of a DAG, grown from verified blocks.

    Protocol: while `wanted()` is not empty, bring those blocks and `give` them; then `leaves()` is the table, and
    `nodes` the inner nodes to keep (give them again to resume). What one block says can make others needless;
    those may still be given.

    **dag-pb leaves.** Only their blocks could prove how the protobuf around the bytes looks, and bringing them all
    would be the whole download twice. So the first one is brought; the protobuf around all others is computed, as
    any importer would write it, wherever a link's Tsize agrees. Their digests decide in the end:

    - Bytes do not match a leaf: if `is_guess(leaf)` is False, whoever sent them lied. If it is True, bring the block
      `leaf.cid` from anyone, check it, and call `settle(leaf, block)`.
    - `settle` True: the guess was right, the sender of the bytes lied.
    - `settle` False: the table was made anew without guessing (once at most in a walk's life). Go on with `wanted()`
      and take `leaves()` again. Bytes of the file that matched stay where they are; numbers of leaves may change.

    Limits: 2 MiB a block, `DEPTH_LIMIT` levels, `LEAVES_LIMIT` blocks; sizes count down from the root and no child
    may be empty, so the table cannot outgrow what the root declares; tiny leaves are bounded besides.
    """

    def __init__(self, root: Cid, *, size_bytes: int | None = None, limit_bytes: int = 1 << 42) -> None:
        if root.codec != DAG_PB:
            raise BlockInvalid(f"{root} is not the root of a tree.")
        self.size_bytes = size_bytes
        self.nodes: dict[Cid, bytes] = {}
        self._root = root
        self._limit_bytes = limit_bytes
        self._around: dict[Cid, tuple[int, bytes, bytes]] = {}
        self._kind: int | None = None
        self._largest = 0
        self._guessing, self._leaf_seen = True, False
        self._spare: dict[int, tuple[bytes, bytes]] = {}
        self._parse = lru_cache(maxsize=16)(parse_node)  # a node that is linked many times is parsed once
        self._pending: dict[Cid, list[_Place]] = {}
        self._leaves: list[Leaf] = []
        self._start()

    def wanted(self, limit: int = 64) -> list[Cid]:
        """Up to `limit` blocks to bring next; one at a time, straight down, until the first leaf was seen."""
        if self._leaf_seen or not self._pending:
            return list(islice(self._pending, limit))
        return [max(self._pending, key=lambda cid: self._pending[cid][0].depth)]

    def give(self, cid: Cid, block: bytes) -> None:
        """Raises BlockInvalid for a block that does not hash to `cid` or breaks the tree's rules."""
        if len(block) > BLOCK_LIMIT_BYTES:
            raise BlockInvalid(f"a block of {len(block)} bytes is over the limit of {BLOCK_LIMIT_BYTES}.")
        check_block(cid, block)
        if cid not in self._pending:
            return
        node = parse_node(block)
        if not node.links:
            self._around[cid] = (node.size_bytes, node.head, node.tail)
        else:
            self.nodes[cid] = block
        for place in self._pending.pop(cid):
            if place.size is None:
                self._check_root(node.size_bytes)
            self._put(cid, node, place)
        if not node.links and self._learn(node):
            waiting, self._pending = self._pending, {}
            for other, places in waiting.items():
                for place in places:
                    self._want(other, place)

    def leaves(self) -> list[Leaf]:
        """All leaves in file order; call it when nothing is wanted any more."""
        return sorted(self._leaves)

    def is_guess(self, leaf: Leaf) -> bool:
        """True if the protobuf around a leaf was computed, not seen."""
        return bool(leaf.head) and self._around.get(leaf.cid) != (leaf.length, leaf.head, leaf.tail)

    def settle(self, leaf: Leaf, block: bytes) -> bool:
        """Was the guess about `leaf` right? `block` is what `leaf.cid` stands for. Raises BlockInvalid as `give`."""
        check_block(leaf.cid, block)
        node = parse_node(block)
        if not node.links:
            self._around[leaf.cid] = (node.size_bytes, node.head, node.tail)
            if (node.size_bytes, node.head, node.tail) == (leaf.length, leaf.head, leaf.tail):
                return True
        else:
            self.nodes[leaf.cid] = block
        self._guessing = False
        self._start()
        return False

    def _start(self) -> None:
        """(Re)make the table from the root with all that is known."""
        self._pending, self._leaves, self._positions = {}, [], 1
        self._want(self._root, _Place(0, self.size_bytes, 1, None))

    def _check_root(self, size: int) -> None:
        if size > self._limit_bytes:
            raise BlockInvalid(f"a file of {size} bytes is over the limit of {self._limit_bytes}.")
        self.size_bytes = size

    def _learn(self, leaf: FileNode) -> bool:
        """Remember how this DAG's leaves look; True if that lets us guess more than before.

        The largest counts only when it doubles: leaves that grow byte by byte must not cost a pass over all each.
        """
        self._leaf_seen = True
        before = self._kind, self._largest
        if leaf.size_bytes >= 2 * self._largest:
            self._largest = leaf.size_bytes
        for kind in (dagpb.FILE, dagpb.BYTES):
            if (leaf.head, leaf.tail) == _protobuf_around(kind, leaf.size_bytes):
                self._kind = kind
        return self._guessing and (self._kind, self._largest) != before

    def _guess(self, place: _Place) -> tuple[bytes, bytes] | None:
        """The protobuf around a leaf that was not seen, or None: this may be an inner node, so bring it."""
        if self._kind is None or not self._guessing or place.size is None or place.size > BLOCK_LIMIT_BYTES:
            return None
        around = self._spare.get(place.size)
        if around is None:
            around = self._spare[place.size] = _protobuf_around(self._kind, place.size)
        total = len(around[0]) + place.size + len(around[1])
        if total > BLOCK_LIMIT_BYTES:
            return None
        if not place.total:  # some writers leave Tsize out or say 0
            return around if place.size <= self._largest else None
        return around if place.total == total else None

    def _want(self, cid: Cid, place: _Place) -> None:
        """A dag-pb block belongs here: use it if it was seen, guess it if it looks like a leaf, else ask for it."""
        if cid in self.nodes:
            self._put(cid, self._parse(self.nodes[cid]), place)
        elif cid in self._around:
            size, head, tail = self._around[cid]
            self._put(cid, FileNode(size_bytes=size, links=(), head=head, tail=tail), place)
        elif around := self._guess(place):
            self._leaves.append(Leaf(place.offset, place.size or 0, cid.digest, *around))
        else:
            self._pending.setdefault(cid, []).append(place)

    def _put(self, cid: Cid, node: FileNode, place: _Place) -> None:
        offset, size, depth, _ = place
        if size not in (None, node.size_bytes):
            raise BlockInvalid(f"{cid} holds {node.size_bytes} bytes where {size} were announced.")
        if not node.links:
            self._leaves.append(Leaf(offset, node.size_bytes, cid.digest, node.head, node.tail))
            return
        self._count(len(node.links))
        for link in node.links:
            if link.cid.codec == RAW:
                if link.size_bytes > BLOCK_LIMIT_BYTES:
                    raise BlockInvalid(f"a leaf of {link.size_bytes} bytes is over the limit of {BLOCK_LIMIT_BYTES}.")
                self._leaf_seen = True
                self._leaves.append(Leaf(offset, link.size_bytes, link.cid.digest))
            elif link.cid.codec == DAG_PB and depth < DEPTH_LIMIT:
                self._want(link.cid, _Place(offset, link.size_bytes, depth + 1, link.total_bytes))
            else:
                raise BlockInvalid(f"{link.cid} is deeper than {DEPTH_LIMIT} levels, or not a part of a file.")
            offset += link.size_bytes

    def _count(self, links: int) -> None:
        """Stop a small block that stands for many: 65,000 places always, then 1 KiB of file for each."""
        self._positions += links
        limit = min(LEAVES_LIMIT + LEAVES_LIMIT // 64, _SMALL_LEAVES + (self.size_bytes or 0) // 1024)
        if self._positions > limit:
            raise BlockInvalid(f"a DAG of more than {limit} blocks for {self.size_bytes} bytes is refused.")


def _protobuf_around(kind: int, size: int) -> tuple[bytes, bytes]:
    """Head and tail of a dag-pb leaf of `size` bytes as importers write it: type, data, filesize."""
    prefix = bytes((0x08, kind)) + (b"\x12" + varint(size) if size else b"")
    tail = b"\x18" + varint(size)
    return b"\x0a" + varint(len(prefix) + size + len(tail)) + prefix, tail
