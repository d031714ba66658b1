"""What an image counts for, the same for buyer and seller: the tiles of 64 x 64 pixels that a step goes over.

A PNG counts by the request; its first bytes must name the size that was asked for.
"""

from __future__ import annotations

import struct
from typing import Final

from market.errors import EncodingInvalid, RequestInvalid
from market.work import PIECE_LIMIT_BYTES, TILE, ImageRequest, WorkRequest

_HEAD: Final = struct.Struct(">8sI4sII")
"""PNG, sections 5.2 and 11.2.2: the signature, then IHDR with width and height."""


class ImageMeter:
    """A unit in is a character of both prompts, a unit out a tile in a step."""

    def units_in(self, request: WorkRequest, blob: bytes) -> int:
        image = _checked(request, blob)
        return len(image.prompt) + len(image.negative)

    def units_out_limit(self, request: WorkRequest, blob: bytes) -> int:
        image = _checked(request, blob)
        return image.count * units_of_image(image)

    def units_of(self, request: WorkRequest, piece: bytes) -> int:
        image = _checked(request, b"")
        if not _HEAD.size <= len(piece) <= PIECE_LIMIT_BYTES:
            raise EncodingInvalid(f"{len(piece)} bytes are no PNG.")
        signature, size, name, width, height = _HEAD.unpack_from(piece)
        if (signature, size, name) != (b"\x89PNG\r\n\x1a\n", 13, b"IHDR"):
            raise EncodingInvalid("the image is no PNG.")
        if (width, height) != (image.width, image.height):
            raise EncodingInvalid(f"{image.width} x {image.height} was asked for, {width} x {height} came.")
        return units_of_image(image)


def units_of_image(image: ImageRequest) -> int:
    return -(-image.width // TILE) * -(-image.height // TILE) * image.steps


def _checked(request: WorkRequest, blob: bytes) -> ImageRequest:
    if not isinstance(request, ImageRequest) or blob:
        raise RequestInvalid("this model makes images from a text, and nothing else.", param="model")
    return request
