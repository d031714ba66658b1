"""Manifests: what is signed is what is read, and nothing odd gets in."""

from __future__ import annotations

import hashlib
from typing import Any

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.models.cid import DAG_CBOR, DAG_PB, RAW, cid_of_block
from inference.models.filenames import check_file_name, check_file_names
from inference.models.manifest import (
    FILES_LIMIT,
    Format,
    HardwareNeeds,
    Manifest,
    ModelFile,
    Role,
    SignedManifest,
    SpecialTokens,
    check_manifest,
    manifest_cid,
    read_manifest,
    sign_manifest,
)
from market.errors import EncodingInvalid, SignatureInvalid
from market.signing import TypedStruct
from market.values import encode
from tests.inference.models.model_kit import CREATOR, STRANGER, a_cid, a_file, a_manifest


def signed_by_hand(body: bytes) -> SignedManifest:
    """`sign_manifest` would refuse what is wrong with it."""
    digest = TypedStruct("ModelManifest(bytes32 body)").digest("octo/models", 0, hashlib.sha256(body).digest())
    return SignedManifest(body=body, signature=CREATOR.sign_digest(digest))


def test_a_signed_manifest_reads_back_and_its_cid_is_that_of_its_block() -> None:
    signed = sign_manifest(a_manifest(), CREATOR)
    assert read_manifest(signed.encoded()) == a_manifest()
    assert signed_by_hand(signed.body) == signed
    assert manifest_cid(signed) == str(cid_of_block(DAG_CBOR, signed.encoded()))
    assert manifest_cid(sign_manifest(a_manifest(), CREATOR)) == manifest_cid(signed)


LETTERS = "abcXYZ019"
words = st.text(LETTERS + " ._+/-", max_size=20).map(lambda rest: "w" + rest)
names = st.text(LETTERS + "_+-", max_size=20).map(lambda rest: "N" + rest)
cids = st.tuples(st.sampled_from([RAW, DAG_PB]), st.binary(max_size=8)).map(lambda pair: str(cid_of_block(*pair)))
bytes_ = st.integers(0, 2**53 - 1)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    roots = draw(st.dictionaries(cids, st.integers(1, 65536), min_size=1, max_size=6))
    listed = draw(st.lists(st.sampled_from(sorted(roots)), min_size=1, max_size=6))
    many = [Role.CONFIG, Role.VOCABULARY, Role.ADAPTER, Role.EXTRA, Role.WEIGHTS]
    files = [
        ModelFile(
            role=Role.WEIGHTS if n == 0 else draw(st.sampled_from(many)),
            name=f"{n}/{draw(names)}",
            cid=cid,
            size_bytes=roots[cid],
        )
        for n, cid in enumerate(listed)
    ]
    return a_manifest(
        name=draw(names),
        version=draw(st.sampled_from(["0.0.0", "1.2.3-rc.1", "999999999.0.1"])),
        files=tuple(files),
        directory=draw(st.sampled_from(["", str(cid_of_block(DAG_PB, b"d"))])),
        format=draw(st.sampled_from([form for form in Format if form not in (Format.REMOTE, Format.VOICE)])),
        quantisation=draw(words),
        licence=draw(words),
        modality=draw(words),
        context=draw(st.integers(0, 1 << 24)),
        parent=draw(st.sampled_from(["", a_cid("p")])),
        source=draw(st.text(max_size=100)),
        needs=HardwareNeeds(
            min_ram_bytes=draw(bytes_),
            min_vram_bytes=draw(bytes_),
            accelerators=tuple(draw(st.lists(words, max_size=3))),
        ),
        tokens=SpecialTokens(bos=draw(st.text(max_size=20)), end=tuple(draw(st.lists(st.integers(0, 9), max_size=9)))),
    )


@given(manifests())
def test_whatever_may_be_signed_reads_back_as_it_was(manifest: Manifest) -> None:
    signed = sign_manifest(manifest, CREATOR)
    assert read_manifest(signed.encoded()) == manifest


