"""The JSON header of a safetensors file, checked against the file's size.

Lives here: the format's own rules (no duplicate names, no holes, no overlap, nothing behind the last tensor) and the
limits. Reads the header only. Knows no manifest.
Source: https://huggingface.co/docs/safetensors/index ; the reference reader takes headers up to 100 MB, the Hub up
to 25 MB, and so do we: parsed JSON needs some ten times its bytes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from market.errors import ModelFileInvalid
from market.values import value

HEADER_LIMIT_BYTES = 25_000_000
_TENSORS_LIMIT = 1 << 17
_DIMENSIONS_LIMIT = 16
_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@value
class SafetensorsHeader:
    """`bytes_by_dtype` counts the tensors' bytes; `metadata` is the file's `__metadata__`, texts to texts."""

    tensors: int
    parameters: int
    bytes_by_dtype: Mapping[str, int]
    metadata: Mapping[str, str]


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Blocking. Raises ModelFileInvalid for anything torn, oversized or against the format's rules; OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or not 2 <= length <= min(HEADER_LIMIT_BYTES, size - 8):
            raise ModelFileInvalid(f"{path.name} is not a safetensors file, or its header is over 25 MB.")
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
        return _check(header, size - 8 - length)
    except _Unsound as error:
        reason = str(error)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        reason = "its header is malformed"
    raise ModelFileInvalid(f"{path.name} is not a sound safetensors file: {reason}.", next_step="Get the file again.")


class _Unsound(Exception):
    pass


def _check(header: dict[str, Any], data_bytes: int) -> SafetensorsHeader:
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(text, str) for text in metadata.values()):
        raise _Unsound("its __metadata__ is not texts")
    if len(header) > _TENSORS_LIMIT:
        raise _Unsound(f"it has over {_TENSORS_LIMIT} tensors")
    parameters, by_dtype = 0, Counter[str]()
    spans = []
    for tensor in header.values():
        start, end = _numbers(tensor["data_offsets"], 2)
        count = math.prod(_numbers(tensor["shape"], _DIMENSIONS_LIMIT))
        dtype = tensor["dtype"]
        if dtype not in _BITS or count * _BITS[dtype] != 8 * (end - start):
            raise _Unsound("a tensor's shape and type do not give its bytes")
        parameters += count
        by_dtype[dtype] += end - start
        spans.append((start, end))
    at = 0
    for start, end in sorted(spans):
        if start != at:
            raise _Unsound("its tensors overlap or leave holes")
        at = end
    if at != data_bytes:
        raise _Unsound(f"its tensors end at byte {at} of {data_bytes}: it is cut off, or has something behind them")
    return SafetensorsHeader(
        tensors=len(spans), parameters=parameters, bytes_by_dtype=dict(by_dtype), metadata=dict(metadata)
    )


def _numbers(items: object, limit: int) -> list[int]:
    if not isinstance(items, list) or len(items) > limit:
        raise _Unsound("a shape is malformed")
    if not all(type(item) is int and 0 <= item < 1 << 48 for item in items):
        raise _Unsound("a number of a tensor is out of range")
    return items


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Unsound("a name occurs twice")
    return found
