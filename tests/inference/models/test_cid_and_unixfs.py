"""CIDs and UnixFS: equal to the reference importer, and strict about what others send."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.models.cid import DAG_CBOR, DAG_PB, RAW, cid_from_binary, cid_of_block, parse_cid
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
from tests.inference.models.store_kit import seeded

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


@pytest.mark.heavy
@pytest.mark.parametrize("row", VECTORS["heavy_files"], ids=lambda row: str(row["size"]))
def test_the_root_of_a_large_file_equals_the_reference_importers(row: dict, tmp_path: Path) -> None:
    test_roots_equal_the_reference_importer_in_both_profiles(row, tmp_path)


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


V0, V1 = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "bafybeie5nqv6kd3qnfjupgvz34woh3oksc3iau6abmyajn7qvtf6d2ho34"


def test_a_cid_of_version_0_is_read_and_becomes_version_1() -> None:
    cid = parse_cid(V0)
    assert str(cid) == V1
    assert cid == parse_cid(V1) == cid_from_binary(b"\x12\x20" + cid.digest)
    assert cid.codec == DAG_PB


def test_a_cid_of_version_0_with_one_other_character_is_another_or_none() -> None:
    for at in range(len(V0)):
        for other in "1Zz0OIl é":
            text = V0[:at] + other + V0[at + 1 :]
            try:
                assert parse_cid(text) != parse_cid(V0) or text == V0
            except EncodingInvalid:
                continue


@given(st.sampled_from([RAW, DAG_PB, DAG_CBOR]), st.binary(min_size=32, max_size=32))
def test_every_cid_survives_its_text(codec: int, digest: bytes) -> None:
    cid = cid_from_binary(bytes((1, codec, 0x12, 0x20)) + digest)
    assert parse_cid(str(cid)) == cid


@pytest.mark.parametrize(
    ("binary", "what"),
    [
        (b"\x01\x55\x00\x04abcd", "identity hash"),
        (b"\x01\x78\x12\x20" + bytes(32), "git codec"),
        (b"\x01\x55\x1b\x20" + bytes(32), "keccak-256"),
        (b"\x00\x70\x12\x20" + bytes(32), "version 0 with a codec"),
        (b"\x12\x20" + bytes(31), "short"),
        (b"", "nothing"),
    ],
)
def test_other_hashes_and_codecs_are_refused(binary: bytes, what: str) -> None:
    with pytest.raises(EncodingInvalid, match="sha2-256"):
        cid_from_binary(binary)


def test_the_refusal_says_what_is_accepted() -> None:
    with pytest.raises(EncodingInvalid) as refused:
        parse_cid("zdj7WhuEjrB52m1BisYCtmjH1hSKa7yZ3jEZ9JcXaFRD51wVz")
    assert "base32" in str(refused.value.next_step)
    assert "Qm" in str(refused.value.next_step)


def test_no_file_is_cut_into_blocks_that_nobody_carries() -> None:
    with pytest.raises(ValueError, match="cut"):
        Profile(name="huge", leaf_bytes=2 * 1024 * 1024 + 1, width=174)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbd0",
        "Qm" + "z" * 44,
        "Qm" + "1" * 44,
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
