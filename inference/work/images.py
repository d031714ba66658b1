"""How large an image is, from its first bytes: PNG and JPEG, without decoding anything.

Lives here: the limits against decompression bombs. It runs in the node's own process on a stranger's bytes, so it walks
lengths and never inflates; only the child decodes.
Source: PNG, https://www.w3.org/TR/png-3/ (5.3, 11.2.1); JPEG, ITU-T T.81 (B.1.1, B.2.2).
"""

from __future__ import annotations

import struct
from typing import Final

from market.errors import RequestInvalid
from market.values import value

SIDE_LIMIT: Final = 16_384
PIXELS_LIMIT: Final = 1 << 25
"""33.5 megapixels are 100 MB as RGB."""
SCANS_LIMIT: Final = 64
"""Each scan of a progressive JPEG goes over all pixels: 30 kB can hold a thousand. libjpeg's own script has 10."""
_SEGMENTS_LIMIT: Final = 4096
"""Fill bytes count too: 32 MiB of them would take seconds."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_JPEG: Final = b"\xff\xd8\xff"
_FRAMES: Final = frozenset((0xC0, 0xC1, 0xC2))
"""Baseline, extended and progressive: what libjpeg-turbo decodes without options."""
_OTHER_FRAMES: Final = frozenset((0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
_NO_LENGTH: Final = frozenset((0x01, *range(0xD0, 0xD8)))


@value
class ImageSize:
    width: int
    height: int


def image_size(data: bytes) -> ImageSize:
    """In pixels as stored (an EXIF rotation is not applied). Raises RequestInvalid."""
    if data.startswith(_PNG):
        size = _png_size(data)
    elif data.startswith(_JPEG):
        size = _jpeg_size(data)
    else:
        raise RequestInvalid("the image is neither PNG nor JPEG.", next_step="Convert it.", param="image")
    if size.width < 1 or size.height < 1:
        raise RequestInvalid("the image has no pixels.", param="image")
    if max(size.width, size.height) > SIDE_LIMIT or size.width * size.height > PIXELS_LIMIT:
        raise RequestInvalid(
            f"the image has {size.width} x {size.height} pixels; {PIXELS_LIMIT} in all and {SIDE_LIMIT} a side are "
            "the limits.",
            next_step="Scale it down.",
            param="image",
        )
    return size


def _png_size(data: bytes) -> ImageSize:
    if len(data) < 33 or data[8:16] != b"\0\0\0\x0dIHDR":
        raise _torn("PNG")
    width, height, depth, colour, compression, filters, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filters or interlace > 1:
        raise _torn("PNG")
    return ImageSize(width=width, height=height)


def _jpeg_size(data: bytes) -> ImageSize:
    if data.count(b"\xff\xda") > SCANS_LIMIT:  # in coded data 0xff is followed by 0: this occurs in markers alone
        raise RequestInvalid(f"the JPEG has more than {SCANS_LIMIT} scans.", next_step="Save it anew.", param="image")
    at = 2
    for _ in range(_SEGMENTS_LIMIT):
        if data[at : at + 2] == b"\xff\xff":  # a fill byte
            at += 1
            continue
        if len(data) < at + 4 or data[at] != 0xFF:
            raise _torn("JPEG")
        marker = data[at + 1]
        at += 2
        if marker in _NO_LENGTH:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _FRAMES:
            if length < 8 or len(data) < at + 8:
                raise _torn("JPEG")
            height, width = struct.unpack_from(">HH", data, at + 3)
            return ImageSize(width=width, height=height)
        if marker in _OTHER_FRAMES or marker in (0xD8, 0xD9, 0xDA):
            raise _torn("JPEG")
        at += length
    raise _torn("JPEG")


def _torn(kind: str) -> RequestInvalid:
    return RequestInvalid(f"the image is not a whole {kind}, or one of a kind that nobody reads.", param="image")
