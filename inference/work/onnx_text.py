"""Embedding and reranking with a BERT-like encoder in ONNX, inside a child.

Lives here: texts to batches, what the graph makes of them, and how that becomes a vector or a score.

Equal bytes. A receipt binds the bytes of a vector, so a text's must not depend on what else was in its batch.
Measured with ONNX Runtime 1.31 on AVX-512 (MiniLM, 3 to 41 tokens): hidden states are equal to the bit for batches of 1
to 32, for more padding, and for 1 or 2 threads. Pooling inside of the graph is not (sums take another order), but is
for equal padding among batches of 2 and more. So padding follows from the text alone (`rows.bucket_of`), we pool
ourselves where the graph lets us, and never run a pooling graph on one row. Other graphs differ (dynamic quantisation
takes its scale from the whole batch), so each is tried when it is loaded: if rows together differ from rows alone, its
rows run alone, unless the engine's owner says `loose`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from inference.models.plain_encoder import Encoded, PlainEncoder
from inference.models.transformers_config import read_config
from inference.work.meters import SCORE, WIDTH_LIMIT
from inference.work.onnx_session import CPU, Array, Session
from inference.work.rows import ROWS_LIMIT, TOKENS_LIMIT, TOKENS_LIMIT_GPU, Pending, Row, Rows, bucket_of
from inference.work.runner import Desk, Task
from market.errors import EngineFailed, ModelFileInvalid, OctoError, RequestInvalid
from market.work import EmbedRequest, RerankRequest

TASKS_LIMIT: Final = 256
"""Tokenised at once; a newcomer beyond them waits for a place."""
_POOLED = ("sentence_embedding", "embedding", "pooler_output", "text_embeds")
_HIDDEN = ("last_hidden_state", "token_embeddings", "hidden_states")
_POOLINGS: Final[Mapping[str, Callable[[Array], Array]]] = {
    "pooling_mode_cls_token": lambda hidden: hidden[0],
    "pooling_mode_mean_tokens": lambda hidden: np.add.reduce(hidden, axis=0) / len(hidden),
    "pooling_mode_max_tokens": lambda hidden: hidden.max(axis=0),
    "pooling_mode_lasttoken": lambda hidden: hidden[-1],
}
_INPUTS = frozenset(("input_ids", "attention_mask", "token_type_ids", "position_ids"))
_PROBES: Final = ((9, 10, 11, 12, 13, 14, 15, 16), (34, 40, 37), (5,) * 2)
"""Lengths of rows that are tried together."""


class Head(Protocol):
    """What becomes of the graph's output; `output` is the one it wants, `rows_least` how many rows a call needs."""

    output: str
    rows_least: int

    def texts(self, task: Task) -> Sequence[tuple[str, str | None]]:
        """Raises RequestInvalid."""

    def piece(self, task: Task | None, at: int, row: Array) -> bytes:
        """Input `at`'s piece, of the graph's output for its own tokens. Raises EngineFailed."""


class EmbedHead:
    def __init__(self, folder: Path, session: Session) -> None:
        """Raises ModelFileInvalid."""
        self.output = next((name for name in (*_HIDDEN, *_POOLED) if name in session.outputs), "")
        self.output = self.output or next(iter(session.outputs))
        rank = len(session.outputs[self.output][1])
        if rank not in (2, 3):
            raise ModelFileInvalid(
                f"the model's output {self.output[:64]!r} is neither a vector nor one for each token."
            )
        self.rows_least = 2 if rank == 2 else 1
        self._pool = _pooling(folder) if rank == 3 else None

    def texts(self, task: Task) -> Sequence[tuple[str, str | None]]:
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

    rows_least = 1

    def __init__(self, session: Session) -> None:
        """Raises ModelFileInvalid."""
        self.output = "logits" if "logits" in session.outputs else next(iter(session.outputs))

    def texts(self, task: Task) -> Sequence[tuple[str, str | None]]:
        if not isinstance(task.request, RerankRequest):
            raise RequestInvalid("this model reranks.", param="model")
        return [(task.request.query, document) for document in task.request.documents]

    def piece(self, task: Task | None, at: int, row: Array) -> bytes:  # noqa: ARG002
        logits = row.astype(np.float64).ravel()
        if len(logits) not in (1, 2) or not np.isfinite(logits).all():
            raise EngineFailed("the model made a score that is none.")
        logit = logits[0] if len(logits) == 1 else logits[1] - logits[0]
        return SCORE.pack(at, 1 / (1 + np.exp(-np.clip(logit, -700, 700))))


