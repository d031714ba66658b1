"""EIP-712 and secp256k1, against eth-account's own digests and signatures."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_keys.backends import get_backend_class
from eth_utils import keccak
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EncodingInvalid, SignatureInvalid
from market.quote import sign_quote
from market.receipt import sign_receipt
from market.signing import Address, Secp256k1Signer, TypedStruct, address_text, recover_address
from market.values import from_plain, value
from market.voucher import sign_opening, sign_voucher


@value
class Holder:
    address: Address


GOLDEN = json.loads((Path(__file__).parent.parent / "vectors" / "eip712.json").read_text(encoding="utf-8"))
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
NETWORK = "octo-test"


def eth_account_signature(secret: bytes, network: str, chain_id: int, type_text: str, members: dict[str, Any]) -> bytes:
    """The same struct through eth-account alone: it parses the type text, hashes and signs by itself."""
    return bytes(Account.from_key(secret).sign_message(typed(network, chain_id, type_text, members)).signature)


def typed(network: str, chain_id: int, type_text: str, members: dict[str, Any]) -> Any:
    name, inside = type_text.rstrip(")").split("(")
    fields = [dict(zip(("type", "name"), field.split(), strict=True)) for field in inside.split(",")]
    salt = hashlib.sha256(b"octo/network/1" + network.encode()).digest()
    domain = {"name": "octo", "version": "1", "chainId": chain_id, "salt": salt}
    return encode_typed_data(domain, {name: fields}, members)


def golden_members(case: dict[str, Any]) -> dict[str, Any]:
    return {
        name: bytes.fromhex(raw[2:])
        if isinstance(raw, str) and raw.startswith("0x")
        else raw
        if raw in (True, False)
        else int(raw)
        for name, raw in case["message"].items()
    }


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['type'].split('(')[0]} {case['network']}")
def test_a_golden_digest_is_reproduced_by_us_and_by_eth_account(case: dict[str, Any]) -> None:
    members = golden_members(case)
    ours = TypedStruct(case["type"]).digest(case["network"], case["chain_id"], *members.values())
    theirs = typed(case["network"], case["chain_id"], case["type"], members)
    assert "0x" + theirs.header.hex() == case["domain_separator"]
    assert (
        "0x" + ours.hex()
        == case["digest"]
        == "0x" + keccak(b"\x19" + theirs.version + theirs.header + theirs.body).hex()
    )


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['type'].split('(')[0]} {case['network']}")
def test_a_golden_signature_is_reproduced_and_recovers_its_signer(case: dict[str, Any]) -> None:
    signer = Secp256k1Signer(bytes.fromhex(GOLDEN["signer"]["secret"][2:]))
    digest = bytes.fromhex(case["digest"][2:])
    assert "0x" + signer.sign_digest(digest).hex() == case["signature"]
    assert address_text(recover_address(digest, bytes.fromhex(case["signature"][2:]))) == GOLDEN["signer"]["address"]


word = st.binary(min_size=32, max_size=32)
uint64 = st.integers(0, 2**64 - 1)
uint256 = st.integers(0, 2**256 - 1)


@given(st.text(max_size=20), st.integers(0, 2**31), st.tuples(word, word, word, uint64, st.booleans(), uint256))
def test_any_struct_of_words_hashes_as_eth_account_hashes_it(
    network: str, chain_id: int, members: tuple[Any, ...]
) -> None:
    text = "Thing(bytes32 a,bytes32 b,bytes32 c,uint64 d,bool e,uint256 f)"
    theirs = typed(network, chain_id, text, dict(zip("abcdef", members, strict=True)))
    digest = keccak(b"\x19" + theirs.version + theirs.header + theirs.body)
    assert TypedStruct(text).digest(network, chain_id, *members) == digest


# ---- the market's own structs: what is really signed ----------------------------------------------


def test_a_receipt_is_signed_as_eth_account_would(words: Any) -> None:
    receipt = words.receipt(final=True, finish="stop", seq=3)
    signed = sign_receipt(receipt, words.seller.receipt_key)
    text = (
        "Receipt(bytes32 body,bytes32 channel,bytes32 task,uint64 seq,bool final,uint64 tokensIn,uint64 tokensOut,"
        "uint256 amount,bytes32 transcriptRoot,bytes32 quote)"
    )
    members = {
        "body": hashlib.sha256(signed.body).digest(), "channel": receipt.channel, "task": receipt.task, "seq": 3,
        "final": True, "tokensIn": receipt.tokens_in, "tokensOut": receipt.tokens_out, "amount": receipt.amount,
        "transcriptRoot": receipt.transcript_root, "quote": receipt.quote,
    }  # fmt: skip
    assert signed.signature == eth_account_signature(words.digest("receipt seller"), words.network, 0, text, members)


def test_a_quote_is_signed_as_eth_account_would(words: Any) -> None:
    quote = words.quote()
    signed = sign_quote(quote, words.seller.receipt_key)
    text = "Quote(bytes32 body,bytes32 task,uint256 maxAmount,uint64 expiresMs)"
    members = {"body": hashlib.sha256(signed.body).digest(), "task": quote.task, "maxAmount": quote.max_cost(),
               "expiresMs": quote.expires_ms}  # fmt: skip
    assert signed.signature == eth_account_signature(words.digest("receipt seller"), words.network, 0, text, members)


def test_a_voucher_is_signed_as_eth_account_would(words: Any) -> None:
    terms = words.terms()
    voucher = sign_voucher(terms, 25, words.digest("root"), words.buyer.session)
    text = "Voucher(bytes32 channelId,uint256 cumulativeAmount,bytes32 receiptsRoot)"
    members = {"channelId": terms.channel_id(), "cumulativeAmount": 25, "receiptsRoot": words.digest("root")}
    assert voucher.signature == eth_account_signature(words.digest("pay buyer"), words.network, 0, text, members)


def test_an_opening_is_signed_as_eth_account_would(words: Any) -> None:
    terms = words.terms()
    opening = sign_opening(terms, 10**18, words.buyer.wallet)
    members = {"channelId": terms.channel_id(), "deposit": 10**18}
    text = "Opening(bytes32 channelId,uint256 deposit)"
    assert opening.signature == eth_account_signature(words.digest("wallet buyer"), words.network, 0, text, members)


def test_a_binding_is_signed_as_eth_account_would(words: Any) -> None:
    signed = words.binding()
    members = {"body": hashlib.sha256(signed.body).digest()}
    for role, signature in (("receipt", signed.by_receipt_key), ("wallet", signed.by_wallet)):
        secret = words.digest(f"{role} seller")
        assert signature == eth_account_signature(secret, words.network, 0, "Binding(bytes32 body)", members)


# ---- signatures that must not pass -----------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32))
def test_a_signature_recovers_its_signer(words: Any, digest: bytes) -> None:
    key = words.seller.receipt_key
    assert recover_address(digest, key.sign_digest(digest)) == key.address


@given(st.integers(0, 65 * 8 - 1))
def test_a_signature_with_a_flipped_bit_is_another_key_or_none(words: Any, bit: int) -> None:
    key, digest = words.seller.receipt_key, words.digest("something")
    raw = bytearray(key.sign_digest(digest))
    raw[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(SignatureInvalid):
        assert recover_address(digest, bytes(raw)) != key.address


def test_the_high_s_twin_of_a_signature_is_refused(words: Any) -> None:
    key, digest = words.seller.receipt_key, words.digest("something")
    raw = key.sign_digest(digest)
    twin = raw[:32] + (ORDER - int.from_bytes(raw[32:64], "big")).to_bytes(32, "big") + bytes((27 + 28 - raw[64],))
    with pytest.raises(SignatureInvalid, match="high s"):
        recover_address(digest, twin)


@pytest.mark.parametrize(
    "signature",
    [b"", bytes(64), bytes(65), bytes(66), bytes(64) + b"\x1b", b"\xff" * 32 + bytes(31) + b"\x01\x1b",
     bytes(31) + b"\x01" + bytes(32) + b"\x1b", bytes(32) + bytes(31) + b"\x01\x1c", b"\x01" * 64 + b"\x00",
     b"\x01" * 64 + b"\x1d"],
)  # fmt: skip
def test_what_is_no_signature_is_refused_with_a_reason(signature: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        recover_address(bytes(32), signature)


def test_a_signature_with_bytes_before_or_after_it_is_refused(words: Any) -> None:
    """Else one signature had many forms."""
    key, digest = words.seller.receipt_key, words.digest("something")
    raw = key.sign_digest(digest)
    for longer in (raw + b"\0", raw + raw[-1:], b"\0" + raw, raw[:64]):
        with pytest.raises(SignatureInvalid, match="65 bytes"):
            recover_address(digest, longer)


@pytest.mark.parametrize("raw", [bytes(19), bytes(21), b"", "0x" + "00" * 20, 0, None])
def test_an_address_is_20_bytes(raw: object) -> None:
    with pytest.raises(EncodingInvalid, match="20 bytes"):
        from_plain(Holder, {"address": raw})
    assert from_plain(Holder, {"address": bytes(20)}) == Holder(address=bytes(20))


@pytest.mark.parametrize(
    "text",
    ["0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
     "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB", "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb"],
)  # fmt: skip
def test_addresses_are_shown_as_eip_55_shows_them(text: str) -> None:
    assert address_text(bytes.fromhex(text[2:])) == text


def test_another_network_or_chain_gives_another_digest() -> None:
    thing = TypedStruct("Thing(uint256 a)")
    digests = {
        thing.digest("one", 0, 1),
        thing.digest("two", 0, 1),
        thing.digest("one", 1, 1),
        thing.digest("one", 0, 2),
    }
    assert len(digests) == 4


def test_a_number_over_256_bits_is_refused() -> None:
    with pytest.raises(EncodingInvalid, match="Thing does not fit"):
        TypedStruct("Thing(uint256 a)").digest("one", 0, 2**256)


def test_a_struct_wants_all_its_members() -> None:
    with pytest.raises(TypeError, match="1 members, not 2"):
        TypedStruct("Thing(uint256 a)").digest("one", 0, 1, 2)


def test_a_signer_never_shows_its_key(words: Any) -> None:
    secret = words.digest("receipt seller")
    shown = repr(words.seller.receipt_key) + str(words.seller.receipt_key)
    assert secret.hex() not in shown
    assert address_text(words.seller.receipt_key.address) in shown


def test_the_fast_backend_is_in_use() -> None:
    """eth-account would sign 50 times slower without it."""
    assert "CoinCurve" in get_backend_class().__name__
