"""Boxes from a detector's output: YOLO's (version 8 and later), as Ultralytics exports it to ONNX.

Lives here: letterbox, decoding, non-maximum suppression. Knows no file, no task.
Output: [1, 4 + classes, places]: centre x, centre y, width, height in pixels of the input, then a score for each class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from inference.work.onnx_session import Array, Session
from inference.work.runner import GoOn
from market.errors import EngineFailed, ModelFileInvalid
from market.task import MICRO
from market.work import Finding

OVERLAP: Final = 0.45
"""Boxes of one class that share more than this of their union are one thing."""
CANDIDATES_LIMIT: Final = 3000
FOUND_LIMIT: Final = 1000
_GREY: Final = 114
_DEFAULT_SIDE: Final = 640


class Detector:
    """Implements `inference.work.onnx_look.Looker`."""

    what = "detect"

    def __init__(self, session: Session, labels: Mapping[int, str]) -> None:
        """Raises ModelFileInvalid."""
        self._session = session
        self._labels = labels
        self._input, (kind, shape) = next(iter(session.inputs.items()))
        self._output = next(iter(session.outputs))
        if kind != "tensor(float)" or len(shape) != 4 or len(session.outputs[self._output][1]) != 3:
            raise ModelFileInvalid("the model's input and output are not those of a YOLO detector.")
        self._side = shape[3] if isinstance(shape[3], int) else _side_said(session.metadata)

    def look(self, image: Any, threshold: float, go_on: GoOn) -> Sequence[Finding]:
        pixels, scale = letterbox(image, self._side)
        made = self._session.run({self._input: pixels}, self._output, go_on)
        if made.ndim != 3 or made.shape[0] != 1 or made.shape[1] != 4 + len(self._labels):
            raise EngineFailed("the model's output is not that of a detector with so many classes.")
        if not np.isfinite(made).all():
            raise EngineFailed("the model made boxes that are none.")
        boxes, scores, classes = decode_boxes(made[0], threshold)
        keep = suppress(boxes, scores, classes)
        return [
            Finding(
                label=self._labels.get(int(classes[at]), f"class {classes[at]}"),
                score_micro=min(MICRO, round(float(scores[at]) * MICRO)),
                box=_pixels(boxes[at] / scale, image.width, image.height),
            )
            for at in keep
        ]


def letterbox(image: Any, side: int) -> tuple[Array, float]:
    """[1, 3, side, side] with the image in its left upper corner, and how much it was scaled."""
    scale = min(side / image.width, side / image.height)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = np.full((side, side, 3), _GREY, np.uint8)
    canvas[:height, :width] = np.asarray(image.resize((width, height), 2))  # 2 is bilinear
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], np.float32) / np.float32(255), scale


def decode_boxes(made: Array, threshold: float) -> tuple[Array, Array, Array]:
    """(boxes as left, top, right, bottom; scores; classes) of places at or above `threshold`, the surest first."""
    best = made[4:].max(axis=0)
    places = np.flatnonzero(best >= max(threshold, 1e-6))
    places = places[np.argsort(-best[places], kind="stable")][:CANDIDATES_LIMIT]
    x, y, width, height = made[:4, places].astype(np.float64)
    boxes = np.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2), axis=1)
    return boxes, best[places], made[4:, places].argmax(axis=0)


def suppress(boxes: Array, scores: Array, classes: Array) -> list[int]:
    """Which boxes stay, the surest first: each drops those of its class that it overlaps."""
    areas = np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)
    left = np.ones(len(scores), bool)
    keep: list[int] = []
    for at in range(len(scores)):
        if not left[at]:
            continue
        keep.append(at)
        if len(keep) == FOUND_LIMIT:
            break
        near = np.minimum(boxes[at, 2:], boxes[at + 1 :, 2:]) - np.maximum(boxes[at, :2], boxes[at + 1 :, :2])
        shared = np.maximum(near[:, 0], 0) * np.maximum(near[:, 1], 0)
        union = areas[at] + areas[at + 1 :] - shared
        left[at + 1 :] &= (classes[at + 1 :] != classes[at]) | (shared <= OVERLAP * union)
    return keep


def _pixels(box: Array, width: int, height: int) -> tuple[int, int, int, int]:
    left, right = (min(width, max(0, round(float(edge)))) for edge in (box[0], box[2]))
    top, bottom = (min(height, max(0, round(float(edge)))) for edge in (box[1], box[3]))
    return left, top, max(left, right), max(top, bottom)


def _side_said(metadata: Mapping[str, str]) -> int:
    """Ultralytics writes "[320, 320]"."""
    first = metadata.get("imgsz", "").strip("[] ").split(",")[0]
    side = int(first) if first.isascii() and first.isdigit() and len(first) < 6 else _DEFAULT_SIDE
    if not 32 <= side <= 4096:
        raise ModelFileInvalid(f"the model wants images of {side} pixels a side.")
    return side