def test_a_remote_model_names_no_weights_and_every_other_does() -> None:
    described = a_file(Role.CONFIG, name="remote.json")
    remote = a_manifest(format=Format.REMOTE, files=(described,))
    assert read_manifest(sign_manifest(remote, CREATOR).encoded()).cited == described
    for wrong in (a_manifest(format=Format.REMOTE), a_manifest(files=(described,))):
        with pytest.raises(EncodingInvalid, match="weights"):
            sign_manifest(wrong, CREATOR)


def test_every_flipped_bit_is_refused() -> None:
    block = sign_manifest(a_manifest(), CREATOR).encoded()
    for bit in range(0, len(block) * 8, 3):
        bent = bytearray(block)
        bent[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EncodingInvalid):
            read_manifest(bytes(bent))


def test_another_wallet_cannot_sign_for_the_creator() -> None:
    with pytest.raises(SignatureInvalid):
        sign_manifest(a_manifest(), STRANGER)
    body = encode(Manifest, a_manifest())
    forged = SignedManifest(body=body, signature=STRANGER.sign_digest(hashlib.sha256(body).digest()))
    with pytest.raises(SignatureInvalid):
        check_manifest(forged)


def test_shards_keep_their_order_and_shared_bytes_count_once() -> None:
    first, second = a_file(name="m-1.gguf"), a_file(name="m-2.gguf")
    twin = a_file(Role.CONFIG, name="other/config.json", cid=first.cid)
    whole = a_manifest(files=(first, second, twin))
    assert read_manifest(sign_manifest(whole, CREATOR).encoded()).weights == (first, second)
    assert whole.file(Role.WEIGHTS) == first
    assert whole.size_bytes == 2000
    with pytest.raises(EncodingInvalid, match="no tokenizer file"):
        whole.file(Role.TOKENIZER)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../etc"},
        {"name": "a..b"},
        {"name": ""},
        {"name": "x" * 200},
        {"name": "a\n"},
        {"name": "Default"},
        {"name": a_cid("m")},
        {"version": "1.2"},
        {"version": "01.2.3"},
        {"version": "v1.2.3"},
        {"files": ()},
        {"files": (a_file(Role.TOKENIZER),)},
        {"files": (a_file(), a_file())},
        {"files": (a_file(), a_file(Role.TOKENIZER), a_file(Role.TOKENIZER, name="other"))},
        {"files": (a_file(), a_file(Role.CHAT_TEMPLATE), a_file(Role.CHAT_TEMPLATE, name="other"))},
        {"files": (a_file(), a_file(Role.TOKENIZER, name="weights.bin"))},
        {"files": (a_file(), a_file(Role.TOKENIZER, name="WEIGHTS.bin"))},
        {"files": (a_file(), a_file(Role.CONFIG, name="Weights.bin/config.json"))},
        {"files": (a_file(), a_file(Role.CONFIG, cid=a_file().cid, size_bytes=999))},
        {"files": tuple(a_file(name=f"{n}.gguf") for n in range(FILES_LIMIT + 1))},
        {"files": (a_file(cid="../../../../../../../../../../../../../../../../../etc/pw"),)},
        {"files": (a_file(cid=a_cid()),)},
        {"files": (a_file(size_bytes=0),)},
        {"files": (a_file(size_bytes=-1),)},
        {"files": (a_file(size_bytes=1 << 50),)},
        {"files": tuple(a_file(name=f"{n}.gguf", size_bytes=1 << 42) for n in range(2))},
        {"files": (a_file(), a_file(Role.TOKENIZER, size_bytes=1 << 30))},
        {"files": (a_file(), a_file(Role.CHAT_TEMPLATE, size_bytes=1 << 20))},
        {"files": (a_file(), a_file(Role.CONFIG, size_bytes=1 << 30))},
        {"directory": a_cid()},
        {"directory": str(cid_of_block(RAW, b""))},
        {"directory": "not a cid"},
        {"context": -1},
        {"context": 1 << 40},
        {"licence": "x" * 100},
        {"licence": "<b>MIT</b>"},
        {"parent": "not a cid"},
        {"parent": str(cid_of_block(RAW, b""))},
        {"source": "s" * 3000},
        {"needs": HardwareNeeds(min_ram_bytes=-1)},
        {"needs": HardwareNeeds(min_vram_bytes=1 << 60)},
        {"needs": HardwareNeeds(accelerators=("cuda",) * 99)},
        {"needs": HardwareNeeds(accelerators=("../cuda",))},
        {"tokens": SpecialTokens(end=tuple(range(100)))},
        {"kind": "octo/catalog/1"},
    ],
)
def test_what_a_manifest_may_not_say(changes: dict[str, Any]) -> None:
    manifest = a_manifest(**changes)
    with pytest.raises(EncodingInvalid) as raised:
        check_manifest(signed_by_hand(encode(Manifest, manifest)))
    assert not isinstance(raised.value, SignatureInvalid)
    with pytest.raises(EncodingInvalid):
        sign_manifest(manifest, CREATOR)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../weights",
        "a/../b",
        "a/..",
        "a..b",
        ".",
        "./a",
        "/etc/passwd",
        "a//b",
        "a/",
        "",
        "a\\b",
        "C:\\a",
        "C:a",
        "~/a",
        ".hidden",
        "a/.git/config",
        "-rf",
        "a\nb",
        "a\0b",
        "a\x7fb",
        "ünï",
        "ａ",
        "a\u202eb",
        "a.",
        "a ",
        "a*",
        "a|b",
        "$(a)",
        "x" * 256,
        "a/" * 8 + "b",
    ],
)
def test_a_file_name_that_is_no_safe_relative_path_is_refused(name: str) -> None:
    with pytest.raises(EncodingInvalid):
        check_file_name(name)
    body = encode(Manifest, a_manifest(files=(a_file(name=name),)))
    with pytest.raises(EncodingInvalid):
        check_manifest(signed_by_hand(body))


