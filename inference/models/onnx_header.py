"""What an ONNX file says about itself: opsets, inputs, outputs, types of weights, files beside it.

Lives here: a protobuf walk that seeks past the weights and stops after a fixed number of fields. Loads no tensor and
no external data; knows no manifest.
Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (field numbers), protobuf's wire format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from market.errors import ModelFileInvalid
from market.values import value

_FIELDS_LIMIT = 500_000
"""Of all messages together, about 1 s: a graph of 50,000 nodes and 10,000 weights has some 200,000."""
_TEXT_LIMIT_BYTES = 4096
_NAMES_LIMIT = 1024
_IR_VERSIONS = range(1, 64)
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSET = 1, 7, 8
_GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 5, 11, 12
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL = 1, 2, 8, 13
_TYPES = {
    1: ("F32", 32), 2: ("U8", 8), 3: ("I8", 8), 4: ("U16", 16), 5: ("I16", 16), 6: ("I32", 32), 7: ("I64", 64),
    9: ("BOOL", 8), 10: ("F16", 16), 11: ("F64", 64), 16: ("BF16", 16), 17: ("F8_E4M3", 8), 19: ("F8_E5M2", 8),
    21: ("U4", 4), 22: ("I4", 4), 23: ("F4", 4),
}  # fmt: skip


@value
class OnnxHeader:
    """`opsets` by domain ("" is ONNX's own); `inputs` without the weights; `external` names the files, relative to
    this one, that hold weights. `cache_token_bytes`: what one token takes in the keys and values that go in, as far as
    their shapes say it."""

    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int
    bytes_by_dtype: Mapping[str, int]
    external: tuple[str, ...]
    cache_token_bytes: int = 0


def read_onnx_header(path: Path) -> OnnxHeader:
    """Blocking. Raises ModelFileInvalid for anything torn, oversized or not ONNX; OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            return _Walk(file).model(size)
        except _Torn as error:
            raise ModelFileInvalid(f"{path.name} is not a sound ONNX file: {error}.") from None


class _Torn(Exception):
    pass


class _Walk:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._fields_left = _FIELDS_LIMIT
        self._weights: set[str] = set()
        self._external: dict[str, None] = {}
        self._bytes: Counter[str] = Counter()
        self._parameters = 0
        self._cache_bytes = 0

    def model(self, size: int) -> OnnxHeader:
        version, graph = 0, None
        opsets: dict[str, int] = {}
        for field, item, length in self._fields(0, size):
            if field == _MODEL_IR and length is None:
                version = item
            elif field == _MODEL_GRAPH and length is not None and graph is None:
                graph = (item, item + length)
            elif field == _MODEL_OPSET and length is not None:
                domain, number = self._opset(item, item + length)
                opsets[domain] = number
            elif not 1 <= field <= 25:
                raise _Torn("it has a field that no model has")
        if version not in _IR_VERSIONS or graph is None or not opsets:
            raise _Torn("it has no version, no graph or no operator set")
        inputs, outputs = self._graph(*graph)
        return OnnxHeader(
            ir_version=version,
            opsets=opsets,
            inputs=tuple(name for name in inputs if name not in self._weights),
            outputs=tuple(outputs),
            parameters=self._parameters,
            bytes_by_dtype=dict(self._bytes),
            external=tuple(self._external),
            cache_token_bytes=self._cache_bytes,
        )

    def _graph(self, start: int, end: int) -> tuple[list[str], list[str]]:
        names: dict[int, list[str]] = {_GRAPH_INPUT: [], _GRAPH_OUTPUT: []}
        for field, item, length in self._fields(start, end):
            if length is None:
                continue
            if field == _GRAPH_INITIALIZER:
                self._tensor(item, item + length)
            elif field in names and len(names[field]) < _NAMES_LIMIT:
                found = self._texts(item, item + length, last=1)  # its type and shape are behind it, and no text
                names[field].append(found.get(1, ""))
                if field == _GRAPH_INPUT and found.get(1, "").startswith("past"):
                    self._cache(item, item + length)
        return names[_GRAPH_INPUT], names[_GRAPH_OUTPUT]

    def _tensor(self, start: int, end: int) -> None:
        count, kind = 1, 0
        for field, item, length in self._fields(start, end):
            if field == _TENSOR_DIMS and length is None:
                count *= item
            elif field == _TENSOR_DIMS and length is not None:  # packed
                at = item
                while at < item + length:
                    number, at = self._varint(at, item + length)
                    count *= number
            elif field == _TENSOR_TYPE and length is None:
                kind = item
            elif field == _TENSOR_NAME and length is not None:
                self._weights.add(self._text(item, length))
            elif field == _TENSOR_EXTERNAL and length is not None:
                entry = self._texts(item, item + length, last=2)
                if entry.get(1) == "location":
                    self._external[entry.get(2, "")] = None
            if count >= 1 << 63:
                raise _Torn("a weight has an impossible shape")
        name, bits = _TYPES.get(kind, ("unknown", 8))
        self._parameters += count
        self._bytes[name] += count * bits // 8

    def _cache(self, start: int, end: int) -> None:
        """Keys or values: [rows, heads, tokens, width] of a type. Of the sizes those that are known count."""
        kind, count = 0, 1
        for at, stop in self._inside(start, end, 2):
            for tensor, tensor_end in self._inside(at, stop, 1):
                kind = next((n for field, n, length in self._fields(tensor, tensor_end) if field == 1), 0)
                for shape, shape_end in self._inside(tensor, tensor_end, 2):
                    for dim, dim_end in self._inside(shape, shape_end, 1):
                        for field, size, length in self._fields(dim, dim_end):
                            if field == 1 and length is None and 0 < size < 1 << 20:
                                count = min(count * size, 1 << 32)
        self._cache_bytes += count * _TYPES.get(kind, ("", 0))[1] // 8

    def _inside(self, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
        """Where the messages of a field lie."""
        for field, item, length in self._fields(start, end):
            if field == wanted and length is not None:
                yield item, item + length

    def _opset(self, start: int, end: int) -> tuple[str, int]:
        domain, version = "", 0
        for field, item, length in self._fields(start, end):
            if field == 1 and length is not None:
                domain = self._text(item, length)
            elif field == 2 and length is None:
                version = item
        return domain, version

    def _texts(self, start: int, end: int, *, last: int) -> dict[int, str]:
        """The short texts of a message in its fields 1 to `last`, by field number."""
        return {
            field: self._text(item, length)
            for field, item, length in self._fields(start, end)
            if length is not None and length <= _TEXT_LIMIT_BYTES and field <= last
        }

    # ---- the wire format -----------------------------------------------------------------------

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """(field, number, None) or (field, position, length), in order."""
        at = start
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise _Torn(f"it has over {_FIELDS_LIMIT} fields")
            tag, at = self._varint(at, end)
            field, wire = tag >> 3, tag & 7
            if wire == 0:
                number, at = self._varint(at, end)
                yield field, number, None
                continue
            if wire == 2:
                length, at = self._varint(at, end)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise _Torn("it is not protobuf")
            if length > end - at:
                raise _Torn("it is cut off")
            yield field, at, length
            at += length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        self._file.seek(at)
        number = 0
        for shift, byte in enumerate(self._file.read(min(10, end - at))):
            number |= (byte & 0x7F) << 7 * shift
            if byte < 0x80:
                return number, at + shift + 1
        raise _Torn("it is cut off")

    def _text(self, at: int, length: int) -> str:
        if length > _TEXT_LIMIT_BYTES:
            raise _Torn("a name in it is too long")
        self._file.seek(at)
        try:
            return self._file.read(length).decode()
        except UnicodeDecodeError:
            raise _Torn("a name in it is not text") from None
