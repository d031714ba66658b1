"""The words of `/octo/blocks/1.0.0`: what a peer may ask for, and how the answer is cut into frames.

Asker:  one frame, an `Ask`; then one byte MORE for every CREDIT_BYTES that its reader has taken.
Server: one frame, an `Answer`; if that says OK, pieces of 1 byte to 1 MiB, each behind a 4-byte big-endian
length; a length of 0 is the end. A stream that breaks before it ended early, and says nothing of why.

The server sends at most AHEAD_BYTES past what was taken, so a slow reader makes nobody hold more than that,
whatever windows the transport has grown. Knows bytes, never sockets.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from market.errors import EncodingInvalid
from market.values import value
from p2p.wire import frame_of, value_of

BLOCKS_PROTOCOL = "/octo/blocks/1.0.0"

BLOCK_LIMIT_BYTES = 2 * 1024 * 1024
CATALOG_LIMIT_BYTES = 2 * 1024 * 1024
PIECE_LIMIT_BYTES = 1024 * 1024
HEAD_LIMIT_BYTES = 4 * 1024
CREDIT_BYTES = 1024 * 1024
AHEAD_BYTES = 4 * CREDIT_BYTES
MORE = b"\x01"

OK, NOT_HERE, BUSY, FAILED, INVALID = "ok", "not_here", "busy", "failed", "invalid"

CidText = Annotated[str, Field(min_length=8, max_length=128)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]


@value
class WantBlock:
    kind: Literal["block"] = "block"
    cid: CidText


@value
class WantRange:
    """`length` bytes of a file from `start`; fewer come if the file ends before."""

    kind: Literal["range"] = "range"
    root: CidText
    start: _Count
    length: Annotated[int, Field(ge=1, lt=2**53)]


@value
class WantTicket:
    kind: Literal["ticket"] = "ticket"


@value
class WantCatalog:
    kind: Literal["catalog"] = "catalog"
    creator: Annotated[bytes, Field(min_length=20, max_length=20)]
    name: Annotated[str, Field(min_length=1, max_length=128)]


@value
class WantPin:
    kind: Literal["pin"] = "pin"
    manifest: CidText


Want = Annotated[WantBlock | WantRange | WantTicket | WantCatalog | WantPin, Field(discriminator="kind")]


@value
class Ask:
    want: Want


@value
class Answer:
    """`code` is OK or why not; `text` is a ticket. "Not here" and "not for you" are the same word."""

    code: Annotated[str, Field(pattern="^[a-z_]{1,32}$")]
    text: Annotated[str, Field(max_length=2_048)] = ""


def ask_frame(want: WantBlock | WantRange | WantTicket | WantCatalog | WantPin) -> bytes:
    return frame_of(Ask, Ask(want=want))


def answer_frame(answer: Answer) -> bytes:
    return frame_of(Answer, answer)


def ask_of(body: bytes) -> Ask:
    """Raises EncodingInvalid."""
    return value_of(Ask, body)


def answer_of(body: bytes) -> Answer:
    """Raises EncodingInvalid."""
    return value_of(Answer, body)


def piece_frame(piece: memoryview | bytes) -> bytes:
    """A piece behind its length; the end of the answer for an empty one."""
    return b"".join((len(piece).to_bytes(4, "big"), piece))


def piece_size(head: bytes) -> int:
    """The length that 4 bytes announce; 0 is the end. Raises EncodingInvalid."""
    size = int.from_bytes(head, "big")
    if size > PIECE_LIMIT_BYTES:
        raise EncodingInvalid(f"a piece announces {size} bytes; {PIECE_LIMIT_BYTES} is the limit.")
    return size
