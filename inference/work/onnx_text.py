"""Encoders of text in ONNX, inside a child: token ids to what the graph makes of them.

Lives here: the graph's inputs and outputs, and how the files beside it say that its output is pooled.

Equal bytes (see `text_runner`). Measured with ONNX Runtime 1.31 on AVX-512 (MiniLM, 3 to 41 tokens): hidden states are
equal to the bit for batches of 1 to 32, for more padding, and for 1 or 2 threads. Pooling inside of the graph is not
(sums take another order), but is for equal padding among batches of 2 and more. So padding follows from the text alone
(`rows.bucket_of`), we pool ourselves where the graph lets us, and never run a pooling graph on one row. Other graphs
differ (dynamic quantisation takes its scale from the whole batch).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from inference.models.plain_encoder import Encoded, PlainEncoder
from inference.models.transformers_config import read_config
from inference.work.onnx_session import CPU, Session
from inference.work.rows import TOKENS_LIMIT, TOKENS_LIMIT_GPU, bucket_of
from inference.work.runner import GoOn
from inference.work.text_heads import POOLINGS, Array, EmbedHead, Head, Pooling, RerankHead
from inference.work.text_runner import TextRunner
from market.errors import EngineFailed, ModelFileInvalid

_POOLED = ("sentence_embedding", "embedding", "pooler_output", "text_embeds")
_HIDDEN = ("last_hidden_state", "token_embeddings", "hidden_states")
_POOLING_MODES: Final[Mapping[str, str]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_INPUTS = frozenset(("input_ids", "attention_mask", "token_type_ids", "position_ids"))


class OnnxTexts:
    """Implements `inference.work.text_runner.TextModel`. `output` is the one that the head wants, `rows_least` how many
    rows a call needs."""

    padded = True
    probes = ((9, 10, 11, 12, 13, 14, 15, 16), (34, 40, 37), (5,) * 2)

    def __init__(self, session: Session, encoder: PlainEncoder, output: str, *, rows_least: int = 1) -> None:
        """Raises ModelFileInvalid."""
        self.tokens_limit = TOKENS_LIMIT if session.providers == (CPU,) else TOKENS_LIMIT_GPU
        self._session = session
        self._encoder = encoder
        self._output = output
        self._rows_least = rows_least
        self._types = _input_types(session)

    def outputs(self, texts: Sequence[Encoded], go_on: GoOn) -> list[Array]:
        """The graph's output for each text, cut to its own tokens if there is one for each."""
        count, width = max(len(texts), self._rows_least), max(self._width(text) for text in texts)
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
        made = self._session.run(arrays, self._output, go_on)
        if made.shape[:1] != (count,) or (made.ndim == 3 and made.shape[1] != width):
            raise EngineFailed("the model's output has another shape than its input asks for.")
        return [made[at, : len(text.ids)] if made.ndim == 3 else made[at] for at, text in enumerate(texts)]

    def _width(self, text: Encoded) -> int:
        return min(bucket_of(len(text.ids)), self._encoder.limit)


def open_onnx_texts(
    folder: Path, session: Session, encoder: PlainEncoder, *, kind: str, loose: bool = False
) -> TextRunner:
    """`kind` is `embed` or `rerank`. Raises ModelFileInvalid."""
    if kind == "rerank":
        output = "logits" if "logits" in session.outputs else next(iter(session.outputs))
        return TextRunner(OnnxTexts(session, encoder, output), encoder, RerankHead(), loose=loose)
    output = next((name for name in (*_HIDDEN, *_POOLED) if name in session.outputs), "")
    output = output or next(iter(session.outputs))
    rank = len(session.outputs[output][1])
    if rank not in (2, 3):
        raise ModelFileInvalid(f"the model's output {output[:64]!r} is neither a vector nor one for each token.")
    head: Head = EmbedHead(_pooling(folder) if rank == 3 else None)
    return TextRunner(OnnxTexts(session, encoder, output, rows_least=2 if rank == 2 else 1), encoder, head, loose=loose)


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


def _pooling(folder: Path) -> Pooling:
    """As the sentence-transformers library writes it down; the mean if nothing is said. Raises ModelFileInvalid."""
    if any("Dense" in kind for kind in _modules(folder)):
        raise ModelFileInvalid("the model has a layer behind its pooling, which only a graph that pools can bring.")
    path = folder / "1_Pooling" / "config.json"
    said = read_config(path) if path.is_file() else {"pooling_mode_mean_tokens": True}
    modes = [mode for mode, on in said.items() if mode.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or modes[0] not in _POOLING_MODES:
        raise ModelFileInvalid("the model pools in a way that this engine does not know.")
    return POOLINGS[_POOLING_MODES[modes[0]]]


def _modules(folder: Path) -> list[str]:
    try:
        said = json.loads((folder / "modules.json").read_bytes())
        return [str(module["type"]) for module in said]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ModelFileInvalid("modules.json is not what it should be.") from None
