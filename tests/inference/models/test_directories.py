"""Directories and shards: equal to the reference importer, strict about names, found and listed alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.models.cid import DAG_PB, RAW, Cid, cid_of_block
from inference.models.dagpb import total_bytes
from inference.models.directory import build_directory, build_folder, is_directory, parse_directory
from inference.models.names import check_name
from inference.models.paths import bring_with, find_entry, list_entries, list_folder, read_with, resolve_path
from inference.models.shards import build_shards, murmur3, parse_shard
from market.errors import BlockInvalid, ContentUnavailable, EncodingInvalid
from tests.inference.models.dag_kit import NOBODY, field, leaf_block, link, number

ROWS = json.loads((Path(__file__).parents[2] / "vectors" / "unixfs.json").read_text())["directories"]
FILE = (NOBODY, 1)


def raw(data: bytes) -> tuple[Cid, int]:
    return cid_of_block(RAW, data), len(data)


def files_of(row: dict) -> tuple[dict[str, tuple[Cid, int]], list[str]]:
    files = {path: raw(text.encode()) for path, text in row.get("tree", {}).items() if text is not None}
    for n in range(row.get("count", 0)):
        files[row["pattern"].format(f"{n:05d}")] = raw(bytes([row.get("byte", n % 251)]))
    if "last" in row:
        files[row["last"]] = raw(b"\x01")
    return files, [path for path, text in row.get("tree", {}).items() if text is None]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_folders_equal_the_reference_importer(row: dict) -> None:
    files, folders = files_of(row)
    dag = build_folder(files, folders)
    blocks = dict(dag.nodes)
    assert str(dag.root) == row["root"]
    assert dag.total_bytes == row["total_bytes"] == total_bytes(blocks[dag.root])
    assert len(blocks) == row["blocks"]
    assert all(cid_of_block(DAG_PB, block) == cid for cid, block in dag.nodes)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_what_was_built_is_listed_and_found(row: dict) -> None:
    files, folders = files_of(row)
    dag = build_folder(files, folders)
    blocks = dict(dag.nodes)
    listed = read_with(list_folder(dag.root), blocks.__getitem__)
    assert listed == {path: cid for path, (cid, _) in files.items()}
    for path in list(files)[:: max(1, len(files) // 20)]:
        assert read_with(resolve_path(dag.root, path), blocks.__getitem__) == files[path][0]
    with pytest.raises(ContentUnavailable, match="no entry"):
        read_with(resolve_path(dag.root, "not-there"), blocks.__getitem__)


def test_the_empty_directory_is_the_known_one() -> None:
    dag = build_directory({})
    assert str(dag.root) == "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    assert parse_directory(dag.nodes[0][1]).entries == {}
    assert dag.total_bytes == 4


async def test_a_pull_that_waits_for_blocks_reads_the_same() -> None:
    dag = build_folder({"a/b": FILE, "c": FILE})
    blocks = dict(dag.nodes)
    asked: list[Cid] = []

    async def fetch(cid: Cid) -> bytes:
        asked.append(cid)
        return blocks[cid]

    assert await bring_with(resolve_path(dag.root, "a/b"), fetch) == NOBODY
    assert len(asked) == 2
    assert await bring_with(list_entries(dag.root), fetch) == parse_directory(blocks[dag.root]).entries


def test_a_block_that_does_not_hash_is_refused_while_walking() -> None:
    dag = build_folder({"a/b": FILE, "c": FILE})
    with pytest.raises(BlockInvalid, match="does not hash"):
        read_with(resolve_path(dag.root, "a/b"), lambda _: dag.nodes[0][1])


BAD_NAMES = ["", ".", "..", "a/b", "/", "a\0b", "x" * 256, "é" * 128, "\ud800"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_bad_names_are_refused_when_building(name: str) -> None:
    with pytest.raises(EncodingInvalid, match="file name"):
        build_directory({name: FILE})


@pytest.mark.parametrize("name", [n.encode("utf-8", "surrogatepass") for n in BAD_NAMES] + [b"\xff"], ids=ascii)
def test_bad_names_are_refused_when_reading(name: bytes) -> None:
    with pytest.raises(BlockInvalid, match=r"bad entry|not UTF-8"):
        parse_directory(link(NOBODY, 1, name) + field(1, b"\x08\x01"))


@pytest.mark.parametrize("path", ["/a", "a/", "a//b", "../a", "a/./b", "/".join("a" * 33)])
def test_bad_paths_are_refused(path: str) -> None:
    with pytest.raises(EncodingInvalid):
        read_with(resolve_path(build_directory({}).root, path), lambda _: b"")
    with pytest.raises(EncodingInvalid):
        build_folder({path: FILE})


def test_names_that_look_alike_are_different_names() -> None:
    names = ["é", "e\u0301", "A", "a", "ａ"]
    entries = parse_directory(build_directory({name: raw(name.encode()) for name in names}).nodes[0][1]).entries
    assert set(entries) == set(names)


@pytest.mark.parametrize("files", [{"a": FILE, "a/b": FILE}, {"a/b": FILE, "a": FILE}], ids=["file first", "last"])
def test_a_path_that_is_a_file_and_a_folder_is_refused(files: dict[str, tuple[Cid, int]]) -> None:
    with pytest.raises(EncodingInvalid, match="at once"):
        build_folder(files)


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(BlockInvalid, match="one name"):
        parse_directory(link(NOBODY, 1, b"a") * 2 + field(1, b"\x08\x01"))


def test_a_directory_with_data_of_its_own_is_refused() -> None:
    with pytest.raises(BlockInvalid, match="data of its own"):
        parse_directory(field(1, b"\x08\x01" + field(2, b"x")))


@pytest.mark.parametrize(("kind", "word"), [(2, "a file"), (4, "symbolic link"), (5, "sharded")])
def test_what_is_no_directory_is_named(kind: int, word: str) -> None:
    with pytest.raises(BlockInvalid, match=word):
        parse_directory(field(1, bytes([8, kind])))


def test_a_symbolic_link_in_a_folder_is_refused() -> None:
    block = field(1, b"\x08\x04" + field(2, b"../../etc/passwd"))
    symlink = cid_of_block(DAG_PB, block)
    dag = build_directory({"model.gguf": (symlink, len(block))})
    with pytest.raises(BlockInvalid, match=r"'model.gguf' is a symbolic link"):
        read_with(list_folder(dag.root), {**dict(dag.nodes), symlink: block}.__getitem__)


def test_a_file_is_no_directory() -> None:
    assert not is_directory(leaf_block(b"x"))
    assert is_directory(build_directory({}).nodes[0][1])
    with pytest.raises(ContentUnavailable, match="is a file"):
        read_with(find_entry(NOBODY, "a"), lambda _: b"")
    block = leaf_block(b"x")
    with pytest.raises(BlockInvalid, match="a file where a directory"):
        read_with(find_entry(cid_of_block(DAG_PB, block), "a"), lambda _: block)


# ---- shards --------------------------------------------------------------------------------------


def test_the_hash_is_murmur3() -> None:
    assert murmur3(b"") == 0
    assert f"{murmur3(b'Hello, world!'):x}" == "f1512dd1d2d665df"
    assert f"{murmur3(b'The quick brown fox jumps over the lazy dog'):x}" == "e34bbc7bbc071b6c"


def shard_block(slots: dict[int, tuple[str, Cid]], field_bits: int | None = None, fanout: int = 256) -> bytes:
    links = b"".join(link(cid, 1, b"%02X" % slot + name.encode()) for slot, (name, cid) in sorted(slots.items()))
    bits = sum(1 << slot for slot in slots) if field_bits is None else field_bits
    data = bits.to_bytes((bits.bit_length() + 7) // 8, "big")
    return links + field(1, b"\x08\x05" + field(2, data) + b"\x28\x22\x30" + number(fanout))


def listing(root: bytes, *others: bytes) -> dict[str, Cid]:
    blocks = {cid_of_block(DAG_PB, block): block for block in (root, *others)}
    return read_with(list_entries(cid_of_block(DAG_PB, root)), blocks.__getitem__)


def test_a_name_in_the_wrong_slot_is_refused_because_a_look_up_would_miss_it() -> None:
    right = murmur3(b"a") >> 56
    assert listing(shard_block({right: ("a", NOBODY)})) == {"a": NOBODY}
    with pytest.raises(BlockInvalid, match="wrong place"):
        listing(shard_block({right ^ 1: ("a", NOBODY)}))


def test_a_bit_field_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BlockInvalid, match="bit field"):
        parse_shard(shard_block({5: ("a", NOBODY)}, field_bits=1 << 6))


def test_two_links_in_one_slot_are_refused() -> None:
    two = link(NOBODY, 1, b"05a") + link(NOBODY, 1, b"05b")
    with pytest.raises(BlockInvalid, match="twice"):
        parse_shard(two + field(1, b"\x08\x05" + field(2, b"\x20") + b"\x28\x22\x30\x80\x02"))


@pytest.mark.parametrize("prefix", [b"+5", b" 5", b"5", b"0a", b"_0", b"", b"GG", b"\xff\xff"])
def test_a_link_without_a_slot_number_is_refused(prefix: bytes) -> None:
    block = link(NOBODY, 1, prefix) + field(1, b"\x08\x05" + field(2, b"\x20") + b"\x28\x22\x30\x80\x02")
    with pytest.raises(BlockInvalid, match="slot"):
        parse_shard(block)


@pytest.mark.parametrize("fanout", [0, 1, 7, 4096])
def test_an_unusual_fanout_is_refused(fanout: int) -> None:
    with pytest.raises(BlockInvalid, match="fanout"):
        parse_shard(shard_block({}, fanout=fanout))


def test_a_chain_of_shards_deeper_than_the_hash_is_refused() -> None:
    blocks = [shard_block({})]
    for _ in range(9):
        blocks.append(shard_block({0: ("", cid_of_block(DAG_PB, blocks[-1]))}))
    with pytest.raises(BlockInvalid, match="deep"):
        listing(*reversed(blocks))
    name = "no-slot-0"
    way = [shard_block({})]
    for depth in reversed(range(9)):
        slot = murmur3(name.encode()) >> max(0, 56 - 8 * depth) & 255
        way.append(shard_block({slot: ("", cid_of_block(DAG_PB, way[-1]))}))
    known = {cid_of_block(DAG_PB, block): block for block in way}
    with pytest.raises(BlockInvalid, match="deeper than its hash"):
        read_with(find_entry(cid_of_block(DAG_PB, way[-1]), name), known.__getitem__)


def test_an_empty_shard_below_the_root_is_refused_because_it_costs_and_brings_nothing() -> None:
    empty = shard_block({})
    with pytest.raises(BlockInvalid, match="empty"):
        listing(shard_block({n: ("", cid_of_block(DAG_PB, empty)) for n in range(256)}), empty)


def test_a_folder_that_links_one_directory_again_and_again_is_stopped_by_the_count() -> None:
    dag = build_directory({f"{n}": FILE for n in range(100)})
    blocks = dict(dag.nodes)
    for _ in range(3):
        dag = build_directory({f"{n}": (dag.root, dag.total_bytes) for n in range(100)})
        blocks |= dict(dag.nodes)
    with pytest.raises(BlockInvalid, match="more than 50000"):
        read_with(list_folder(dag.root), blocks.__getitem__)


def test_a_folder_deeper_than_the_limit_is_refused() -> None:
    dag, blocks = build_directory({}), {}
    for _ in range(40):
        blocks |= dict(dag.nodes)
        dag = build_directory({"a": (dag.root, dag.total_bytes)})
    with pytest.raises(BlockInvalid, match="deeper than 32"):
        read_with(list_folder(dag.root), {**blocks, **dict(dag.nodes)}.__getitem__)


def test_too_many_entries_are_refused_in_plain_words() -> None:
    with pytest.raises(EncodingInvalid, match="over the limit of 50000") as refused:
        build_directory({f"{n}": FILE for n in range(50_001)})
    assert refused.value.next_step


good_names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and "/" not in name and "\0" not in name
)


@given(st.dictionaries(good_names, st.binary(max_size=3), max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_names_are_read_back_from_one_block_and_from_shards(contents: dict[str, bytes]) -> None:
    entries = {name: raw(data) for name, data in contents.items()}
    expected = {name: cid for name, (cid, _) in entries.items()}
    plain = build_directory(entries)
    root, nodes, _ = build_shards([(check_name(name), *entry) for name, entry in entries.items()])
    for top, blocks in ((plain.root, dict(plain.nodes)), (root, dict(nodes))):
        assert read_with(list_entries(top), blocks.__getitem__) == expected
        for name, cid in expected.items():
            assert read_with(find_entry(top, name), blocks.__getitem__) == cid
