"""POST /v1/images/generations: texts to pictures.

Source: OpenAI's API reference, "Create image". What its API has no word for stands in `octo`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from market.errors import PeerFailed
from market.work import ImageRequest
from node.api.answering import Prepared, Whole, WholeOnly
from node.api.answers import Answer
from node.api.bodies import Shape, parse_body
from node.api.clerk import Clerk, Ignored, ModelName, OctoOptions, Refused, micro
from node.api.octo_facts import octo_of, pieces_of, to_json

_PNG = b"\x89PNG\r\n\x1a\n"
_DEFAULT_SIZE = "512x512"


def _size(raw: object) -> object:
    """`auto`, or width x height in pixels."""
    if raw in (None, "auto"):
        return _DEFAULT_SIZE
    sides = raw.split("x") if isinstance(raw, str) else ()
    fits = [s.isascii() and s.isdigit() and len(s) <= 4 and 64 <= int(s) <= 2048 and not int(s) % 8 for s in sides]
    if fits != [True, True]:
        raise PydanticCustomError("size", "should be like 512x512: 64 to 2048 pixels each way, multiples of 8")
    return raw


def _only_png(raw: object) -> object:
    if raw not in (None, "png"):
        raise PydanticCustomError("format", "should be png")
    return raw


def _no_url(raw: object) -> object:
    if raw == "url":
        raise PydanticCustomError("format", "this node keeps no pictures for a URL to show; ask for b64_json")
    return raw


class ImageOptions(OctoOptions):
    """`seed` draws the same pictures on the same class of engine."""

    negative: Annotated[str, Field(max_length=4096)] = ""
    steps: Annotated[int, Field(ge=1, le=150)] = 20
    guidance: Annotated[float, Field(ge=0, le=50)] = 7.5
    seed: Annotated[int, Field(ge=0, lt=2**53)] | None = None


class ImagesBody(Shape):
    model: ModelName
    prompt: Annotated[str, Field(min_length=1, max_length=4096)]
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: Annotated[str | None, BeforeValidator(_size)] = _DEFAULT_SIZE
    response_format: Annotated[Literal["b64_json"] | None, BeforeValidator(_no_url)] = None
    output_format: Annotated[str | None, BeforeValidator(_only_png)] = None
    octo: ImageOptions | None = None

    background: Refused = None
    output_compression: Refused = None
    partial_images: Refused = None
    stream: Refused = None

    moderation: Ignored = None
    quality: Ignored = None
    style: Ignored = None
    safety_identifier: Ignored = None
    user: Ignored = None


class Images:
    def __init__(self, clerk: Clerk) -> None:
        self._clerk = clerk

    async def prepare(self, data: bytes) -> Prepared:
        asked = parse_body(ImagesBody, data)
        octo = asked.octo or ImageOptions()
        size = asked.size or _DEFAULT_SIZE
        width, height = map(int, size.split("x"))
        drawn = int.from_bytes(self._clerk.random(6), "big")
        request = ImageRequest(
            prompt=asked.prompt,
            negative=octo.negative,
            width=width,
            height=height,
            steps=octo.steps,
            guidance_micro=micro(octo.guidance),
            count=asked.n or 1,
            seed=drawn if octo.seed is None else octo.seed,
        )
        order = self._clerk.work_order(asked.model, request, octo, param="prompt", seeded=octo.seed is not None)
        return Prepared(orders=[order], form=ImagesForm(request, created=self._clerk.now(), size=size))


class ImagesForm(WholeOnly):
    def __init__(self, request: ImageRequest, *, created: int, size: str) -> None:
        self._request = request
        self._created = created
        self._size = size

    def whole(self, answers: Sequence[Answer]) -> Whole:
        (answer,) = answers
        outcome = answer.outcome
        pictures = pieces_of(answer, self._request.count)
        if not all(picture.startswith(_PNG) for picture in pictures):
            raise PeerFailed(f"a picture is no PNG; receipt {outcome.receipt}.", peer=outcome.provider)
        return Whole(
            to_json(
                {
                    "created": self._created,
                    "data": [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures],
                    "output_format": "png",
                    "size": self._size,
                    "usage": {
                        "input_tokens": outcome.tokens_in,
                        "input_tokens_details": {"image_tokens": 0, "text_tokens": outcome.tokens_in},
                        "output_tokens": outcome.tokens_out,
                        "total_tokens": outcome.tokens_in + outcome.tokens_out,
                    },
                    "octo": {**octo_of(outcome), "seed": self._request.seed},
                }
            )
        )
