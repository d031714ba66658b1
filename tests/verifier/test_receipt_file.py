"""The file that carries a receipt to anybody: one canonical form, limits, and nothing of the prompt."""

from dataclasses import replace
from typing import Any

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EncodingInvalid
from market.values import to_plain
from verifier import receipt_file
from verifier.receipt_file import FILE_LIMIT_BYTES, ReceiptFile


def test_a_record_becomes_a_file_and_reads_back(sale: Any) -> None:
    file = receipt_file.from_record(sale.record())
    assert receipt_file.parse(receipt_file.encode(file)) == file
    assert file.check == file.checksum()
    assert file.binding == sale.signed_binding


def test_the_file_holds_neither_prompt_nor_text(sale: Any) -> None:
    data = receipt_file.encode(receipt_file.from_record(sale.record()))
    assert b"octopus" not in data
    assert set(to_plain(ReceiptFile, receipt_file.parse(data))) == {
        "format", "receipt", "quote", "binding", "tokens", "chunk_sizes", "text_sizes", "text_digests", "salt",
        "pieces", "check",
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"format": "octo.receipt-file/2"},
        {"extra": 1},
        {"tokens": [-1]},
        {"tokens": [2**31]},
        {"tokens": ["1"]},
        {"chunk_sizes": [0]},
        {"chunk_sizes": [33]},
        {"text_sizes": [-1]},
        {"text_digests": [bytes(31)]},
        {"salt": b""},
        {"receipt": {"body": b"", "signature": b""}},
        {"receipt": {"body": bytes(4097), "signature": bytes(65)}},
        {"binding": b""},
    ],
)
def test_a_file_that_is_not_exactly_one_is_refused(sale: Any, change: dict[str, Any]) -> None:
    plain = to_plain(ReceiptFile, receipt_file.from_record(sale.record())) | change
    with pytest.raises(EncodingInvalid, match=r"ReceiptFile is (malformed|not in canonical)"):
        receipt_file.parse(bytes(libipld.encode_dag_cbor(plain)))


@pytest.mark.parametrize("data", [b"", b"{}", b"\xa0", b"\x81" * 100_000, b"%PDF-1.4", bytes(1000)])
def test_another_kind_of_file_is_refused(data: bytes) -> None:
    with pytest.raises(EncodingInvalid):
        receipt_file.parse(data)


@given(st.binary(max_size=200))
def test_noise_is_never_a_receipt_file(noise: bytes) -> None:
    with pytest.raises(EncodingInvalid):
        receipt_file.parse(noise)


def test_a_file_over_the_limit_is_neither_read_nor_written(sale: Any) -> None:
    with pytest.raises(EncodingInvalid, match=f"over the limit of {FILE_LIMIT_BYTES}"):
        receipt_file.parse(bytes(FILE_LIMIT_BYTES + 1))
    file = receipt_file.from_record(sale.record())
    fat = replace(file, text_digests=(bytes(32),) * 131_072)
    with pytest.raises(EncodingInvalid, match=f"over the limit of {FILE_LIMIT_BYTES}"):
        receipt_file.encode(fat)


def test_the_longest_answer_in_full_chunks_fits(sale: Any) -> None:
    file = replace(
        receipt_file.from_record(sale.record()),
        tokens=(2**31 - 1,) * 131_072,
        chunk_sizes=(32,) * 4096,
        text_sizes=(4096,) * 4096,
        text_digests=(bytes(32),) * 4096,
    ).sealed()
    assert receipt_file.parse(receipt_file.encode(file)) == file


def test_a_record_with_a_broken_binding_makes_no_file(sale: Any) -> None:
    with pytest.raises(EncodingInvalid):
        receipt_file.from_record(sale.record(binding=b"\xa0"))
