"""The one frame format between a node and its children."""

from __future__ import annotations

import pytest

from inference.frames import Frame, FrameBuffer, Limits, pack
from inference.work.orders import TO_CHILD
from market.errors import EncodingInvalid
from market.work import BLOB_LIMIT_BYTES, REQUEST_LIMIT_BYTES

LIMITS = Limits(1000, body_bytes=2000, parts=3)
NONSENSE = {
    "head too long": (1001).to_bytes(4, "big") + bytes(4),
    "body too long": bytes(4) + (2001).to_bytes(4, "big"),
    "no CBOR": b"\0\0\0\x02\0\0\0\0\xff\xff",
    "no sizes": b"\0\0\0\x02\0\0\0\0\x81\x80",
    "a map for a message": b"\0\0\0\x03\0\0\0\0\x82\xa0\x80",
    "nested": b"\0\0\1\0\0\0\0\0" + b"\x81" * 256,
    "parts that do not add up": pack(["made"], LIMITS, [b"abc"]).replace(b"\x81\x03", b"\x81\x04") + b"d",
    "a negative size": pack(["made"], LIMITS, [b"abc", b"d"]).replace(b"\x82\x03\x01", b"\x82\x05\x20"),
    "true for a size": pack(["made"], LIMITS, [b"a"]).replace(b"\x81\x01", b"\x81\xf5"),
    "too many parts": pack(["made"], Limits(1000, 2000, 4), [b""] * 4),
}


def test_frames_survive_being_cut_anywhere():
    frames = [
        Frame(["run", 1, {"a": [1, -1]}], (b"request", bytes(1000))),
        Frame(["alive"]),
        Frame(["step", [[1, -1, "stop", "", 0, b""]]]),
        Frame(["made", 1, 5, ""], (b"",)),
    ]
    data = b"".join(pack(frame.message, LIMITS, frame.parts) for frame in frames)
    for size in (1, 3, 7, len(data)):
        buffer = FrameBuffer(LIMITS)
        assert [f for at in range(0, len(data), size) for f in buffer.feed(data[at : at + size])] == frames


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
def test_a_frame_that_cannot_be_is_refused(data):
    with pytest.raises(EncodingInvalid):
        list(FrameBuffer(LIMITS).feed(data))


def test_a_frame_too_long_is_refused_by_its_lengths_alone():
    """What was announced is never waited for, nor kept."""
    with pytest.raises(EncodingInvalid, match="limit"):
        list(FrameBuffer(LIMITS).feed(b"\xff" * 8))
    assert list(FrameBuffer(LIMITS).feed(b"\xff" * 7)) == []


@pytest.mark.parametrize(
    ("head", "parts"),
    [(bytes(1000), []), (b"", [bytes(2000), b"x"]), (b"", [b""] * 4)],
    ids=["head", "body", "parts"],
)
def test_a_frame_over_a_limit_is_not_even_sent(head, parts):
    with pytest.raises(EncodingInvalid, match="limit"):
        pack([head], LIMITS, parts)


def test_the_largest_request_and_blob_fit_and_one_byte_more_does_not():
    request, blob = bytes(REQUEST_LIMIT_BYTES), bytes(BLOB_LIMIT_BYTES)
    [frame] = FrameBuffer(TO_CHILD).feed(pack(["run", 1, 1, 0], TO_CHILD, [request, blob]))
    assert frame.parts == (request, blob)
    with pytest.raises(EncodingInvalid, match="limit"):
        pack(["run", 1, 1, 0], TO_CHILD, [request, blob, b"!"])