class TextRunner:
    """Implements `inference.work.runner.Runner`. `together` is whether rows share calls."""

    def __init__(self, session: Session, encoder: PlainEncoder, head: Head, *, loose: bool = False) -> None:
        """Raises ModelFileInvalid, EngineFailed."""
        self.engine = ""
        self.context = encoder.limit
        self._session = session
        self._encoder = encoder
        self._head = head
        self._types = _input_types(session)
        self.together = self._is_exact() or loose

    def run(self, desk: Desk) -> None:
        rows = Rows(
            rows_limit=ROWS_LIMIT if self.together else 1,
            tokens_limit=TOKENS_LIMIT if self._session.providers == (CPU,) else TOKENS_LIMIT_GPU,
        )
        while True:
            for task in desk.take(TASKS_LIMIT - len(rows)):
                self._begin(task, rows, desk)
            rows.drop_cancelled()
            if not len(rows):
                return
            for pending, pieces in self._compute(rows.batch(), rows, desk):
                self._hand_out(pending, pieces, rows, desk)

    def _begin(self, task: Task, rows: Rows, desk: Desk) -> None:
        try:
            encoded = []
            for at, (first, second) in enumerate(self._head.texts(task)[: task.max_units]):
                encoded.append(self._encoder.encode(first, second, what=f"input {at}"))
                if at % 64 == 63:
                    desk.beat()
        except OctoError as error:
            desk.refuse(task, error)
        else:
            rows.add(task, encoded)

    def _compute(
        self, batch: Sequence[tuple[Pending, Row]], rows: Rows, desk: Desk
    ) -> Sequence[tuple[Pending, list[bytes]]]:
        """Pieces that are ready to go out, by task. A row on which the model fails costs its own task alone."""
        try:
            made = self._outputs([row.tokens for _, row in batch])
        except EngineFailed as error:
            if len(batch) > 1:
                return [ready for one in batch for ready in self._compute([one], rows, desk)]
            pending, _ = batch[0]
            desk.refuse(pending.task, error)
            rows.leave(pending)
            return []
        touched: dict[int, Pending] = {}
        for (pending, row), output in zip(batch, made, strict=True):
            try:
                pending.done[row.at] = self._head.piece(pending.task, row.at, output)
                touched[pending.task.number] = pending
            except OctoError as error:
                desk.refuse(pending.task, error)
                rows.leave(pending)
                touched.pop(pending.task.number, None)
        return [(pending, ready) for pending in touched.values() if (ready := pending.ready())]

    def _hand_out(self, pending: Pending, pieces: list[bytes], rows: Rows, desk: Desk) -> None:
        if pending.sent < pending.count:
            desk.made(pending.task, pieces, progress=pending.sent * 100 // pending.count)
            return
        whole = pending.count == len(self._head.texts(pending.task))
        desk.made(pending.task, pieces, progress=100, finish="stop" if whole else "length")
        rows.leave(pending)

    def _outputs(self, texts: Sequence[Encoded]) -> list[Array]:
        """The graph's output for each text, cut to its own tokens if there is one for each."""
        count, width = max(len(texts), self._head.rows_least), max(self._width(text) for text in texts)
        arrays = {name: np.zeros((count, width), kind) for name, kind in self._types.items()}
        arrays["input_ids"][:] = self._encoder.pad
        for at in range(count):
            text = texts[min(at, len(texts) - 1)]
            for name, values in (
                ("input_ids", text.ids), ("attention_mask", 1), ("token_type_ids", text.types),
                ("position_ids", range(len(text.ids))),
            ):  # fmt: skip
                if name in arrays:
                    arrays[name][at, : len(text.ids)] = values
        made = self._session.run(arrays, self._head.output)
        if made.shape[:1] != (count,) or (made.ndim == 3 and made.shape[1] != width):
            raise EngineFailed("the model's output has another shape than its input asks for.")
        return [made[at, : len(text.ids)] if made.ndim == 3 else made[at] for at, text in enumerate(texts)]

    def _width(self, text: Encoded) -> int:
        return min(bucket_of(len(text.ids)), self._encoder.limit)

    def _is_exact(self) -> bool:
        """Whether rows together give what they give alone; at the same time the model's first run.

        Raises ModelFileInvalid if it cannot run at all.
        """
        try:
            return all(self._agrees([min(length, self._encoder.limit) for length in probe]) for probe in _PROBES)
        except EngineFailed as error:
            raise ModelFileInvalid(
                f"the model does not run: {error.message}", next_step="Its kind is not what its manifest says."
            ) from None

    def _agrees(self, lengths: Sequence[int]) -> bool:
        texts = [
            Encoded(
                ids=tuple((n * 37 + row * 101) % self._encoder.vocabulary for n in range(1, length + 1)),
                types=(0,) * length,
            )
            for row, length in enumerate(lengths)
        ]
        together = [self._probed(row) for row in self._outputs(texts)]
        if not any(together):
            raise EngineFailed("what it makes is no numbers.")
        return together == [self._probed(self._outputs([text])[0]) for text in texts]

    def _probed(self, row: Array) -> bytes:
        """Empty where the model makes no numbers, as a few have tokens that they never learnt."""
        try:
            return self._head.piece(None, 0, row)
        except EngineFailed:
            return b""


def _input_types(session: Session) -> Mapping[str, str]:
    kinds = {"tensor(int64)": "i8", "tensor(int32)": "i4"}
    types = {}
    for name, (kind, shape) in session.inputs.items():
        if name not in _INPUTS or kind not in kinds or len(shape) != 2:
            raise ModelFileInvalid(
                f"the model has an input {name[:64]!r}; an encoder of text has {', '.join(sorted(_INPUTS))}."
            )
        types[name] = kinds[kind]
    if "input_ids" not in types:
        raise ModelFileInvalid("the model has no input 'input_ids'.")
    return types


def _pooling(folder: Path) -> Callable[[Array], Array]:
    """As the sentence-transformers library writes it down; the mean if nothing is said. Raises ModelFileInvalid."""
    if any("Dense" in kind for kind in _modules(folder)):
        raise ModelFileInvalid("the model has a layer behind its pooling, which only a graph that pools can bring.")
    path = folder / "1_Pooling" / "config.json"
    said = read_config(path) if path.is_file() else {"pooling_mode_mean_tokens": True}
    modes = [mode for mode, on in said.items() if mode.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ModelFileInvalid("the model pools in a way that this engine does not know.")
    return _POOLINGS[modes[0]]


def _modules(folder: Path) -> list[str]:
    try:
        said = json.loads((folder / "modules.json").read_bytes())
        return [str(module["type"]) for module in said]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ModelFileInvalid("modules.json is not what it should be.") from None
