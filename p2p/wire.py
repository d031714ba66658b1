"""Frames: a 4-byte big-endian length, then canonical DAG-CBOR.

Knows bytes, never sockets: the parser is fed by hand, so that every cut between two reads can be tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from market.errors import EncodingInvalid
from market.message import TYPE_OF, Message
from market.values import decode, encode

T = TypeVar("T")

FRAME_LIMIT_BYTES = 1024 * 1024
"""A prompt of 128k tokens is about 600 kB of text; more than this in one frame is an attack or a bug."""

_HEADER_BYTES = 4


def frame_of(kind: Any, item: object) -> bytes:
    """One frame around a value; raises EncodingInvalid if it is over FRAME_LIMIT_BYTES."""
    body = encode(kind, item)
    if len(body) > FRAME_LIMIT_BYTES:
        raise EncodingInvalid(
            f"a frame of {len(body)} bytes is over the limit of {FRAME_LIMIT_BYTES}.",
            next_step="Shorten the prompt.",
        )
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


def value_of(kind: type[T], body: bytes) -> T:
    """The value in a frame's body; raises EncodingInvalid. About 10 us for a token message."""
    return decode(kind, body, limit_bytes=FRAME_LIMIT_BYTES)


def message_frame(message: Message) -> bytes:
    return frame_of(Message, message)


def message_of(body: bytes) -> Message:
    """Raises EncodingInvalid, also for a message whose type is not that of its body."""
    message = value_of(Message, body)
    if TYPE_OF[type(message.body)] is not message.type:
        raise EncodingInvalid(f"a message of type {message.type} does not carry {message.body.kind!r}.")
    return message


class FrameParser:
    """Bytes in, frame bodies out. Once it has raised, the stream has lost its place and it keeps raising.

    Holds at most one frame and one read: the length is checked before a byte of the body is waited for.
    """

    def __init__(self, limit_bytes: int = FRAME_LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._held = bytearray()
        self._broken: str = ""

    @property
    def is_mid_frame(self) -> bool:
        """Whether a frame has begun and not ended: the time to set a timeout."""
        return bool(self._held)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield every body that is complete; raises EncodingInvalid for an empty or oversized frame."""
        self._held += data
        at = 0
        try:
            while True:
                if self._broken:
                    raise EncodingInvalid(self._broken)
                if len(self._held) - at < _HEADER_BYTES:
                    return
                size = int.from_bytes(self._held[at : at + _HEADER_BYTES], "big")
                if not 0 < size <= self._limit:
                    self._broken = f"a frame announces {size} bytes; it may hold 1 to {self._limit}."
                    continue
                end = at + _HEADER_BYTES + size
                if len(self._held) < end:
                    return
                body = bytes(self._held[at + _HEADER_BYTES : end])
                at = end
                yield body
        finally:
            del self._held[:at]
