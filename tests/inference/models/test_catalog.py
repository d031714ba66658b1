"""Signed catalogs: what is signed is what is read, the newest stays, and a search finds what it should."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.models.catalog import (
    CATALOG_LIMIT_BYTES,
    ENTRIES_LIMIT,
    Catalog,
    CatalogEntry,
    SignedCatalog,
    entry_of,
    newer,
    read_catalog,
    sign_catalog,
)
from inference.models.cid import RAW, cid_of_block
from inference.models.manifest import Format, sign_manifest
from inference.models.search import Filters, search
from market.errors import EncodingInvalid, ModelUntrusted, RequestInvalid, SignatureInvalid
from market.signing import TypedStruct
from market.values import encode
from tests.inference.models.model_kit import CREATOR, STRANGER, a_cid, a_manifest


def entry(name: str = "Tiny", **changes: Any) -> CatalogEntry:
    plain = entry_of(a_cid(name + str(changes.get("version", ""))), a_manifest(name=name))
    return replace(plain, **changes)


def catalog(*entries: CatalogEntry, **changes: Any) -> Catalog:
    said = {"name": "best", "creator": CREATOR.address, "seq": 3, "issued_ms": 1, "entries": entries or (entry(),)}
    return Catalog(**{**said, **changes})


def signed_by_hand(body: bytes) -> bytes:
    digest = TypedStruct("ModelCatalog(bytes32 body)").digest("octo/models", 0, hashlib.sha256(body).digest())
    return SignedCatalog(body=body, signature=CREATOR.sign_digest(digest)).encoded()


def test_an_entry_says_what_the_manifest_says() -> None:
    manifest = a_manifest()
    made = entry_of(a_cid("m"), manifest)
    assert (made.name, made.version, made.format, made.size_bytes) == ("Tiny-1.5B", "1.2.3", Format.GGUF, 3000)
    assert made.min_ram_bytes == manifest.needs.min_ram_bytes


@given(
    st.lists(st.tuples(st.text("abc019", min_size=1, max_size=9), st.integers(1, 2**40)), max_size=20),
    st.integers(1, 2**53 - 1),
)
def test_whatever_may_be_signed_reads_back_as_it_was(models: list[tuple[str, int]], seq: int) -> None:
    entries = {name: entry(name, size_bytes=size) for name, size in models}
    whole = catalog(seq=seq)
    whole = replace(whole, entries=tuple(entries.values()))
    block = sign_catalog(whole, CREATOR).encoded()
    assert read_catalog(block) == whole
    assert signed_by_hand(encode(Catalog, whole)) == block


def test_every_flipped_bit_is_refused() -> None:
    block = sign_catalog(catalog(), CREATOR).encoded()
    for bit in range(0, len(block) * 8, 3):
        bent = bytearray(block)
        bent[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EncodingInvalid):
            read_catalog(bytes(bent))


def test_another_wallet_cannot_sign_and_a_manifests_signature_is_none_for_a_catalog() -> None:
    with pytest.raises(SignatureInvalid):
        sign_catalog(catalog(), STRANGER)
    body = encode(Catalog, catalog())
    forged = SignedCatalog(body=body, signature=STRANGER.sign_digest(hashlib.sha256(body).digest()))
    with pytest.raises(SignatureInvalid):
        read_catalog(forged.encoded())
    with pytest.raises(EncodingInvalid, match="not a catalog"):
        read_catalog(sign_manifest(a_manifest(), CREATOR).encoded())


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../x"},
        {"name": ""},
        {"seq": 0},
        {"seq": 1 << 60},
        {"issued_ms": -1},
        {"entries": (entry(), entry(version="2.0.0", manifest=entry().manifest))},  # one manifest twice
        {"entries": (entry("Tiny"), entry("tiny"))},  # one name twice
        {"entries": (entry(manifest=str(cid_of_block(RAW, b""))),)},
        {"entries": (entry(parent="x"),)},
        {"entries": (entry(size_bytes=0),)},
        {"entries": (entry(modality="<script>"),)},
        {"entries": tuple(entry(f"n{n}") for n in range(ENTRIES_LIMIT + 1))},
        {"kind": "octo/model/1"},
    ],
)
def test_what_a_catalog_may_not_say(changes: dict[str, Any]) -> None:
    bad = catalog(**changes)
    with pytest.raises(EncodingInvalid) as raised:
        read_catalog(signed_by_hand(encode(Catalog, bad)))
    assert not isinstance(raised.value, SignatureInvalid)
    with pytest.raises(EncodingInvalid):
        sign_catalog(bad, CREATOR)


def test_a_later_version_is_told_and_a_huge_block_is_not_parsed() -> None:
    with pytest.raises(EncodingInvalid, match=r"octo/catalog/2.*Update octo-node"):
        read_catalog(signed_by_hand(bytes(libipld.encode_dag_cbor({"kind": "octo/catalog/2"}))))
    with pytest.raises(EncodingInvalid, match="over the limit"):
        read_catalog(bytes(CATALOG_LIMIT_BYTES + 1000))


def test_the_most_entries_fit() -> None:
    full = catalog(
        *(entry(f"model-with-a-rather-long-name-{n:05}", parent=a_cid(str(n))) for n in range(ENTRIES_LIMIT))
    )
    block = sign_catalog(full, CREATOR).encoded()
    assert len(read_catalog(block).entries) == ENTRIES_LIMIT


def test_only_a_higher_number_of_the_same_catalog_replaces_the_known_one() -> None:
    known = catalog()
    assert newer(known, catalog(entry("Other"), seq=4))
    assert not newer(known, known)
    assert not newer(known, catalog(entry("Other"), seq=2))
    for other in (catalog(name="worst", seq=9), catalog(creator=STRANGER.address, seq=9)):
        with pytest.raises(EncodingInvalid, match="not the one that is followed"):
            newer(known, other)


def test_two_catalogs_with_one_number_are_equivocation() -> None:
    with pytest.raises(ModelUntrusted, match="two different catalogs best with number 3"):
        newer(catalog(), catalog(entry("Other")))


# ---- search ------------------------------------------------------------------------------------------


def names(found: list[CatalogEntry]) -> list[str]:
    return [f"{model.name} {model.version}" for model in found]


SHELF = [
    entry("Llama-3-8B", size_bytes=8000, context=8192, min_ram_bytes=9000, min_vram_bytes=9000),
    entry("Tiny-Llama", size_bytes=100, min_ram_bytes=120, min_vram_bytes=120),
    entry("Llama", version="1.0.0", size_bytes=50, min_ram_bytes=60),
    entry("Llama", version="1.10.0", size_bytes=50, min_ram_bytes=60),
    entry("Llama", version="1.10.0-rc.2", size_bytes=50, min_ram_bytes=60),
    entry("Llama", version="1.10.0-rc.10", size_bytes=50, min_ram_bytes=60),
    entry("Whisper", format=Format.CTRANSLATE2, modality="transcription", licence="mit", min_ram_bytes=70),
    entry("Plan", format=Format.TENSORRT, min_ram_bytes=0, min_vram_bytes=500),
]


def test_the_name_itself_comes_first_then_its_beginning_then_the_rest() -> None:
    assert names(search(SHELF, "llama")) == [
        "Llama 1.10.0",
        "Llama 1.10.0-rc.10",
        "Llama 1.10.0-rc.2",
        "Llama 1.0.0",
        "Llama-3-8B 1.2.3",
        "Tiny-Llama 1.2.3",
    ]
    assert names(search(list(reversed(SHELF)), "llama")) == names(search(SHELF, "llama"))


def test_every_word_must_be_somewhere_and_separators_and_case_do_not_count() -> None:
    assert names(search(SHELF, "llama-3 8b")) == ["Llama-3-8B 1.2.3"]
    assert names(search(SHELF, "TINY gguf")) == ["Tiny-Llama 1.2.3"]
    assert names(search(SHELF, "transcription mit")) == ["Whisper 1.2.3"]
    assert search(SHELF, "llama mit") == []
    assert len(search(SHELF)) == len(SHELF)
    with pytest.raises(RequestInvalid):
        search(SHELF, "a " * 17)


def test_filters_leave_out_what_does_not_fit() -> None:
    assert names(search(SHELF, "", Filters(format=Format.CTRANSLATE2))) == ["Whisper 1.2.3"]
    assert names(search(SHELF, "", Filters(modality="Transcription"))) == ["Whisper 1.2.3"]
    assert names(search(SHELF, "llama", Filters(max_size_bytes=60))) == names(search(SHELF, "llama")[:4])
    assert names(search(SHELF, "", Filters(min_context=8000))) == ["Llama-3-8B 1.2.3"]
    assert "Llama-3-8B 1.2.3" not in names(search(SHELF, "", Filters(ram_bytes=8999)))
    assert "Llama-3-8B 1.2.3" in names(search(SHELF, "", Filters(ram_bytes=9000)))
    assert "Plan 1.2.3" not in names(search(SHELF, "", Filters(ram_bytes=10**9)))
    assert "Plan 1.2.3" in names(search(SHELF, "", Filters(ram_bytes=1, vram_bytes=500)))


@given(st.text(max_size=60))
def test_any_query_is_answered(query: str) -> None:
    try:
        assert len(search(SHELF, query)) <= len(SHELF)
    except RequestInvalid:
        assert len(query) > 30
