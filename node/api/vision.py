"""What was seen in an image, on paper: things with boxes, classes of the whole, lines of text.

Pure. OpenAI's API has no word for this: the shape is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inference.work.images import ImageSize
from inference.work.meters import FINDING_LIMIT_BYTES
from market.errors import EncodingInvalid, PeerFailed
from market.taking import Part, Shown
from market.task import MICRO
from market.values import decode
from market.work import Finding, LookRequest
from node.api.answering import Whole, WholeOnly
from node.api.answers import Answer
from node.api.octo_facts import octo_of, to_json


class LookForm(WholeOnly):
    """`size` is the image's, as stored: boxes are in its pixels."""

    def __init__(self, request: LookRequest, *, model: str, size: ImageSize) -> None:
        self._request = request
        self._model = model
        self._size = size

    def whole(self, answers: Sequence[Answer]) -> Whole:
        (answer,) = answers
        outcome = answer.outcome
        findings = [finding_of(item, outcome.provider) for item in answer.shown]
        told: dict[str, Any] = {
            "object": "findings",
            "model": self._model,
            "what": self._request.what,
            "width": self._size.width,
            "height": self._size.height,
            "findings": [finding_object(finding) for finding in findings],
            "usage": {"tiles": outcome.tokens_in, "findings": outcome.tokens_out},
            "octo": octo_of(outcome),
        }
        if self._request.what == "read":
            told["text"] = "\n".join(finding.label for finding in findings)
        return Whole(to_json(told))


def finding_object(finding: Finding) -> dict[str, Any]:
    """`box` is null for what is said of the whole image."""
    left, top, right, bottom = finding.box
    box = {"left": left, "top": top, "right": right, "bottom": bottom} if any(finding.box) else None
    return {"label": finding.label, "score": finding.score_micro / MICRO, "box": box}


def finding_of(shown: Shown, peer: str) -> Finding:
    assert isinstance(shown, Part)
    try:
        return decode(Finding, shown.data, limit_bytes=FINDING_LIMIT_BYTES)
    except EncodingInvalid:
        raise PeerFailed("a finding is none.", peer=peer) from None
