"""Numbers in fewer bits: F16, BF16 and F8_E4M3, rounded to the nearest, ties to even; and back.

Lives here: arithmetic on numpy arrays, pure. Must not know: files, tensors' names.
Sources: IEEE 754 (binary16); bfloat16 is the upper half of binary32; F8_E4M3 is the OCP 8-bit floating point
specification 1.0, E4M3: bias 7, no infinity, NaN is S.1111.111, the largest number 448.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
E4M3_MAX: Final = 448.0
F16_MAX: Final = 65504.0
_E4M3_NAN: Final = 0x7F
_E4M3_TOP: Final = 0x7E
_E4M3_LEAST_NORMAL: Final = 2.0**-6


def to_floats(values: npt.NDArray[Any]) -> Floats:
    """As float32; of float64 those that round once more afterwards to what rounding once would have given.

    Rounding to odd: whatever is cut off is kept as a lowest bit of one, which no later rounding to fewer bits takes
    for a tie (Boldo and Melquiond, "When double rounding is odd", 2005).
    """
    if values.dtype != np.float64:
        return values.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    too_far = np.abs(near.astype(np.float64)) > np.abs(values)
    cut = np.where(too_far, np.nextafter(near, np.float32(0)), near).astype(np.float32)
    inexact = np.isfinite(values) & (cut.astype(np.float64) != values)
    return np.where(inexact, (cut.view(np.uint32) | 1).view(np.float32), cut)


def to_f16(values: Floats) -> npt.NDArray[np.float16]:
    """Beyond 65,504 it becomes infinite: the caller looks first."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def to_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """The bits of bfloat16."""
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    quiet = ((bits >> 16) | 0x40).astype(np.uint16)
    return np.where(np.isnan(values), quiet, rounded)


def from_bf16(bits: npt.NDArray[np.uint16]) -> Floats:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_e4m3(values: Floats) -> npt.NDArray[np.uint8]:
    """The bits of F8_E4M3; what is larger than 448 becomes 448, as the specification's saturating mode has it."""
    bits = values.view(np.uint32)
    sign = ((bits >> 24) & 0x80).astype(np.uint8)
    size = np.abs(values)
    plain = bits & 0x7FFFFFFF
    # Bias 127 becomes 7: the exponent, with three bits of mantissa below it, moves by 120 * 8.
    normal = ((plain + 0x7FFFF + ((plain >> 20) & 1)) >> 20).astype(np.int64) - 120 * 8
    small = np.rint(np.minimum(np.nan_to_num(size), _E4M3_LEAST_NORMAL) * np.float32(2**9)).astype(np.int64)
    code = np.where(size < _E4M3_LEAST_NORMAL, small, np.minimum(normal, _E4M3_TOP))
    return np.where(np.isnan(values), np.uint8(_E4M3_NAN), code.astype(np.uint8)) | sign


def from_e4m3(bits: npt.NDArray[np.uint8]) -> Floats:
    return _E4M3_VALUES[bits]


def _e4m3_values() -> Floats:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size[(codes & 0x7F) == _E4M3_NAN] = np.nan
    return np.where(codes & 0x80, -size, size).astype(np.float32)


_E4M3_VALUES: Final = _e4m3_values()
