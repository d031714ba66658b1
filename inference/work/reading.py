"""Text in images by two graphs of the PP-OCR kind: one marks where text is, one reads a line.

Lives here: what goes into them and what comes out: regions of a probability map, lines in reading order, CTC decoding.
Knows no file, no task. Lines are read upright, left to right.
Source: Liao et al., Real-time Scene Text Detection with Differentiable Binarization, AAAI 2020 (the map, its shrunk
regions); Graves et al., Connectionist Temporal Classification, ICML 2006 (blank is class 0 here).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from inference.work.onnx_session import Array, Session
from inference.work.runner import GoOn
from market.errors import EngineFailed, ModelFileInvalid
from market.task import MICRO
from market.work import Finding

LONG_SIDE: Final = 1536
SHORT_SIDE: Final = 736
"""A short image is scaled up to this: the detector was trained on text of such a size."""
MARKED: Final = 0.3
REGION_SCORE: Final = 0.5
UNCLIP: Final = 1.6
"""Regions are marked smaller than the text: area times this over perimeter is added on all sides."""
REGIONS_LIMIT: Final = 1000
LINE_HEIGHT: Final = 48
LINE_WIDTH_LIMIT: Final = 3200
_LEAST: Final = 3


class Reader:
    """Implements `inference.work.onnx_look.Looker`."""

    what = "read"

    def __init__(self, detector: Session, recogniser: Session) -> None:
        """Raises ModelFileInvalid."""
        self._detector, self._recogniser = detector, recogniser
        listed = recogniser.metadata.get("character", "")
        self._characters = ["", *listed.removesuffix("\n").split("\n"), " "]
        shape = next(iter(recogniser.outputs.values()))[1]
        classes = shape[2] if len(shape) == 3 else None
        if not listed or (isinstance(classes, int) and classes != len(self._characters)):
            raise ModelFileInvalid("the reading model does not list its characters, or not as many as it has.")

    def look(self, image: Any, threshold: float, go_on: GoOn) -> Sequence[Finding]:
        found = []
        for box in self._regions(image, go_on):
            text, score = self._line(image.crop(box), go_on)
            if text.strip() and score >= threshold:
                found.append(Finding(label=text[:4096], score_micro=min(MICRO, round(score * MICRO)), box=box))
        return found

    def _regions(self, image: Any, go_on: GoOn) -> list[tuple[int, int, int, int]]:
        width, height = fitted(image.width, image.height)
        pixels = _pixels(image.resize((width, height), 2))
        made = _made(self._detector, pixels, go_on)
        if made.shape != (1, 1, height, width) or not np.isfinite(made).all():
            raise EngineFailed("the model's map of text has another size than the image, or holds no numbers.")
        scale = image.width / width, image.height / height
        boxes = []
        for left, top, right, bottom in text_regions(made[0, 0]):
            boxes.append((
                max(0, round(left * scale[0])), max(0, round(top * scale[1])),
                min(image.width, round(right * scale[0])), min(image.height, round(bottom * scale[1])),
            ))  # fmt: skip
        return reading_order([box for box in boxes if box[2] - box[0] >= _LEAST <= box[3] - box[1]])

    def _line(self, line: Any, go_on: GoOn) -> tuple[str, float]:
        width = min(LINE_WIDTH_LIMIT, max(LINE_HEIGHT, round(line.width * LINE_HEIGHT / line.height)))
        pixels = _pixels(line.resize((width, LINE_HEIGHT), 2))
        made = _made(self._recogniser, pixels, go_on)
        if made.ndim != 3 or made.shape[0] != 1 or made.shape[2] != len(self._characters):
            raise EngineFailed("the reading model's output has another shape than its list of characters.")
        if not np.isfinite(made).all():
            raise EngineFailed("the reading model made scores that are none.")
        return decode_line(made[0], self._characters)


def _made(session: Session, pixels: Array, go_on: GoOn) -> Array:
    return session.run({next(iter(session.inputs)): pixels}, next(iter(session.outputs)), go_on)


def fitted(width: int, height: int) -> tuple[int, int]:
    """The size for the detector: the short side at least SHORT_SIDE, the long one at most LONG_SIDE, both multiples
    of 32."""
    scale = max(1.0, SHORT_SIDE / min(width, height))
    scale = min(scale, LONG_SIDE / max(width, height))
    return max(32, round(width * scale / 32) * 32), max(32, round(height * scale / 32) * 32)


def text_regions(chances: Array) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of each connected region that is text, grown to what it was shrunk from."""
    boxes = []
    for top, bottom, left, right, score in _components(chances, chances > MARKED):
        if score >= REGION_SCORE and right - left >= _LEAST <= bottom - top:
            width, height = right - left, bottom - top
            more = width * height * UNCLIP / (2 * (width + height))
            boxes.append((left - more, top - more, right + more, bottom + more))
    return boxes[:REGIONS_LIMIT]


