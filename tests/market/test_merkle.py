"""RFC 6962 trees: golden roots and proofs, and no proof for what is not there."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.merkle import EMPTY_ROOT, Peaks, check_proof, leaf_hash, node_hash, prove, root_of

GOLDEN = json.loads((Path(__file__).parent.parent / "vectors" / "merkle.json").read_text(encoding="utf-8"))["trees"]
leaf_lists = st.lists(st.binary(max_size=4), min_size=1, max_size=40)


@pytest.mark.parametrize("tree", GOLDEN, ids=lambda tree: f"{len(tree['leaves'])} leaves")
def test_golden_roots_and_proofs_are_reproduced(tree: dict[str, list[str]]) -> None:
    leaves = [bytes.fromhex(leaf) for leaf in tree["leaves"]]
    assert root_of(leaves).hex() == tree["root"]
    assert [[step.hex() for step in prove(leaves, index)] for index in range(len(leaves))] == tree["proofs"]


def test_the_published_roots_of_certificate_transparency_are_reproduced() -> None:
    """The reference implementation's own test data: eight leaves and its roots of 1, 2 and 8 of them."""
    assert GOLDEN[1]["root"] == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert GOLDEN[2]["root"] == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert GOLDEN[8]["root"] == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def recursive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1 word for word."""
    if len(leaves) < 2:
        return leaf_hash(leaves[0]) if leaves else EMPTY_ROOT
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(recursive_root(leaves[:split]), recursive_root(leaves[split:]))


@given(leaf_lists)
def test_appending_one_by_one_gives_the_root_of_the_whole(leaves: list[bytes]) -> None:
    tree = Peaks()
    for count, leaf in enumerate(leaves, 1):
        tree = tree.append(leaf)
        assert tree.root() == recursive_root(leaves[:count])
    assert tree == Peaks().extend(leaves)
    assert len(tree.hashes) == bin(len(leaves)).count("1")


@given(leaf_lists, st.data())
def test_every_leaf_has_a_proof_and_it_fits_nothing_else(leaves: list[bytes], data: st.DataObject) -> None:
    size, root = len(leaves), root_of(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = prove(leaves, index)
    assert check_proof(leaves[index], index=index, size=size, proof=proof, root=root)
    assert not check_proof(leaves[index] + b"!", index=index, size=size, proof=proof, root=root)
    assert not check_proof(leaves[index], index=index, size=size, proof=(*proof, bytes(32)), root=root)
    assert not check_proof(leaves[index], index=index, size=size, proof=proof, root=leaf_hash(root))
    if proof:
        assert not check_proof(leaves[index], index=index, size=size, proof=proof[:-1], root=root)
        at = data.draw(st.integers(0, len(proof) - 1))
        bent = (*proof[:at], leaf_hash(proof[at]), *proof[at + 1 :])
        assert not check_proof(leaves[index], index=index, size=size, proof=bent, root=root)


@given(st.integers(2, 40), st.data())
def test_a_proof_names_its_place(size: int, data: st.DataObject) -> None:
    leaves = [bytes((number,)) for number in range(size)]
    index, other = data.draw(st.integers(0, size - 1)), data.draw(st.integers(-2, size + 2))
    fits = check_proof(leaves[index], index=other, size=size, proof=prove(leaves, index), root=root_of(leaves))
    assert fits == (other == index)


def test_an_inner_node_cannot_pose_as_a_leaf() -> None:
    """Leaves and nodes hash under different prefixes (RFC 6962 2.1): else a tree of two has the root of one."""
    left, right = b"left", b"right"
    inner = leaf_hash(left) + leaf_hash(right)
    assert root_of([inner]) != root_of([left, right])


def test_no_leaves_have_the_hash_of_nothing_and_no_proof_fits_them() -> None:
    assert Peaks().root() == root_of([]) == EMPTY_ROOT
    assert not check_proof(b"", index=0, size=0, proof=(), root=EMPTY_ROOT)
