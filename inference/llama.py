"""llama.cpp through llama-cpp-python's low-level API: one model, one context, many sequences.

Lives here: every call into the library, and the numbers it wants. Must not know: jobs, sampling, frames.
Only the worker process imports this module, because a bad model file can take the process down.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import llama_cpp
import numpy as np

from inference.batch import Row
from inference.llama_grammar import LlamaGrammars
from inference.llama_library import LlamaLog, engine_class, load_model, refused
from inference.pacing import Pace
from inference.sampler import Logits
from inference.scheduler import CHUNK, REPLAY, lone
from market.errors import EngineFailed, ModelFileInvalid, NodeMisconfigured

_KV_VALUE_BYTES: Final = 2  # f16
_COMPUTE_BYTES: Final = 96 * 1024 * 1024
"""Graph and output buffers for 64 rows; 60 MB were seen for the default model."""


class LlamaContext:
    """A model file, mapped, with `slots` sequences of `size` tokens each.

    kv_unified=False gives each sequence its own cells: with the shared buffer, logits depend on who else
    is in the batch (differences of up to 1.4 were measured).
    Raises ModelFileInvalid with the library's reason, NodeMisconfigured if it does not fit `memory_bytes`.
    """

    replay: Final = REPLAY

    def __init__(
        self, path: Path, *, slots: int, size: int, threads: int, memory_bytes: int, gpu_layers: int = 0
    ) -> None:
        self._pace = Pace(threads)
        self.size = size
        self._threads = threads
        self._gpu_layers = gpu_layers
        self._slots = slots
        self._log = LlamaLog()
        self._model = self._load(path)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self._check_size(path, slots, memory_bytes)
        self._context = self._open_context(path)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)
        self._using = threads
        self.chunk_s = self._warm_up()
        """What the first 64 rows took, the weights' way from the disk included."""

    @property
    def threads(self) -> int:
        """How many a call with several rows has now."""
        return self._pace.threads

    @property
    def engine(self) -> str:
        """The engine class: library, version, instruction set, quantisation; equal classes replay bit for bit."""
        # Canonical chunks were measured on CPUs only: with layers elsewhere it is another class.
        return engine_class(self._model, where=f"gpu{self._gpu_layers}-" if self._gpu_layers else "")

    def grammars(self) -> LlamaGrammars:
        """For this model's vocabulary; what is slow about them is done here."""
        grammars = LlamaGrammars(self._vocab)
        assert grammars.levels
        return grammars

    def decode(self, rows: Sequence[Row]) -> list[Logits]:
        alone = lone([row.slot for row in rows])
        shape = (rows[0].slot == rows[-1].slot, -(-len(rows) // 4))
        threads = 1 if alone else self._pace.threads_for(shape)
        self._use(threads)
        batch = self._batch
        batch.n_tokens = len(rows)
        for at, row in enumerate(rows):
            batch.token[at] = row.token
            batch.pos[at] = row.position
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = row.slot
            batch.logits[at] = row.wanted
        began, ran = time.perf_counter(), time.thread_time()
        status = llama_cpp.llama_decode(self._context, batch)
        if not alone:
            wall_s, ran_s = time.perf_counter() - began, time.thread_time() - ran
            self._pace.heard(shape, threads, began=began, wall_s=wall_s, ran_s=ran_s)
        if status != 0:
            raise EngineFailed(f"llama_decode returned {status} for {len(rows)} rows.")
        return [self._logits(at) for at, row in enumerate(rows) if row.wanted]

    def _use(self, threads: int) -> None:
        """A lone row goes through one thread: several split its context among them, which gives other bits (1 of 51
        equal at 400 tokens), and save no time on it (4.9 ms and 4.8)."""
        if threads != self._using:
            llama_cpp.llama_set_n_threads(self._context, threads, threads)
            self._using = threads

    def forget(self, slot: int, start: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, slot, start, -1)

    def copy(self, source: int, slot: int) -> None:
        """All of it: between sequences with buffers of their own, a partial copy aborts the process. 3 ms a 2,048
        tokens of the default model; the bytes move when the next decode call begins."""
        self.forget(slot, 0)
        llama_cpp.llama_memory_seq_cp(self._memory, source, slot, -1, -1)

    def _logits(self, at: int) -> Logits:
        """A view into the library's buffer, without a copy."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, at)
        row: Logits = np.ctypeslib.as_array(pointer, shape=(self.vocabulary,))
        return row

    def _load(self, path: Path) -> Any:
        options = llama_cpp.llama_model_default_params()
        if self._gpu_layers and not llama_cpp.llama_supports_gpu_offload():
            raise NodeMisconfigured(
                "this build of llama-cpp-python computes on the CPU alone, and GPU layers are set.",
                next_step="Build it with CMAKE_ARGS=-DGGML_CUDA=on, or set the GPU layers to 0.",
            )
        options.n_gpu_layers = self._gpu_layers
        model = load_model(path, options, self._log)
        if not llama_cpp.llama_model_has_decoder(model):
            raise _writes_nothing(path)
        return model

    def _check_size(self, path: Path, slots: int, memory_bytes: int) -> None:
        trained = int(llama_cpp.llama_model_n_ctx_train(self._model))
        if self.size > trained:
            raise NodeMisconfigured(
                f"a context of {self.size} tokens is more than the {trained} that {path.name} was trained for.",
                next_step=f"Set the context to at most {trained}.",
            )
        per_slot = self.size * self._kv_token_bytes()
        # Weights count too: the kernels keep a repacked copy of their own beside the mapped file.
        fixed = int(llama_cpp.llama_model_size(self._model)) + _COMPUTE_BYTES
        if fixed + slots * per_slot <= memory_bytes:
            return
        fitting = (memory_bytes - fixed) // per_slot
        advice = f"Use at most {fitting} slots, or a shorter context." if fitting > 0 else "Use a smaller model."
        raise NodeMisconfigured(
            f"{slots} slots of {self.size} tokens need {(fixed + slots * per_slot) >> 20} MiB of memory for each "
            f"worker, and {memory_bytes >> 20} MiB are free.",
            next_step=advice,
        )

    def _kv_token_bytes(self) -> int:
        """Bytes that one token's keys and values take in all layers: 23,040 for the default model."""
        model = self._model
        heads = int(llama_cpp.llama_model_n_head(model)) or 1
        width = int(llama_cpp.llama_model_n_embd(model)) // heads * int(llama_cpp.llama_model_n_head_kv(model))
        return 2 * _KV_VALUE_BYTES * width * int(llama_cpp.llama_model_n_layer(model))

    def _open_context(self, path: Path) -> Any:
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = self.size * self._slots
        options.n_batch = options.n_ubatch = CHUNK
        options.n_seq_max = self._slots
        options.n_threads = options.n_threads_batch = self._threads
        options.kv_unified = False
        context = llama_cpp.llama_init_from_model(self._model, options)
        if not context:
            raise refused(f"open a context for {path.name}", self._log)
        if not llama_cpp.llama_get_memory(context):  # as with BERT: it reads a text at once, and remembers nothing
            raise _writes_nothing(path)
        return context

    def _warm_up(self) -> float:
        """Touch every buffer and start the threads now: the first job is not slower than the second. Seconds taken."""
        began_s = time.monotonic()
        self.decode([Row(0, 0, at, wanted=at == CHUNK - 1) for at in range(CHUNK)])
        self.forget(0, 0)
        return time.monotonic() - began_s


def _writes_nothing(path: Path) -> ModelFileInvalid:
    return ModelFileInvalid(
        f"{path.name} is not a model that generates text.",
        next_step="One that embeds or reranks is added as such: `octo-node models add --modality embedding`.",
    )
