"""The head of a GGUF file: its key-value pairs and its table of tensors, with limits on every count.

Lives here: the format, nothing of what the keys mean. The `gguf` package reads the same (a test compares them) but
takes 2 s for a vocabulary of 49,152 and believes every length that a file claims; this takes 0.1 s.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from market.errors import ModelFileInvalid
from market.values import value

Value = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

_HEAD_LIMITS_BYTES = (16 * 1024 * 1024, 128 * 1024 * 1024)
"""What is read at first, and at most: the head of a vocabulary of 256,000 has 12 MB."""
_PAIRS_LIMIT = 4096
_TENSORS_LIMIT = 1 << 16
_ITEMS_LIMIT = 1 << 22
"""Items of all arrays together: each becomes a Python object of at least 8 bytes."""
_TEXT_LIMIT_BYTES = 1 << 20
_DIMENSIONS_LIMIT = 8
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_START = struct.Struct("<4sIQQ")


class GgufTensor(NamedTuple):
    """`kind` is ggml's number of the data type; `offset` counts from `GgufHead.data_at`."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@value
class GgufHead:
    """`data_at` is where the tensors' bytes begin in the file."""

    fields: dict[str, Value]
    tensors: tuple[GgufTensor, ...]
    data_at: int


def read_gguf_metadata(path: Path) -> dict[str, Value]:
    """The key-value pairs alone. Blocking. Raises as `read_gguf_head`."""
    return read_gguf_head(path).fields


def read_gguf_head(path: Path) -> GgufHead:
    """Blocking. Raises ModelFileInvalid for anything torn, oversized or not GGUF; OSError."""
    for limit in _HEAD_LIMITS_BYTES:
        with path.open("rb") as file:
            data = file.read(limit)
        try:
            return _parse(data, path.name)
        except (struct.error, UnicodeDecodeError, KeyError, IndexError):
            if len(data) < limit:
                break
    raise ModelFileInvalid(f"{path.name} has a torn or oversized head.")


def _parse(data: bytes, name: str) -> GgufHead:
    magic, version, tensors, pairs = _START.unpack_from(data)
    if magic != b"GGUF" or version not in (2, 3) or pairs > _PAIRS_LIMIT or tensors > _TENSORS_LIMIT:
        raise ModelFileInvalid(f"{name} is not a GGUF file of version 2 or 3.")
    reader = _Reader(data, _START.size)
    fields = {reader.text(): reader.value() for _ in range(pairs)}
    table = tuple(reader.tensor() for _ in range(tensors))
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise ModelFileInvalid(f"{name} has an impossible alignment.")
    return GgufHead(fields=fields, tensors=table, data_at=-(-reader.at // alignment) * alignment)


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self.at = at
        self._data = data
        self._items = _ITEMS_LIMIT

    def value(self) -> Value:
        kind = self._scalar("I")
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            number: int | float = self._scalar(_SCALARS[kind])
            return number
        kind, count = self._scalar("I"), self._scalar("Q")
        self._items -= count
        if self._items < 0:
            raise IndexError
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        layout = struct.Struct(f"<{count}{_SCALARS[kind]}")
        items = layout.unpack_from(self._data, self.at)
        self.at += layout.size
        return list(items)

    def tensor(self) -> GgufTensor:
        name, dimensions = self.text(), self._scalar("I")
        if dimensions > _DIMENSIONS_LIMIT:
            raise IndexError
        shape = tuple(self._scalar("Q") for _ in range(dimensions))
        return GgufTensor(name, shape, self._scalar("I"), self._scalar("Q"))

    def text(self) -> str:
        length: int = self._scalar("Q")
        end = self.at + length
        if length > _TEXT_LIMIT_BYTES or end > len(self._data):
            raise IndexError
        raw, self.at = self._data[self.at : end], end
        return raw.decode()

    def _scalar(self, code: str) -> int:
        (number,) = struct.unpack_from("<" + code, self._data, self.at)
        self.at += struct.calcsize("<" + code)
        return int(number) if code not in "fd?" else number
