"""Encoders of text in GGUF files, inside a child: token ids to what llama.cpp makes of them, many texts in one call.

Lives here: every call into the library that an encoder needs. Texts are cut into tokens by the model's own tokenizer,
as its buyers count them, not by llama.cpp's, which reads Hangul and some control characters in another way.

Equal bytes (see `text_runner`). A call is a list of rows of which each belongs to a sequence, without padding. Measured
with llama.cpp 0.3.36 on AVX-512 (MiniLM in F32, F16 and Q8_0): with flash attention and up to 63 rows in a call a
text's hidden states are equal to the bit, whatever else is in it: every row walks over its own sequence's keys alone.
From 64 rows on keys come in tiles of 64, and sums take another order; without flash attention too. So short texts
share calls of 63 rows, and one of 64 tokens or more has a call to itself. Pooling is ours (`text_heads`).
Texts a second of 1, 4 and 32 texts of 15 tokens in a call (F16, one core): 195, 281, 329.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import llama_cpp
import numpy as np

from inference.llama_library import LlamaLog, engine_class, load_model, metadata, refused
from inference.models.plain_encoder import Encoded, PlainEncoder, load_plain_encoder
from inference.work.rows import ROWS_LIMIT, TOKENS_LIMIT
from inference.work.runner import GoOn
from inference.work.text_heads import POOLINGS, Array, EmbedHead, Head, RerankHead
from inference.work.text_runner import TextRunner
from market.errors import EngineFailed, ModelFileInvalid

EXACT_TOKENS: Final = 63
_POOLINGS: Final = {
    llama_cpp.LLAMA_POOLING_TYPE_MEAN: "mean",
    llama_cpp.LLAMA_POOLING_TYPE_CLS: "cls",
    llama_cpp.LLAMA_POOLING_TYPE_LAST: "last",
}
_RANK: Final = llama_cpp.LLAMA_POOLING_TYPE_RANK
_ASK_S: Final = 0.1
_SEQUENCES: Final = ROWS_LIMIT + 1
"""One more than texts, for the row that keeps a row company."""
_FLASH: Final = 1
"""From llama.h, enum llama_flash_attn_type: enabled."""


class LlamaTexts:
    """Implements `inference.work.text_runner.TextModel`."""

    padded = False

    def __init__(self, path: Path, encoder: PlainEncoder, *, kind: str, threads: int, loose: bool = False) -> None:
        """Raises ModelFileInvalid with the reason."""
        self.tokens_limit = TOKENS_LIMIT if loose else EXACT_TOKENS
        self.probes = ((9, 10, 11, 12, 13), (34, 29), (5,) * 12, (1, 2, 60))
        self._log = LlamaLog()
        self._rows = max(encoder.limit, TOKENS_LIMIT)
        """The most in a call: an encoder that gets more than the library was told of aborts the process."""
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = load_model(path, options, self._log)
        self.pooling = self._pooling(path, kind)
        self._check(path, encoder)
        self._context = self._open_context(path, threads)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(self._rows, 0, 1)
        self._watch = _Watch(self._context)
        self._width = int(llama_cpp.llama_model_n_embd_out(self._model))
        self._classes = int(llama_cpp.llama_model_n_cls_out(self._model))

    @property
    def engine(self) -> str:
        return engine_class(self._model)

    def outputs(self, texts: Sequence[Encoded], go_on: GoOn) -> list[Array]:
        """For each text the hidden states that its pooling takes, or its logits."""
        starts = self._fill(texts)
        self._watch.begin(go_on, rows=int(self._batch.n_tokens))
        if self._memory:
            llama_cpp.llama_memory_clear(self._memory, False)
            status = llama_cpp.llama_decode(self._context, self._batch)
        else:
            status = llama_cpp.llama_encode(self._context, self._batch)
        self._watch.end()
        if status != 0:
            raise EngineFailed(f"the model failed on the input (llama.cpp returned {status}).")
        if not self.pooling:
            return [self._logits(at) for at in range(len(texts))]
        return [self._hidden(start, len(text.ids)) for start, text in zip(starts, texts, strict=True)]

    def _fill(self, texts: Sequence[Encoded]) -> list[int]:
        """A lone row takes other kernels than several: it gets one of its kind for company."""
        rows = [(token, at, number) for number, text in enumerate(texts) for at, token in enumerate(text.ids)]
        if len(rows) == 1:
            rows.append((rows[0][0], 0, len(texts)))
        if len(rows) > self._rows or len(texts) >= _SEQUENCES:
            raise EngineFailed(f"{len(rows)} rows of {len(texts)} texts do not fit into a call.")
        batch = self._batch
        batch.n_tokens = len(rows)
        starts = []
        for at, (token, position, sequence) in enumerate(rows):
            batch.token[at] = token
            batch.pos[at] = position
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = sequence
            batch.logits[at] = True
            if position == 0:
                starts.append(at)
        return starts[: len(texts)]

    def _hidden(self, start: int, length: int) -> Array:
        if self.pooling == "mean":
            wanted = range(start, start + length)
        else:
            wanted = range(start, start + 1) if self.pooling == "cls" else range(start + length - 1, start + length)
        return np.stack([self._copied(llama_cpp.llama_get_embeddings_ith(self._context, at)) for at in wanted])

    def _logits(self, sequence: int) -> Array:
        return self._copied(llama_cpp.llama_get_embeddings_seq(self._context, sequence), self._classes)

    def _copied(self, pointer: Any, width: int = 0) -> Array:
        if not pointer:
            raise EngineFailed("the model made nothing of the input.")
        return np.array(np.ctypeslib.as_array(pointer, shape=(width or self._width,)), np.float32)

    def _pooling(self, path: Path, kind: str) -> str:
        """How the file says that hidden states become a vector; empty for a model that makes scores of them itself.

        An encoder that says nothing is pooled by the mean, as everywhere; a model that writes text is none.
        """
        arch = metadata(self._model, "general.architecture")
        said = metadata(self._model, f"{arch}.pooling_type")
        number = int(said) if said.isdigit() else llama_cpp.LLAMA_POOLING_TYPE_NONE
        if kind == "rerank":
            types = metadata(self._model, "tokenizer.ggml.token_type_count")
            if number != _RANK:
                raise ModelFileInvalid(
                    f"{path.name} makes no scores: its pooling is not that of a reranker.",
                    next_step="Add a reranker, or add this one as what it is.",
                )
            if types.isdigit() and int(types) > 1:  # llama.cpp gives all tokens the first one
                raise ModelFileInvalid(
                    f"{path.name} tells query and document apart by token types, which llama.cpp does not.",
                    next_step="Add its ONNX export instead.",
                )
            return ""
        if number == _RANK:
            raise ModelFileInvalid(
                f"{path.name} makes scores and no vectors.", next_step="Add it as what it is: `--modality rerank`."
            )
        if number in _POOLINGS:
            return _POOLINGS[number]
        if metadata(self._model, f"{arch}.attention.causal") == "false":
            return "mean"
        raise ModelFileInvalid(
            f"{path.name} does not say how it embeds: it is a model that writes text.",
            next_step="Add an embedding model, or this one as what it is: `--modality text`.",
        )

    def _check(self, path: Path, encoder: PlainEncoder) -> None:
        trained = int(llama_cpp.llama_model_n_ctx_train(self._model))
        if encoder.limit > trained:
            raise ModelFileInvalid(
                f"a context of {encoder.limit} tokens is more than the {trained} that {path.name} was trained for.",
                next_step=f"Add it with a context of at most {trained}.",
            )
        known = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        if encoder.vocabulary > known:
            raise ModelFileInvalid(
                f"its tokenizer has {encoder.vocabulary} tokens, and {path.name} knows {known}.",
                next_step="They are of two models: get both from one place.",
            )

    def _open_context(self, path: Path, threads: int) -> Any:
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = self._rows
        options.n_seq_max = _SEQUENCES
        options.n_threads = options.n_threads_batch = threads
        options.embeddings = True
        options.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE if self.pooling else _RANK
        options.flash_attn_type = _FLASH
        options.kv_unified = True
        context = llama_cpp.llama_init_from_model(self._model, options)
        if not context:
            raise refused(f"open a context for {path.name}", self._log)
        return context


class _Watch:
    """Asks, between two steps of a long call, whether it is to go on: 8,000 tokens take many seconds, in which the node
    must hear that we live. Short calls are not interrupted: asking costs some 1 % of one."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._go_on: GoOn | None = None
        self._asked_at = 0.0
        self._failed: BaseException | None = None

        @llama_cpp.ggml_abort_callback  # type: ignore[untyped-decorator]
        def ask(_data: object) -> bool:
            return self._ends()

        self._ask = ask  # must outlive the context
        self._nobody = llama_cpp.ggml_abort_callback(0)

    def begin(self, go_on: GoOn, *, rows: int) -> None:
        """Sets the library's callback for a call of so many rows, or takes it away."""
        self._go_on = go_on if rows > EXACT_TOKENS else None
        callback = self._nobody if self._go_on is None else self._ask
        llama_cpp.llama_set_abort_callback(self._context, callback, ctypes.c_void_p(0))

    def end(self) -> None:
        """Raises what `go_on` did: nothing may pass through the library."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def _ends(self) -> bool:
        if self._go_on is None or time.monotonic() - self._asked_at < _ASK_S:
            return False
        self._asked_at = time.monotonic()
        try:
            return not self._go_on()
        except BaseException as error:  # noqa: BLE001 - the node may be gone, which is no Exception
            self._failed = error
            return True


def open_llama_texts(
    model: Path, tokenizer: Path, *, kind: str, context: int, threads: int, loose: bool = False
) -> TextRunner:
    """`kind` is `embed` or `rerank`. Raises ModelFileInvalid."""
    encoder = load_plain_encoder(tokenizer, limit=context)
    texts = LlamaTexts(model, encoder, kind=kind, threads=threads, loose=loose)
    head: Head = EmbedHead(POOLINGS[texts.pooling]) if texts.pooling else RerankHead()
    runner = TextRunner(texts, encoder, head, loose=loose)
    runner.engine = f"{texts.engine}{'/loose' if loose else ''}"
    return runner
