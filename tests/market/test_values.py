"""One value, one byte string: DAG-CBOR in and out, and what is refused on the way."""

from typing import Annotated

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from market.errors import EncodingInvalid
from market.values import (
    DEPTH_LIMIT,
    Word,
    cid_digest,
    cid_of,
    cid_text,
    decode,
    decode_plain,
    encode,
    from_plain,
    value,
)


class Colour(Word):
    RED = "red"


@value
class Sample:
    number: Annotated[int, Field(ge=0, lt=2**63)]
    text: str = ""
    colour: Colour = Colour.RED
    items: tuple[int, ...] = ()


def test_a_value_is_frozen_and_takes_keywords_only() -> None:
    with pytest.raises(AttributeError):
        Sample(number=1).number = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Sample(1)  # type: ignore[misc]


def test_an_encoded_value_reads_back_as_itself() -> None:
    sample = Sample(number=5, text="ü", items=(1, 2))
    assert decode(Sample, encode(Sample, sample)) == sample
    assert isinstance(decode(Sample, encode(Sample, sample)).colour, Colour)


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        ({"number": "5", "text": "", "colour": "red", "items": []}, "canonical"),  # coerced, then unequal
        ({"number": True, "text": "", "colour": "red", "items": []}, "canonical"),
        ({"number": 5, "text": "", "colour": "red", "items": [], "extra": 1}, "extra"),
        ({"number": 5, "text": "", "colour": "blue", "items": []}, "colour"),
        ({"number": -1, "text": "", "colour": "red", "items": []}, "number"),
        ({"number": 5}, "canonical"),  # defaults are written out
        ([], "malformed"),
        (None, "malformed"),
    ],
)
def test_plain_data_that_is_not_exactly_the_value_is_refused(plain: object, reason: str) -> None:
    with pytest.raises(EncodingInvalid, match=reason):
        decode(Sample, bytes(libipld.encode_dag_cbor(plain)))


@pytest.mark.parametrize(
    "raw",
    [
        "a1666e756d6265721805",  # 5 in two bytes where one is enough
        "bf666e756d62657205ff",  # a map of open length
        "a2666e756d62657205666e756d62657205",  # a key twice
        "a1666e756d626572f94500",  # a half float
        "a1666e756d626572d82a4100",  # an empty CID
        "a1666e756d626572c249010000000000000000",  # a big number by tag
        "",
        "ff",
        "1c",
        "a1",
    ],
)
def test_cbor_that_is_not_canonical_dag_cbor_is_refused(raw: str) -> None:
    with pytest.raises(EncodingInvalid):
        decode(Sample, bytes.fromhex(raw))


def test_bytes_after_the_value_are_refused() -> None:
    with pytest.raises(EncodingInvalid):
        decode(Sample, encode(Sample, Sample(number=5)) + b"\0")


def test_a_value_over_the_limit_is_refused_unread() -> None:
    data = encode(Sample, Sample(number=5, text="x" * 100))
    with pytest.raises(EncodingInvalid, match="over the limit of 99"):
        decode(Sample, data, limit_bytes=99)


@pytest.mark.parametrize("head", [b"\x81", b"\xa1\x60", b"\xd8\x2a", b"\xc6", b"\x82\x00"])
def test_a_megabyte_of_nesting_is_refused_before_the_decoder_sees_it(head: bytes) -> None:
    with pytest.raises(EncodingInvalid, match="deeper"):
        decode_plain(head * 200_000, limit_bytes=2**20)


def test_nesting_up_to_the_limit_is_read() -> None:
    assert decode_plain(b"\x81" * DEPTH_LIMIT + b"\x00", limit_bytes=100)
    with pytest.raises(EncodingInvalid, match="deeper"):
        decode_plain(b"\x81" * (DEPTH_LIMIT + 1) + b"\x00", limit_bytes=100)


def test_a_wide_shallow_value_is_not_mistaken_for_a_deep_one() -> None:
    wide = [[index, {"a": [1]}] for index in range(1000)]
    assert decode_plain(bytes(libipld.encode_dag_cbor(wide)), limit_bytes=2**20) == wide


@pytest.mark.parametrize(
    "head", ["9b7fffffffffffffff", "bb7fffffffffffffff", "5b7fffffffffffffff", "7b7fffffffffffffff"]
)
def test_a_head_that_promises_more_than_there_is_costs_nothing(head: str) -> None:
    with pytest.raises(EncodingInvalid):
        decode_plain(bytes.fromhex(head) + b"\x00" * 64, limit_bytes=2**20)


@given(st.binary(max_size=200))
def test_noise_is_refused_or_reads_back_as_the_same_bytes(noise: bytes) -> None:
    try:
        sample = decode(Sample, noise)
    except EncodingInvalid:
        return
    assert encode(Sample, sample) == noise


def test_an_error_names_the_field_and_never_shows_the_value() -> None:
    with pytest.raises(EncodingInvalid, match=r"Sample is malformed: text") as caught:
        from_plain(Sample, {"number": 1, "text": ["a secret prompt"]})
    assert "secret" not in str(caught.value)


@given(st.binary(max_size=100))
def test_a_cid_carries_the_sha256_of_its_bytes(data: bytes) -> None:
    assert cid_text(b"\x01\x71\x12\x20" + cid_digest(cid_of(data))) == cid_of(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "bafy",
        "zQm",
        "b" + "1" * 58,
        cid_of(b"x").upper(),
        "z" + cid_of(b"x")[1:],
        cid_of(b"x") + "a",
        cid_of(b"x")[:-1],
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
        cid_of(b"x")[:-1] + "é",
    ],
)
def test_what_is_not_a_base32_cid_with_sha256_is_refused(text: str) -> None:
    with pytest.raises(EncodingInvalid, match="CID"):
        cid_digest(text)
