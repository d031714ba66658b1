"""Server-sent events: bytes as they arrive, the data of events as they become whole.

Lives here: lines, fields and limits. Knows no HTTP and nothing of what the data say.
Source: WHATWG HTML, section 9.2.6 (interpreting an event stream); lines that end in a lone CR are not taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from market.errors import EncodingInvalid

EVENT_LIMIT_BYTES: Final = 2 * 1024 * 1024
"""vLLM sends a prompt's ids back in one event: 131,072 of them are 1 MiB. A delta has a few hundred bytes."""
_BOM: Final = b"\xef\xbb\xbf"


class EventBuffer:
    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._first = True

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of each event that ended. Raises EncodingInvalid for a line or an event over the limit."""
        *whole, rest = piece.split(b"\n")
        for part in whole:
            line = bytes(self._line) + part
            self._line.clear()
            if len(line) > EVENT_LIMIT_BYTES:
                raise EncodingInvalid("an event is too large.")
            event = self._take(line.removesuffix(b"\r"))
            if event is not None:
                yield event
        self._line += rest
        if len(self._line) > EVENT_LIMIT_BYTES:
            raise EncodingInvalid("an event is too large.")

    def _take(self, line: bytes) -> bytes | None:
        if self._first:
            self._first, line = False, line.removeprefix(_BOM)
        if not line:
            data, self._data, self._size = self._data, [], 0
            return b"\n".join(data) if data else None
        name, _, value = line.partition(b":")  # a comment has an empty name
        if name == b"data":
            self._size += len(value)
            if self._size > EVENT_LIMIT_BYTES:
                raise EncodingInvalid("an event is too large.")
            self._data.append(value.removeprefix(b" "))
        return None
