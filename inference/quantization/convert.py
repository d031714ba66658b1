"""Safetensors in other number formats: F16, BF16 or FP8, slice by slice, in memory that does not grow with the model.

Lives here: which tensors are converted, the new header, and the loop that reads, rounds and writes. Must not know:
processes, stores, manifests. Source: https://huggingface.co/docs/safetensors/index

FP8 is F8_E4M3 with one F32 scale for each matrix beside it (`…weight_scale`, a scalar), as vLLM's `fp8` method reads
checkpoints; embeddings, the last layer, norms and biases stay in 16 bits. Nothing is calibrated: activations are
scaled as they come.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from inference.models.safetensors_header import read_safetensors_header
from inference.quantization.rounding import (
    E4M3_MAX,
    F16_MAX,
    Floats,
    from_bf16,
    to_bf16,
    to_e4m3,
    to_f16,
    to_floats,
)
from market.errors import DiskFull, ModelFileInvalid, RequestInvalid
from market.values import value

SLICE: Final = 1 << 22
"""Numbers at a time: 16 MiB of float32, and some copies of it while they are rounded."""
_WIDTH: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
_KEPT_WHOLE: Final = ("embed", "lm_head", "norm", "wte", "wpe", "shared.weight", "router", "gate.weight")
"""Parts of names of matrices that FP8 leaves in 16 bits: looked up rather than multiplied, or small and touchy."""


@value
class Span:
    """A tensor of the result: `source` and [start, stop) in the source's data say what it is made of; `scale_at` is
    where its scale goes, -1 for none. Offsets count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    at: int
    source_dtype: str
    source_at: int
    count: int
    scale_at: int = -1


@value
class Layout:
    header: bytes
    spans: tuple[Span, ...]
    source_data_at: int
    file_bytes: int


def layout_of(source: Path, to: str) -> Layout:
    """What the result will be, byte for byte but for the numbers. Raises ModelFileInvalid, RequestInvalid, OSError."""
    found = read_safetensors_header(source)
    with source.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        table: dict[str, Any] = json.loads(file.read(length))
    table.pop("__metadata__", None)
    if any(kind.startswith("F8_") for kind in found.bytes_by_dtype):
        raise RequestInvalid(
            f"{source.name} has 8-bit tensors: without their scales they cannot be converted.",
            next_step="Start from the F16 or BF16 model that it was made from.",
        )
    kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, tensor in table.items():
        shape = tuple(tensor["shape"])
        kinds[name] = _kind_of(name, tensor["dtype"], shape, to), shape
        if kinds[name][0] == "F8_E4M3":
            kinds[f"{name}_scale"] = "F32", ()
    if len(kinds) != len(table) + sum(kind == "F8_E4M3" for kind, _ in kinds.values()):
        raise ModelFileInvalid(f"{source.name} has scales of its own already.", next_step="Start from another model.")
    return _lay_out(kinds, table, found.metadata, 8 + length)


def _kind_of(name: str, dtype: str, shape: tuple[int, ...], to: str) -> str:
    if dtype not in _WIDTH:
        return dtype
    if to != "FP8":
        return to
    multiplied = len(shape) == 2 and name.endswith(".weight") and not any(part in name for part in _KEPT_WHOLE)
    if multiplied:
        return "F8_E4M3"
    return dtype if dtype in ("F16", "BF16") else "BF16"


def _lay_out(
    kinds: Mapping[str, tuple[str, tuple[int, ...]]],
    table: Mapping[str, Any],
    metadata: Mapping[str, str],
    data_at: int,
) -> Layout:
    """Wide numbers first, as the reference writer does: then every tensor lies at a multiple of its width."""
    offsets: dict[str, int] = {}
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in sorted(kinds, key=lambda name: (-_width(kinds[name][0], name, table), name)):
        dtype, shape = kinds[name]
        size = _bytes_of(name, dtype, shape, table)
        offsets[name] = at
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    spans = tuple(
        Span(
            name=name,
            dtype=kinds[name][0],
            shape=kinds[name][1],
            at=offsets[name],
            source_dtype=tensor["dtype"],
            source_at=tensor["data_offsets"][0],
            count=math.prod(tensor["shape"]) if tensor["dtype"] in _WIDTH else _stored(tensor),
            scale_at=offsets.get(f"{name}_scale", -1) if kinds[name][0] == "F8_E4M3" else -1,
        )
        for name, tensor in table.items()
    )
    return Layout(
        header=len(raw).to_bytes(8, "little") + raw,
        spans=spans,
        source_data_at=data_at,
        file_bytes=8 + len(raw) + at,
    )