def reading_order(boxes: Sequence[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Lines from above, each from the left: a box belongs to a line if its middle lies within the line's first."""
    lines: list[list[tuple[int, int, int, int]]] = []
    for box in sorted(boxes, key=lambda box: (box[1] + box[3], box[0])):
        middle = (box[1] + box[3]) / 2
        if lines and lines[-1][0][1] <= middle <= lines[-1][0][3]:
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line)]


def decode_line(scores: Array, characters: Sequence[str]) -> tuple[str, float]:
    """[steps, classes] to (text, mean score of its characters): the best of each step, repeats and blanks dropped."""
    best = scores.argmax(axis=1)
    new = np.concatenate(([True], best[1:] != best[:-1])) & (best != 0)
    if not new.any():
        return "", 0.0
    sure = scores[np.arange(len(best)), best][new].astype(np.float64)
    return "".join(characters[at] for at in best[new]), float(np.add.reduce(sure) / len(sure))


def _components(chances: Array, marked: Array) -> list[tuple[int, int, int, int, float]]:
    """(top, bottom, left, right, mean chance) of 4-connected regions, by joining the runs of neighbouring rows."""
    runs: list[tuple[int, int, int]] = []
    parents: list[int] = []

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = parents[parents[at]]
            at = parents[at]
        return at

    above: range = range(0)
    edges = np.diff(np.pad(marked.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    for y in np.flatnonzero(marked.any(axis=1)).tolist():
        start = len(runs)
        lefts, rights = np.flatnonzero(edges[y] == 1), np.flatnonzero(edges[y] == -1)
        if above and runs[above[0]][0] != y - 1:
            above = range(0)
        behind = iter(above)
        over = next(behind, None)
        for left, right in zip(lefts.tolist(), rights.tolist(), strict=True):
            at = len(runs)
            runs.append((y, left, right))
            parents.append(at)
            while over is not None and runs[over][1] < right:
                if runs[over][2] > left:
                    parents[root(at)] = root(over)
                if runs[over][2] > right:
                    break
                over = next(behind, None)
        above = range(start, len(runs))
    boxes: dict[int, tuple[int, int, int, int]] = {}
    sums: dict[int, tuple[float, int]] = {}
    for at, (y, left, right) in enumerate(runs):
        key = root(at)
        box = boxes.get(key, (y, y, left, right))
        boxes[key] = min(box[0], y), max(box[1], y), min(box[2], left), max(box[3], right)
        total, count = sums.get(key, (0.0, 0))
        sums[key] = total + float(chances[y, left:right].sum(dtype=np.float64)), count + right - left
    return [
        (top, bottom + 1, left, right, sums[key][0] / sums[key][1]) for key, (top, bottom, left, right) in boxes.items()
    ]


def _pixels(image: Any) -> Array:
    """[1, 3, height, width] from -1 to 1, blue first: what the models were trained on."""
    pixels = np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1)[None]
    return np.ascontiguousarray(pixels / np.float32(127.5) - np.float32(1))
