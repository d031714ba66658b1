"""RFC 6962 Merkle trees with SHA-256, append-only in O(log n) state.

Source: RFC 6962 section 2.1. Used for transcripts and for the receipts that a voucher pays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from market.values import value

EMPTY_ROOT = hashlib.sha256().digest()


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


@value
class Peaks:
    """The roots of the perfect subtrees, largest first: all that is needed to append and to know the root."""

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def append(self, leaf: bytes) -> Peaks:
        """A new tree with `leaf` (raw data, hashed here) at its end."""
        hashes, size, carry = list(self.hashes), self.size, leaf_hash(leaf)
        while size & 1:
            carry = node_hash(hashes.pop(), carry)
            size >>= 1
        hashes.append(carry)
        return Peaks(size=self.size + 1, hashes=tuple(hashes))

    def extend(self, leaves: Sequence[bytes]) -> Peaks:
        tree = self
        for leaf in leaves:
            tree = tree.append(leaf)
        return tree

    def root(self) -> bytes:
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for peak in reversed(self.hashes[:-1]):
            root = node_hash(peak, root)
        return root


def root_of(leaves: Sequence[bytes]) -> bytes:
    return Peaks().extend(leaves).root()


def prove(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The audit path of leaf `index`, from the bottom up (RFC 6962 section 2.1.1)."""
    if len(leaves) == 1:
        return ()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return (*prove(leaves[:split], index), root_of(leaves[split:]))
    return (*prove(leaves[split:], index - split), root_of(leaves[:split]))


def check_proof(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `leaf` stands at `index` of the `size` leaves under `root` (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    node, last, computed = index, size - 1, leaf_hash(leaf)
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            computed = node_hash(sibling, computed)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            computed = node_hash(computed, sibling)
        node >>= 1
        last >>= 1
    return last == 0 and computed == root