def convert(source: Path, target: Path, to: str, *, moved: Callable[[int], None] = lambda _: None) -> None:
    """Write `source` in `to` to `target`, an empty or new file. Blocking. `moved` hears of bytes written.

    Raises ModelFileInvalid, RequestInvalid (a number that F16 cannot hold), DiskFull, OSError.
    """
    layout = layout_of(source, to)
    data_at = len(layout.header)
    with source.open("rb") as read, target.open("wb") as write:
        os.truncate(write.fileno(), layout.file_bytes)
        _write(write.fileno(), layout.header, 0)
        for span in layout.spans:
            start = layout.source_data_at + span.source_at
            scale = 1.0
            if span.scale_at >= 0:
                scale = _scale_of(read.fileno(), span, start)
                _write(write.fileno(), np.float32(scale).tobytes(), data_at + span.scale_at)
            at = data_at + span.at
            for piece in _pieces(read.fileno(), span, start):
                data = piece if span.dtype == span.source_dtype else _rounded(_floats(piece, span), span, scale)
                _write(write.fileno(), data, at)
                at += len(data)
                moved(len(data))


def _scale_of(descriptor: int, span: Span, start: int) -> float:
    """The largest number of the matrix becomes 448. 1 for a matrix of zeros."""
    peak = 0.0
    for piece in _pieces(descriptor, span, start):
        floats = np.abs(_floats(piece, span))
        if not np.isfinite(floats).all():
            raise ModelFileInvalid(f"{span.name} holds numbers that are not finite.", next_step="Do not use this file.")
        peak = max(peak, float(floats.max(initial=0.0)))
    return float(np.float32(peak / E4M3_MAX)) or 1.0


def _pieces(descriptor: int, span: Span, start: int) -> Iterator[bytes]:
    width = _WIDTH.get(span.source_dtype, 1)
    for first in range(0, span.count, SLICE):
        wanted = min(SLICE, span.count - first) * width
        piece = os.pread(descriptor, wanted, start + first * width)
        if len(piece) != wanted:
            raise ModelFileInvalid(f"{span.name} is cut off.", next_step="Get the file again.")
        yield piece


def _floats(piece: bytes, span: Span) -> Floats:
    if span.source_dtype == "BF16":
        return from_bf16(np.frombuffer(piece, np.dtype("<u2")))
    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[span.source_dtype]
    return to_floats(np.frombuffer(piece, np.dtype(kind)))


def _rounded(floats: Floats, span: Span, scale: float) -> bytes:
    made: npt.NDArray[Any]
    if span.dtype == "F8_E4M3":
        made = to_e4m3((floats / np.float32(scale)).astype(np.float32))
    elif span.dtype == "BF16":
        made = to_bf16(floats)
    else:
        made = to_f16(floats)
        if bool((np.isinf(made) & np.isfinite(floats)).any()):
            raise RequestInvalid(
                f"{span.name} holds numbers above {F16_MAX:.0f}, which F16 cannot say.", next_step="Choose BF16."
            )
    return made.tobytes()


def _write(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        try:
            written = os.pwrite(descriptor, view, at)
        except OSError as error:
            raise DiskFull(f"the disk refuses more: {error.strerror}.", next_step="Free some space.") from None
        view, at = view[written:], at + written


def _width(dtype: str, name: str, table: Mapping[str, Any]) -> int:
    if dtype in _WIDTH:
        return _WIDTH[dtype]
    stored, count = _stored(table[name]), math.prod(table[name]["shape"])
    return stored // count if count else 1


def _bytes_of(name: str, dtype: str, shape: tuple[int, ...], table: Mapping[str, Any]) -> int:
    return math.prod(shape) * _WIDTH[dtype] if dtype in _WIDTH else _stored(table[name])


def _stored(tensor: Mapping[str, Any]) -> int:
    start, end = tensor["data_offsets"]
    return int(end - start)
