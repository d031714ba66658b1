"""DAGs written by hand, as other importers and attackers would, and a pull without network or disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from inference.models.cid import DAG_PB, RAW, Cid, cid_of_block
from inference.models.unixfs import Leaf
from inference.models.walk import TreeWalk

FILE_TYPE, RAW_TYPE = 2, 0

Child = tuple[Cid, int, int | None]
"""CID, bytes of the file below, Tsize."""


def number(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(tag: int, data: bytes) -> bytes:
    return bytes([tag << 3 | 2]) + number(len(data)) + data


def link(cid: Cid, total: int | None, name: bytes = b"") -> bytes:
    return field(2, field(1, cid.binary) + field(2, name) + (b"" if total is None else b"\x18" + number(total)))


def leaf_block(data: bytes, kind: int = FILE_TYPE, more: bytes = b"") -> bytes:
    """A dag-pb leaf; `more` follows in the UnixFS message."""
    inline = field(2, data) if data else b""
    return field(1, bytes([8, kind]) + inline + b"\x18" + number(len(data)) + more)


def node_block(children: Sequence[Child], more: bytes = b"") -> bytes:
    """A file node: links, then type, filesize and block sizes; `more` follows."""
    sizes = [size for _, size, _ in children]
    inner = b"\x08\x02\x18" + number(sum(sizes)) + b"".join(b"\x20" + number(size) for size in sizes) + more
    return b"".join(link(cid, total) for cid, _, total in children) + field(1, inner)


def node_of(children: Sequence[Child]) -> tuple[Cid, bytes]:
    block = node_block(children)
    return cid_of_block(DAG_PB, block), block


def raw_child(data: bytes) -> Child:
    return cid_of_block(RAW, data), len(data), len(data)


NOBODY = Cid(codec=RAW, digest=bytes(32))


class Pull:
    """Walks `root` with `blocks`, checks each leaf against `data` as a fetcher would, and settles what does not fit.

    `brought` are the CIDs that were asked for as blocks, `wrong` the guesses that were not right.
    """

    def __init__(self, root: Cid, blocks: Mapping[Cid, bytes], data: bytes, *, announced: int | None = None) -> None:
        self.walk = TreeWalk(root, size_bytes=announced)
        self.brought: list[Cid] = []
        self.wrong: list[Leaf] = []
        self._blocks = blocks
        self.table = self._table()
        for leaf in list(self.table):
            if not leaf.matches(data[leaf.offset : leaf.offset + leaf.length]):
                assert self.walk.is_guess(leaf), "a leaf that was seen does not match"
                if not self.walk.settle(leaf, blocks[leaf.cid]):
                    self.wrong.append(leaf)
                    break
        if self.wrong:
            self.table = self._table()
        for leaf in self.table:
            piece = data[leaf.offset : leaf.offset + leaf.length]
            assert leaf.matches(piece)
            assert hashlib.sha256(leaf.block(piece)).digest() == leaf.digest == leaf.cid.digest
            assert leaf.cut(leaf.block(piece)) == piece
        at = 0
        for leaf in self.table:
            assert leaf.offset == at
            at += leaf.length
        assert at == len(data) == self.walk.size_bytes

    def _table(self) -> list[Leaf]:
        while wanted := self.walk.wanted():
            for cid in wanted:
                self.brought.append(cid)
                self.walk.give(cid, self._blocks[cid])
        return self.walk.leaves()
