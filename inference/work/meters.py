"""What embedding, reranking and looking at an image count for: implementations of `market.ports.Meter`.

Lives here: units by the table of `market.work`. Buyer and seller run this same code on the same request; none of it
needs weights.
"""

from __future__ import annotations

import math
import struct
from typing import Final, TypeVar

import numpy as np

from inference.models.plain_encoder import PlainEncoder
from inference.work.images import image_size
from market.errors import EncodingInvalid, RequestInvalid
from market.values import decode
from market.work import (
    TILE,
    EmbedRequest,
    Finding,
    LookRequest,
    RerankRequest,
    WorkRequest,
)

WIDTH_LIMIT: Final = 65_536
FINDINGS_LIMITS: Final = {"detect": 300, "classify": 10, "read": 1000}
"""The most that come back: detectors keep 100 to 300, text detectors 1,000."""
FINDING_LIMIT_BYTES: Final = 20_000
"""A label of 4,096 characters takes up to 16 KiB."""
SCORE: Final = struct.Struct("<If")
"""A reranker's piece: the document's index and its score."""

R = TypeVar("R", bound=WorkRequest)


class EmbedMeter:
    """In: tokens, those that the tokenizer adds included. Out: vectors."""

    def __init__(self, encoder: PlainEncoder) -> None:
        self._encoder = encoder

    def units_in(self, request: WorkRequest, blob: bytes) -> int:
        inputs = _checked(EmbedRequest, request, blob).inputs
        return sum(len(self._encoder.encode(given, what=f"input {at}").ids) for at, given in enumerate(inputs))

    def units_out_limit(self, request: WorkRequest, blob: bytes) -> int:
        return len(_checked(EmbedRequest, request, blob).inputs)

    def units_of(self, request: WorkRequest, piece: bytes) -> int:
        wanted = _checked(EmbedRequest, request, b"").dimensions
        width, rest = divmod(len(piece), 4)
        if rest or not 1 <= width <= WIDTH_LIMIT or (wanted and width != wanted):
            raise EncodingInvalid(f"{len(piece)} bytes are not a vector that was asked for.")
        if not np.isfinite(np.frombuffer(piece, "<f4")).all():
            raise EncodingInvalid("a vector holds something that is no number.")
        return 1


class RerankMeter:
    """In: tokens of each pair of query and document. Out: documents."""

    def __init__(self, encoder: PlainEncoder) -> None:
        self._encoder = encoder

    def units_in(self, request: WorkRequest, blob: bytes) -> int:
        asked = _checked(RerankRequest, request, blob)
        return sum(
            len(self._encoder.encode(asked.query, text, what=f"the query with document {at}").ids)
            for at, text in enumerate(asked.documents)
        )

    def units_out_limit(self, request: WorkRequest, blob: bytes) -> int:
        return len(_checked(RerankRequest, request, blob).documents)

    def units_of(self, request: WorkRequest, piece: bytes) -> int:
        count = len(_checked(RerankRequest, request, b"").documents)
        if len(piece) != SCORE.size:
            raise EncodingInvalid(f"{len(piece)} bytes are not a document's score.")
        index, score = SCORE.unpack(piece)
        if index >= count or not math.isfinite(score):
            raise EncodingInvalid("a score is no number, or of a document that was not sent.")
        return 1


class LookMeter:
    """In: tiles of 64 x 64 pixels, begun ones included. Out: findings. `what` is the one kind of looking that the model
    does, where that is known: who asks for another learns it before anything is paid."""

    def __init__(self, what: str = "") -> None:
        self._what = what

    def units_in(self, request: WorkRequest, blob: bytes) -> int:
        if not isinstance(request, LookRequest):
            raise _other_work(request)
        if self._what not in ("", request.what):
            raise RequestInvalid(f"this model does {self._what!r} and nothing else.", param="what")
        size = image_size(blob)
        return -(-size.width // TILE) * -(-size.height // TILE)

    def units_out_limit(self, request: WorkRequest, blob: bytes) -> int:  # noqa: ARG002 - the port's shape
        if not isinstance(request, LookRequest):
            raise _other_work(request)
        return FINDINGS_LIMITS[request.what]

    def units_of(self, request: WorkRequest, piece: bytes) -> int:
        if not isinstance(request, LookRequest):
            raise _other_work(request)
        left, top, right, bottom = decode(Finding, piece, limit_bytes=FINDING_LIMIT_BYTES).box
        if not (0 <= left <= right and 0 <= top <= bottom):
            raise EncodingInvalid("a finding's box is none.")
        return 1


def _checked(kind: type[R], request: WorkRequest, blob: bytes) -> R:
    if not isinstance(request, kind):
        raise _other_work(request)
    if blob:
        raise RequestInvalid(f"{request.kind!r} works on text; {len(blob)} bytes of something else came with it.")
    return request


def _other_work(request: WorkRequest) -> RequestInvalid:
    return RequestInvalid(f"this model does not do {request.kind!r}.", param="model")
