"""Looks on while a task is bought, and tells its story: text as it comes, what was heard or seen, how far it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from market.buyer import Order, WorkOrder
from market.errors import EncodingInvalid
from market.taking import Delta, Part, Shown
from market.values import decode
from market.work import (
    PIECE_LIMIT_BYTES,
    EmbedRequest,
    ImageRequest,
    LookRequest,
    RerankRequest,
    Segment,
    TranscribeRequest,
)
from node.api.vision import finding_object, finding_of
from node.batches.telling import Story

DEFAULT_TOKENS = 1024
"""What an answer is taken to hold at most that named no limit: the buyer's own default."""
_ALMOST = 99
"""Done is what is on the disk."""


class TaskWatch:
    """Implements `node.api.answering.Watch`."""

    def __init__(self, story: Story, orders: Sequence[Order | WorkOrder]) -> None:
        self._story = story
        self._request = next((order.request for order in orders if isinstance(order, WorkOrder)), None)
        self._expected = sum(_expected(order) for order in orders)
        self._done = 0
        self._pieces = 0

    def shown(self, index: int, item: Shown) -> None:
        if isinstance(item, Delta):
            self._done += item.tokens
            self._move(self._done * 100 // max(1, self._expected))
            if item.text:
                self._story.tell_text(index, item.text, item.tokens)
            return
        self._pieces += 1
        if self._expected:
            self._move(self._pieces * 100 // self._expected)
        self._story.tell(self._piece(item))

    def progress(self, percent: int) -> None:
        if self._move(percent):
            self._story.tell({"type": "progress"})

    def _piece(self, part: Part) -> Mapping[str, Any]:
        """What is small is told; of sound, pictures and vectors only that they came: `content` has them at the end."""
        if isinstance(self._request, TranscribeRequest):
            return {"type": "segment", **_segment(part)}
        if isinstance(self._request, LookRequest):
            return {"type": "finding", **finding_object(finding_of(part, ""))}
        return {"type": "piece", "index": self._pieces - 1, "bytes": len(part.data), "units": part.units}

    def _move(self, percent: int) -> bool:
        before, self._story.progress = self._story.progress, max(self._story.progress, min(_ALMOST, percent))
        return self._story.progress > before


def _expected(order: Order | WorkOrder) -> int:
    """Tokens of a text, pieces of other work; 0 where nobody knows before."""
    if isinstance(order, Order):
        return order.max_tokens or DEFAULT_TOKENS
    request = order.request
    if isinstance(request, EmbedRequest):
        return len(request.inputs)
    if isinstance(request, RerankRequest):
        return len(request.documents)
    return request.count if isinstance(request, ImageRequest) else 0


def _segment(part: Part) -> Mapping[str, Any]:
    try:
        segment = decode(Segment, part.data, limit_bytes=PIECE_LIMIT_BYTES)
    except EncodingInvalid:  # the form refuses it, and says whose it is
        return {"start": 0.0, "end": 0.0, "text": ""}
    return {"start": segment.start_ms / 1000, "end": segment.end_ms / 1000, "text": segment.text}
