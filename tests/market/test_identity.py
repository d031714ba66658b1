"""Three keys that vouch for each other: a Binding holds whole or not at all."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nacl.signing
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EncodingInvalid, SignatureInvalid
from market.identity import (
    Binding,
    SignedBinding,
    check_binding,
    check_peer_signature,
    peer_of_public_key,
    public_key_of_peer,
    short,
    sign_binding,
)
from market.signing import Secp256k1Signer, address_text
from market.values import decode, encode

GOLDEN = json.loads((Path(__file__).parent.parent / "vectors" / "binding.json").read_text(encoding="utf-8"))


def test_the_golden_binding_is_reproduced_byte_for_byte() -> None:
    key = nacl.signing.SigningKey(bytes.fromhex(GOLDEN["secrets"]["peer"]))

    class Peer:
        peer = peer_of_public_key(bytes(key.verify_key))

        def sign(self, data: bytes) -> bytes:
            return bytes(key.sign(data).signature)

    receipt_key, wallet = (
        Secp256k1Signer(bytes.fromhex(GOLDEN["secrets"][name])) for name in ("receipt_key", "wallet")
    )
    fields = GOLDEN["binding"] | {name: bytes.fromhex(GOLDEN["binding"][name]) for name in ("receipt_key", "wallet")}
    signed = sign_binding(Binding(**fields), peer=Peer(), receipt_key=receipt_key, wallet=wallet)
    assert signed.body.hex() == GOLDEN["body"]
    assert signed.by_peer.hex() == GOLDEN["by_peer"]
    assert signed.by_receipt_key.hex() == GOLDEN["by_receipt_key"]
    assert signed.by_wallet.hex() == GOLDEN["by_wallet"]
    assert encode(SignedBinding, signed).hex() == GOLDEN["encoded"]
    assert signed.cid() == GOLDEN["cid"]
    assert check_binding(signed, network="octo-dev", now_ms=None) == Binding(**fields)


def test_a_binding_signed_by_its_three_keys_holds(words: Any) -> None:
    binding = check_binding(words.binding(), network=words.network, now_ms=words.now_ms)
    assert (binding.peer, binding.wallet) == (words.seller.peer, words.seller.wallet.address)


@given(st.data())
def test_a_binding_with_a_flipped_bit_is_refused_and_has_another_cid(words: Any, data: st.DataObject) -> None:
    signed = words.binding()
    raw = bytearray(encode(SignedBinding, signed))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(EncodingInvalid):
        flipped = decode(SignedBinding, bytes(raw))
        assert flipped.cid() != signed.cid()
        check_binding(flipped, network=words.network, now_ms=words.now_ms)


@pytest.mark.parametrize("missing", ["by_peer", "by_receipt_key", "by_wallet"])
def test_a_binding_without_one_of_its_owners_is_refused(words: Any, missing: str) -> None:
    """Else anyone could claim a foreign peer, key or wallet."""
    claim = decode(Binding, words.binding().body)
    thief = words.stranger
    stolen = {
        "by_peer": replace(claim, receipt_key=thief.receipt_key.address, wallet=thief.wallet.address),
        "by_receipt_key": replace(claim, peer=thief.peer, wallet=thief.wallet.address),
        "by_wallet": replace(claim, peer=thief.peer, receipt_key=thief.receipt_key.address),
    }[missing]
    signed = sign_binding(stolen, peer=thief.keys, receipt_key=thief.receipt_key, wallet=thief.wallet)
    with pytest.raises(SignatureInvalid):
        check_binding(signed, network=words.network, now_ms=None)


def test_signatures_of_an_older_binding_do_not_fit_a_newer_one(words: Any) -> None:
    older, newer = words.binding(nonce=1), words.binding(nonce=2)
    with pytest.raises(SignatureInvalid):
        check_binding(replace(newer, by_wallet=older.by_wallet), network=words.network, now_ms=None)


def test_a_binding_for_another_network_is_refused(words: Any) -> None:
    with pytest.raises(SignatureInvalid, match="'octo-test', not 'octo-main'"):
        check_binding(words.binding(), network="octo-main", now_ms=None)


@pytest.mark.parametrize(("offset_ms", "holds"), [(-1, False), (0, True), (999, True), (1000, False)])
def test_a_binding_holds_from_its_first_to_before_its_last_millisecond(words: Any, offset_ms: int, holds: bool) -> None:
    signed = words.binding(not_before_ms=5000, not_after_ms=6000)
    if holds:
        assert check_binding(signed, network=words.network, now_ms=5000 + offset_ms)
    else:
        with pytest.raises(SignatureInvalid, match="time"):
            check_binding(signed, network=words.network, now_ms=5000 + offset_ms)
    assert check_binding(signed, network=words.network, now_ms=None)


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_is_its_public_key_and_nothing_else(public_key: bytes) -> None:
    peer = peer_of_public_key(public_key)
    assert peer.startswith("12D3KooW")
    assert public_key_of_peer(peer) == public_key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "12D3KooW",
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
        "0OIl" * 13,
        "z" * 64,
        "z" * 10_000,
        "12D3KooWé",
        "16Uiu2HAm" + "1" * 44,
    ],
)
def test_what_is_no_ed25519_peer_id_is_refused(text: str) -> None:
    with pytest.raises(EncodingInvalid, match="peer"):
        public_key_of_peer(text)


def test_a_peer_id_with_a_character_more_or_less_is_refused(words: Any) -> None:
    peer = words.seller.peer
    for text in (peer + "1", "1" + peer, peer[:-1], peer[1:], peer + peer):
        with pytest.raises(EncodingInvalid):
            public_key_of_peer(text)


def test_a_peer_signature_is_for_that_peer_and_those_bytes(words: Any) -> None:
    signature = words.seller.keys.sign(b"hello")
    check_peer_signature(words.seller.peer, b"hello", signature)
    for peer, data, raw in (
        (words.buyer.peer, b"hello", signature),
        (words.seller.peer, b"hullo", signature),
        (words.seller.peer, b"hello", signature[:-1]),
        (words.seller.peer, b"hello", bytes(64)),
        (words.seller.peer, b"hello", b""),
    ):
        with pytest.raises(SignatureInvalid, match=peer):
            check_peer_signature(peer, data, raw)


def test_a_public_key_of_small_order_signs_nothing() -> None:
    """With such a key one signature would fit every message."""
    for key in (bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"):
        with pytest.raises(SignatureInvalid):
            check_peer_signature(peer_of_public_key(key), b"anything", key + bytes(32))


def test_names_for_people_are_short(words: Any) -> None:
    assert short(words.seller.peer) == "…" + words.seller.peer[-8:]
    assert address_text(bytes.fromhex("5aaeb6053f3e94c9b9a09f33669435e7ef1beaed")) == (
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"  # EIP-55's own example
    )
