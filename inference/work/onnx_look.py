"""Detection, classification and reading (OCR) with ONNX, inside a child.

Lives here: a stranger's image to pixels, and which model looks at it. What models make of pixels is in `detection` and
`reading`. Images go through one by one: batches of 8 gained nothing on a CPU (11.4 ms for one, 91.7 for eight).
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from inference.models.transformers_config import read_config
from inference.work.images import PIXELS_LIMIT, image_size
from inference.work.meters import FINDINGS_LIMITS
from inference.work.onnx_session import Array, Session
from inference.work.runner import Desk, GoOn, Task
from market.errors import EngineFailed, ModelFileInvalid, NodeMisconfigured, OctoError, RequestInvalid
from market.task import MICRO
from market.values import encode
from market.work import TILE, Finding, LookRequest

try:
    Image: Any = importlib.import_module("PIL.Image")
    Image.preinit()  # its readers for PNG, JPEG and others: once the child is confined nothing more can be imported
except ImportError as missing:
    raise NodeMisconfigured("Images cannot be decoded without Pillow.", next_step="pip install pillow") from missing

_CLASSES_LIMIT: Final = 100_000


class Looker(Protocol):
    """`what` it does of a LookRequest."""

    what: str

    def look(self, image: Any, threshold: float, go_on: GoOn) -> Sequence[Finding]:
        """Findings in a PIL image (RGB), the surest first, or in reading order. Raises EngineFailed, also if it shall
        not go on."""


class LookRunner:
    """Implements `inference.work.runner.Runner`."""

    def __init__(self, looker: Looker) -> None:
        self.engine = ""
        self.context = -(-PIXELS_LIMIT // (TILE * TILE))
        self._looker = looker

    def run(self, desk: Desk) -> None:
        while tasks := desk.take(1):
            task = tasks[0]
            try:
                self._look(task, desk)
            except OctoError as error:
                desk.refuse(task, error)

    def _look(self, task: Task, desk: Desk) -> None:
        asked = task.request
        if not isinstance(asked, LookRequest) or asked.what != self._looker.what:
            raise RequestInvalid(f"this model does {self._looker.what!r} and nothing else.", param="what")
        image = decode_image(task.blob)

        def go_on() -> bool:
            desk.beat()
            return not task.cancelled

        found = self._looker.look(image, asked.threshold_micro / MICRO, go_on)
        limit = min(task.max_units, FINDINGS_LIMITS[asked.what])
        pieces = [encode(Finding, finding) for finding in found[:limit]]
        desk.made(task, pieces, progress=100, finish="stop" if len(found) <= limit else "length")


class Classifier:
    """An image classifier as the transformers library exports it: `config.json` names the classes,
    `preprocessor_config.json` says what to do to the pixels."""

    what = "classify"

    def __init__(self, folder: Path, session: Session) -> None:
        """Raises ModelFileInvalid."""
        self._session = session
        self._input = next(iter(session.inputs))
        self._output = "logits" if "logits" in session.outputs else next(iter(session.outputs))
        self._labels = labels_of(folder, session)
        said = _preprocessing(folder)
        self._size = _side(said.get("size"), session.inputs[self._input][1])
        self._mean, self._std = _three(said.get("image_mean"), 0.5), _three(said.get("image_std"), 0.5)
        self._crop = said.get("do_center_crop") is True

    def look(self, image: Any, threshold: float, go_on: GoOn) -> Sequence[Finding]:
        if self._crop:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        pixels = np.asarray(image.resize((self._size, self._size), Image.Resampling.BILINEAR), np.float32) / 255
        pixels = ((pixels - self._mean) / self._std).transpose(2, 0, 1)[None]
        logits = self._session.run({self._input: np.ascontiguousarray(pixels)}, self._output, go_on).ravel()
        if not np.isfinite(logits).all() or not 1 <= len(logits) <= _CLASSES_LIMIT:
            raise EngineFailed("the model made scores that are none.")
        shifted = np.exp(logits.astype(np.float64) - logits.max())
        scores = shifted / np.add.reduce(shifted)
        best = np.argsort(-scores, kind="stable")[: FINDINGS_LIMITS["classify"]]
        return [
            Finding(label=label_at(self._labels, int(at)), score_micro=micro(scores[at]))
            for at in best
            if scores[at] >= threshold
        ]


def decode_image(data: bytes) -> Any:
    """A PIL image in RGB. Raises RequestInvalid for what is not whole, or not what its head says."""
    size = image_size(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
            if image.size != (size.width, size.height):
                raise ValueError(image.size)
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - Pillow raises SyntaxError, OSError, ValueError, struct.error, ...
        raise RequestInvalid("the image cannot be decoded.", next_step="Save it anew.", param="image") from None


def labels_of(folder: Path, session: Session) -> Mapping[int, str]:
    """Names of classes: of `config.json`, or of the graph's own metadata, which Ultralytics writes as a Python dict."""
    path = folder / "config.json"
    said = read_config(path).get("id2label") if path.is_file() else None
    if said is None and "names" in session.metadata:
        said = _python_dict(session.metadata["names"])
    if not isinstance(said, dict) or len(said) > _CLASSES_LIMIT:
        raise ModelFileInvalid("the model does not say what its classes are called.")
    try:
        return {int(number): str(label)[:256] for number, label in said.items()}
    except ValueError:
        raise ModelFileInvalid("the model's classes are not numbered.") from None


def label_at(labels: Mapping[int, str], at: int) -> str:
    return labels.get(at, f"class {at}")


def micro(score: float) -> int:
    return min(MICRO, max(0, round(float(score) * MICRO)))


def _python_dict(text: str) -> object:
    import ast

    try:
        return ast.literal_eval(text) if len(text) < 1 << 20 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _preprocessing(folder: Path) -> Mapping[str, Any]:
    path = folder / "preprocessor_config.json"
    return read_config(path) if path.is_file() else {}


def _side(said: object, shape: Sequence[object]) -> int:
    """The side of the square that the graph wants: of its own shape, or of what the file says."""
    if len(shape) == 4 and isinstance(shape[3], int):
        side: object = shape[3]
    elif isinstance(said, dict):
        side = said.get("height", said.get("shortest_edge"))
    else:
        side = said
    if not isinstance(side, int) or not 8 <= side <= 4096:
        raise ModelFileInvalid("the model does not say how large its images are.")
    return side


def _three(said: object, otherwise: float) -> Array:
    values = said if isinstance(said, list) and len(said) == 3 else [otherwise] * 3
    try:
        return np.array([float(value) for value in values], np.float32)
    except (TypeError, ValueError):
        raise ModelFileInvalid("preprocessor_config.json is not what it should be.") from None
