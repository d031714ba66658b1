"""What a node and a child that works for it say to each other, and how that becomes bytes on their socket pair.

Lives here: frames, the settings and facts they open with. Must not know: asyncio, engines, what the work is.

A frame is two 4-byte big-endian lengths, a head (DAG-CBOR: a message, and the sizes of the parts), then the parts as
they are: a blob of 32 MiB is never parsed, and what a child taken over by its model can make the node parse is small.

Node to child: settings, then ["run", number, max_units, priority] with the request and the blob as parts,
["cancel", number]. Child to node: ["ready", facts] or ["fail", code, message, next step], then
["made", number, progress, finish] with pieces as parts, ["refused", number, code, message, next step], and ["alive"]
while it works without anything to say. Neither side waits for an answer; the end of the stream is goodbye.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import libipld

from market.errors import EncodingInvalid
from market.values import decode_plain, value
from market.work import BLOB_LIMIT_BYTES, INPUTS_LIMIT, PIECE_LIMIT_BYTES, REQUEST_LIMIT_BYTES

HEAD_LIMIT_BYTES: Final = 64 * 1024
"""2,048 sizes take 10 KiB."""
PARTS_LIMIT: Final = INPUTS_LIMIT
TO_CHILD_LIMIT_BYTES: Final = REQUEST_LIMIT_BYTES + BLOB_LIMIT_BYTES
TO_NODE_LIMIT_BYTES: Final = PIECE_LIMIT_BYTES

_LENGTHS: Final = struct.Struct(">II")


@value
class ChildSettings:
    """`runner` is the module whose `open_runner` loads the model in `folder`; `options` are for it alone.
    `readable` are further paths that it may read, `devices` a card's; `memory_bytes` bounds its private memory (see
    `inference.isolation.confine`)."""

    parent: int
    runner: str
    folder: str
    readable: tuple[str, ...]
    options: dict[str, Any]
    threads: int
    memory_bytes: int
    devices: tuple[str, ...] = ()


@value
class ChildFacts:
    """What a child reports once its model is loaded. `engine` is the engine class; `context` the longest input."""

    engine: str
    context: int
    isolation: str


@dataclass(frozen=True, slots=True)
class Frame:
    message: list[Any]
    parts: tuple[bytes, ...] = ()


def pack(message: Sequence[Any], parts: Sequence[bytes] = ()) -> bytes:
    """Raises EncodingInvalid over a limit."""
    head = bytes(libipld.encode_dag_cbor([list(message), [len(part) for part in parts]]))
    size = sum(map(len, parts))
    if len(head) > HEAD_LIMIT_BYTES or len(parts) > PARTS_LIMIT or size > TO_CHILD_LIMIT_BYTES:
        raise EncodingInvalid(f"a frame of {len(head)} + {size} bytes in {len(parts)} parts is over the limit.")
    return b"".join((_LENGTHS.pack(len(head), size), head, *parts))


class FrameBuffer:
    """Bytes as they arrive, frames as they become whole."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Raises EncodingInvalid for a frame over the limit, or one whose head makes no sense."""
        self._data += data
        while len(self._data) >= _LENGTHS.size:
            head_size, body_size = _LENGTHS.unpack_from(self._data)
            if head_size > HEAD_LIMIT_BYTES or body_size > self._limit_bytes:
                raise EncodingInvalid(f"a frame of {head_size} + {body_size} bytes is over the limit.")
            start = _LENGTHS.size + head_size
            if len(self._data) < start + body_size:
                return
            head = bytes(self._data[_LENGTHS.size : start])
            body = bytes(self._data[start : start + body_size])
            del self._data[: start + body_size]
            yield _frame(head, body)


def _frame(head: bytes, body: bytes) -> Frame:
    match decode_plain(head, limit_bytes=HEAD_LIMIT_BYTES):
        case [list(message), list(sizes)] if len(sizes) <= PARTS_LIMIT:
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
