"""The key-value pairs at the head of a GGUF file, with limits on every count.

Lives here: the format, nothing of what the keys mean. The `gguf` package reads the same (a test compares them) but
takes 2 s for a vocabulary of 49,152 and believes every length that a file claims; this takes 0.1 s.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from pathlib import Path

from market.errors import ModelFileInvalid

Value = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

_HEAD_LIMIT_BYTES = 128 * 1024 * 1024
_PAIRS_LIMIT = 4096
_ITEMS_LIMIT = 1 << 22
_TEXT_LIMIT_BYTES = 1 << 20
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_gguf_metadata(path: Path) -> dict[str, Value]:
    """Blocking. Raises ModelFileInvalid for anything torn, oversized or not GGUF; OSError."""
    with path.open("rb") as file:
        data = file.read(_HEAD_LIMIT_BYTES)
    try:
        magic, version, _, count = struct.unpack_from("<4sIQQ", data)
        if magic != b"GGUF" or version not in (2, 3) or count > _PAIRS_LIMIT:
            raise ModelFileInvalid(f"{path.name} is not a GGUF file of version 2 or 3.")
        reader = _Reader(data, struct.calcsize("<4sIQQ"))
        return {reader.text(): reader.value() for _ in range(count)}
    except (struct.error, UnicodeDecodeError, KeyError, IndexError):
        raise ModelFileInvalid(f"{path.name} has a torn or oversized head.") from None


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def value(self) -> Value:
        kind = self._scalar("I")
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            number: int | float = self._scalar(_SCALARS[kind])
            return number
        kind, count = self._scalar("I"), self._scalar("Q")
        if count > _ITEMS_LIMIT:
            raise IndexError
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        layout = struct.Struct(f"<{count}{_SCALARS[kind]}")
        items = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return list(items)

    def text(self) -> str:
        length: int = self._scalar("Q")
        end = self._at + length
        if length > _TEXT_LIMIT_BYTES or end > len(self._data):
            raise IndexError
        raw, self._at = self._data[self._at : end], end
        return raw.decode()

    def _scalar(self, code: str) -> int:
        (number,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return int(number) if code not in "fd?" else number
