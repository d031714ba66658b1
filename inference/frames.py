"""One frame format for all our child processes: a message, and parts beside it.

Lives here: how both become bytes on a socket pair, and what a node and one kind of child agree on. Must not know:
asyncio, processes, what is said.

A frame is two 4-byte big-endian lengths, a head (DAG-CBOR: the message, and the sizes of the parts), then the parts as
they are: a blob of 32 MiB is never parsed, and what a child taken over by its model can make the node parse is small.

Node to child: its settings, then orders. Child to node: ["ready", facts] or ["fail", code, message, next step], then
what it made of the orders, and ["alive"] while it works without anything to say. Neither side waits for an answer; the
end of the stream is goodbye.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import libipld

from market.errors import EncodingInvalid
from market.values import decode_plain

_LENGTHS: Final = struct.Struct(">II")


class Settings(Protocol):
    """What every child is told first: whose it is, and how many threads it may use."""

    @property
    def parent(self) -> int: ...

    @property
    def threads(self) -> int: ...


S = TypeVar("S", bound=Settings)
F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a frame that goes one way: bytes of its head, bytes of all parts, how many parts."""

    head_bytes: int
    body_bytes: int = 0
    parts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect(Generic[S, F]):
    """What a node and one kind of child open with (`market.values`), and how much each may say at once."""

    settings: type[S]
    facts: type[F]
    to_child: Limits
    to_node: Limits


@dataclass(frozen=True, slots=True)
class Frame:
    message: list[Any]
    parts: tuple[bytes, ...] = ()


def pack(message: Sequence[Any], limits: Limits, parts: Sequence[bytes] = ()) -> bytes:
    """Raises EncodingInvalid over a limit."""
    head = bytes(libipld.encode_dag_cbor([list(message), [len(part) for part in parts]]))
    size = sum(map(len, parts))
    if len(head) > limits.head_bytes or size > limits.body_bytes or len(parts) > limits.parts:
        raise EncodingInvalid(f"a frame of {len(head)} + {size} bytes in {len(parts)} parts is over the limit.")
    return b"".join((_LENGTHS.pack(len(head), size), head, *parts))


class FrameBuffer:
    """Bytes as they arrive, frames as they become whole."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Raises EncodingInvalid for a frame over a limit, or one whose head makes no sense."""
        self._data += data
        while len(self._data) >= _LENGTHS.size:
            head_size, body_size = _LENGTHS.unpack_from(self._data)
            if head_size > self._limits.head_bytes or body_size > self._limits.body_bytes:
                raise EncodingInvalid(f"a frame of {head_size} + {body_size} bytes is over the limit.")
            start = _LENGTHS.size + head_size
            if len(self._data) < start + body_size:
                return
            head = bytes(self._data[_LENGTHS.size : start])
            body = bytes(self._data[start : start + body_size])
            del self._data[: start + body_size]
            yield self._frame(head, body)

    def _frame(self, head: bytes, body: bytes) -> Frame:
        match decode_plain(head, limit_bytes=self._limits.head_bytes):
            case [list(message), list(sizes)] if len(sizes) <= self._limits.parts:
                pass
            case _:
                raise EncodingInvalid("a frame's head is none.")
        if any(type(size) is not int or size < 0 for size in sizes) or sum(sizes) != len(body):
            raise EncodingInvalid("a frame's parts do not add up.")
        parts, at = [], 0
        for size in sizes:
            parts.append(body[at : at + size])
            at += size
        return Frame(message, tuple(parts))
