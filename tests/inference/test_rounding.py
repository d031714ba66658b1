"""F16, BF16 and F8_E4M3: the nearest number, ties to even; checked against recorded vectors and against arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.quantization.rounding import E4M3_MAX, from_bf16, from_e4m3, to_bf16, to_e4m3, to_f16, to_floats

VECTORS = json.loads((Path(__file__).resolve().parents[1] / "vectors" / "rounding.json").read_text())
LISTED = from_e4m3(np.arange(0x7F, dtype=np.uint8)).astype(np.float64)
"""Every number of F8_E4M3 that is not negative, in order."""


@pytest.mark.parametrize(("kind", "rounded"), [("bf16", to_bf16), ("e4m3", to_e4m3)])
def test_numbers_round_as_another_library_rounds_them(kind, rounded):
    floats = np.array([bits for bits, _ in VECTORS[kind]], dtype=np.uint32).view(np.float32)
    assert len(floats) > 100
    assert rounded(floats).tolist() == [code for _, code in VECTORS[kind]]


def test_the_numbers_of_e4m3_are_the_specifications():
    assert LISTED[:9].tolist() == [n * 2.0**-9 for n in range(9)]
    assert LISTED[-1] == E4M3_MAX == 448
    assert np.isnan(from_e4m3(np.array([0x7F, 0xFF], dtype=np.uint8))).all()
    assert from_e4m3(np.array([0x80 | 0x38], dtype=np.uint8))[0] == -1


@given(st.floats(width=32, allow_nan=False))
def test_no_number_of_e4m3_is_nearer(number):
    (code,) = to_e4m3(np.array([number], dtype=np.float32))
    got, exact = float(from_e4m3(np.array([code & 0x7F], dtype=np.uint8))[0]), min(abs(float(np.float32(number))), 448)
    away = np.abs(LISTED - exact)
    assert abs(got - exact) == away.min()
    if (away == away.min()).sum() == 2:
        assert code & 1 == 0
    assert bool(code & 0x80) == bool(np.signbit(np.float32(number)))


@given(st.integers(0, 2**16 - 1))
def test_what_is_a_number_of_bf16_stays_itself(bits):
    number = from_bf16(np.array([bits], dtype=np.uint16))
    again = to_bf16(number)
    assert np.isnan(number[0]) if again[0] != bits else True
    assert np.isnan(from_bf16(again)[0]) == np.isnan(number[0])


def test_a_double_is_rounded_once_and_not_twice():
    """1 + 2^-8 is half way between two numbers of BF16; 2^-40 more is beyond it, and float32 cannot say so."""
    tie = 1 + 2.0**-8
    numbers = np.array([tie, tie + 2.0**-40, tie - 2.0**-40, -tie - 2.0**-40, np.inf, 0.0])
    got = from_bf16(to_bf16(to_floats(numbers)))
    assert got.tolist() == [1, 1 + 2.0**-7, 1, -1 - 2.0**-7, np.inf, 0]


def test_nan_stays_nan_everywhere():
    nan = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], dtype=np.uint32).view(np.float32)
    assert np.isnan(from_bf16(to_bf16(nan))).all()
    assert np.isnan(from_e4m3(to_e4m3(nan))).all()
    assert np.isnan(to_f16(nan)).all()