def test_names_that_models_really_have_are_safe() -> None:
    check_file_names(
        [
            "model-00001-of-00163.safetensors",
            "onnx/model.onnx",
            "onnx/model.onnx_data",
            "unet/config.json",
            "Modelfile (copy) @2=x+y,z.gguf",
            "a/b/c/d/e/f/g/h.json",
            "_weights",
        ]
    )


def test_a_manifest_of_a_later_version_is_told_apart_from_a_broken_one() -> None:
    body = bytes(libipld.encode_dag_cbor({"kind": "octo/model/2", "wholly": "different"}))
    with pytest.raises(EncodingInvalid, match=r"octo/model/2.*Update octo-node"):
        check_manifest(signed_by_hand(body))
    for other in ({"kind": "else"}, {"kind": 5}, {}, ["octo/model/1"], 7):
        with pytest.raises(EncodingInvalid, match="not a model's manifest"):
            check_manifest(signed_by_hand(bytes(libipld.encode_dag_cbor(other))))


def test_a_huge_block_and_unknown_fields_are_refused() -> None:
    with pytest.raises(EncodingInvalid, match="over the limit"):
        read_manifest(bytes(1_000_000))
    with pytest.raises(EncodingInvalid):
        read_manifest(libipld.encode_dag_cbor({"body": b"", "signature": bytes(65), "more": 1}))


def test_the_most_files_with_long_names_fit_into_one_block() -> None:
    files = tuple(a_file(name=f"model-{n:05}-of-00512.safetensors") for n in range(FILES_LIMIT))
    block = sign_manifest(a_manifest(files=files), CREATOR).encoded()
    assert len(read_manifest(block).weights) == FILES_LIMIT
