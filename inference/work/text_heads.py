"""What becomes of an encoder's output: a vector of unit length, or a score. The same for every library that encodes.

Lives here: pooling, normalising, the bytes of a piece. Knows no library, no process and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from inference.work.meters import SCORE, WIDTH_LIMIT
from inference.work.runner import Task
from market.errors import EngineFailed, RequestInvalid
from market.work import EmbedInput, EmbedRequest, RerankRequest

Array = np.ndarray[Any, np.dtype[Any]]
Pooling = Callable[[Array], Array]

POOLINGS: Final[Mapping[str, Pooling]] = {
    "cls": lambda hidden: hidden[0],
    "mean": lambda hidden: np.add.reduce(hidden, axis=0) / len(hidden),
    "max": lambda hidden: hidden.max(axis=0),
    "last": lambda hidden: hidden[-1],
}
"""Of a text's own tokens, in float64 and always in this order: a pooling inside of the model sums in another order for
another batch."""


class Head(Protocol):
    def texts(self, task: Task) -> Sequence[tuple[EmbedInput, str | None]]:
        """Raises RequestInvalid."""

    def piece(self, task: Task | None, at: int, row: Array) -> bytes:
        """Input `at`'s piece, of the model's output for its own tokens. Raises EngineFailed."""


class EmbedHead:
    """`pool` is None where the model pools by itself."""

    def __init__(self, pool: Pooling | None) -> None:
        self._pool = pool

    def texts(self, task: Task) -> Sequence[tuple[EmbedInput, str | None]]:
        if not isinstance(task.request, EmbedRequest):
            raise RequestInvalid("this model embeds.", param="model")
        return [(text, None) for text in task.request.inputs]

    def piece(self, task: Task | None, at: int, row: Array) -> bytes:  # noqa: ARG002 - a head's shape
        vector = (self._pool(row.astype(np.float64)) if self._pool else row.astype(np.float64)).ravel()
        wanted = task.request.dimensions if task and isinstance(task.request, EmbedRequest) else 0
        if wanted > len(vector):
            raise RequestInvalid(f"the model's vectors have {len(vector)} numbers.", param="dimensions")
        vector = vector[: wanted or None]
        length = float(np.sqrt(np.add.reduce(vector * vector)))
        if not np.isfinite(length) or length == 0 or len(vector) > WIDTH_LIMIT:
            raise EngineFailed("the model made a vector that is none.")
        return (vector / length).astype("<f4").tobytes()


class RerankHead:
    """One logit becomes its sigmoid, of two the second's softmax: 0 to 1, as in the sentence-transformers library."""

    def texts(self, task: Task) -> Sequence[tuple[EmbedInput, str | None]]:
        if not isinstance(task.request, RerankRequest):
            raise RequestInvalid("this model reranks.", param="model")
        return [(task.request.query, document) for document in task.request.documents]

    def piece(self, task: Task | None, at: int, row: Array) -> bytes:  # noqa: ARG002
        logits = row.astype(np.float64).ravel()
        if len(logits) not in (1, 2) or not np.isfinite(logits).all():
            raise EngineFailed("the model made a score that is none.")
        logit = logits[0] if len(logits) == 1 else logits[1] - logits[0]
        return SCORE.pack(at, 1 / (1 + np.exp(-np.clip(logit, -700, 700))))
