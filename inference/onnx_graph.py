"""A decoder with a key-value cache as an ONNX graph, in the layout that the common exporters share.

Lives here: which inputs and outputs there must be, their shapes and types, and one call of the graph. Must not know:
sequences, batches, jobs. Only a worker process imports this module: the graph is a stranger's.
Source: Hugging Face Optimum, "Export a model to ONNX" (input_ids, attention_mask, position_ids,
past_key_values.N.key/value; logits, present.N.key/value); onnxruntime-genai's model builder writes the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from inference.work.onnx_session import Array, Bound, Session
from inference.work.runner import GoOn, always
from market.errors import EngineFailed, ModelFileInvalid

LAYERS_LIMIT: Final = 1024
TOKEN_BYTES_LIMIT: Final = 1 << 26
"""Of one token's keys and values; the largest open models take some 5 MB."""
VOCABULARY_LIMIT: Final = 1 << 22
_PAST: Final = re.compile(r"(past_key_values|past)\.(\d{1,4})\.(key|value)")
_PRESENT: Final = re.compile(r"(present|present_key_values)\.(\d{1,4})\.(key|value)")
_IDS, _MASK, _POSITIONS = "input_ids", "attention_mask", "position_ids"
_LAST_ONLY: Final = ("num_logits_to_keep", "logits_to_keep")
"""How many rows' logits are wanted, counted from the end: what newer exporters add."""
_TYPES: Final[Mapping[str, type]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Cache(NamedTuple):
    """The keys, or the values, of one layer: arrays of shape [rows, heads, tokens, width]."""

    past: str
    present: str
    heads: int
    width: int
    type: type

    def empty(self, rows: int, tokens: int) -> Array:
        return np.zeros((rows, self.heads, tokens, self.width), self.type)


class DecoderGraph:
    """`caches` in the order of the layers; `token_bytes` is what one token takes in all of them."""

    def __init__(self, path: Path, *, threads: int, providers: Sequence[str] = ("cpu",), fall_back: bool = False):
        """Raises ModelFileInvalid with what is missing, NodeMisconfigured."""
        self._name = path.name
        self._session = Session(path, threads=threads, providers=providers, fall_back=fall_back)
        self.providers = self._session.providers
        self._check_ports()
        self.caches = self._caches()
        self.token_bytes = sum(cache.heads * cache.width * np.dtype(cache.type).itemsize for cache in self.caches)
        if self.token_bytes > TOKEN_BYTES_LIMIT:
            raise self._refused(f"keys and values of {self.token_bytes} bytes for each token")
        self._logits_type = self._type("logits", self._session.outputs["logits"][0])
        self._last_only = {name: self._count_type(name) for name in _LAST_ONLY if name in self._session.inputs}
        self.vocabulary = self._vocabulary()

    def call(
        self, tokens: Array, positions: Array, mask: Array, past: Sequence[Array], go_on: GoOn
    ) -> tuple[Array, list[Array]]:
        """(logits [rows, tokens or 1, vocabulary] in float32, keys and values of past and new tokens).

        `tokens` and `positions` are [rows, tokens], `mask` is [rows, past and new tokens]; all int64. Raises
        EngineFailed, and what `go_on` does (`Session.run`).
        """
        names = ["logits", *(cache.present for cache in self.caches)]
        made = self._session.run_all(self._feeds(tokens, positions, mask, past), names, go_on)
        logits: Array = made[0]
        present = made[1:]
        if logits.ndim != 3 or logits.shape[0] != len(tokens) or logits.shape[1] not in (1, tokens.shape[1]):
            raise EngineFailed("the model's logits are not of the shape that they should be.")
        for cache, array in zip(self.caches, present, strict=True):
            if array.dtype != cache.type or array.shape != (len(tokens), cache.heads, mask.shape[1], cache.width):
                raise EngineFailed("the model's keys and values are not of the shape that they should be.")
        return logits.astype(np.float32, copy=False), present

    def bind(
        self, tokens: Array, positions: Array, mask: Array, past: Sequence[Array], present: Sequence[Array]
    ) -> tuple[Bound, Array]:
        """A call with one new token a row that reads these arrays, and writes `present`, each time it is run; and where
        its logits will be, [rows, 1, vocabulary]."""
        logits: Array = np.zeros((len(tokens), 1, self.vocabulary), self._logits_type)
        made = {cache.present: array for cache, array in zip(self.caches, present, strict=True)}
        return self._session.bind(self._feeds(tokens, positions, mask, past), {"logits": logits, **made}), logits

    def _feeds(self, tokens: Array, positions: Array, mask: Array, past: Sequence[Array]) -> dict[str, Array]:
        feeds = {_IDS: tokens, _MASK: mask, **{name: np.array(1, kind) for name, kind in self._last_only.items()}}
        if _POSITIONS in self._session.inputs:
            feeds[_POSITIONS] = positions
        return feeds | {cache.past: array for cache, array in zip(self.caches, past, strict=True)}

    # ---- what the graph must have ------------------------------------------------------------------

    def _check_ports(self) -> None:
        inputs, outputs = self._session.inputs, self._session.outputs
        for name in (_IDS, _MASK):
            if name not in inputs:
                raise self._refused(f"no input {name!r}")
        if not any(_PAST.fullmatch(name) for name in inputs):
            raise self._refused("no inputs for keys and values (past_key_values.0.key and so on)")
        if "logits" not in outputs:
            raise self._refused("no output 'logits'")
        known = {_IDS, _MASK, _POSITIONS, *_LAST_ONLY}
        for name, (kind, _) in inputs.items():
            if name not in known and not _PAST.fullmatch(name):
                raise self._refused(f"an input {name[:64]!r}, which nobody here can fill")
            if name in (_IDS, _MASK, _POSITIONS) and kind != "tensor(int64)":
                raise self._refused(f"an input {name!r} of {kind[:32]} and not of int64")

    def _caches(self) -> tuple[Cache, ...]:
        presents = {
            (int(found[2]), found[3]): name
            for name in self._session.outputs
            if (found := _PRESENT.fullmatch(name)) is not None
        }
        caches = {}
        for name, (kind, shape) in self._session.inputs.items():
            if (found := _PAST.fullmatch(name)) is None:
                continue
            place = int(found[2]), found[3]
            if place not in presents or place in caches or place[0] >= LAYERS_LIMIT:
                raise self._refused(f"an input {name!r} without an output of its own")
            if len(shape) != 4 or not all(isinstance(shape[at], int) and 1 <= shape[at] <= 1 << 20 for at in (1, 3)):
                raise self._refused(f"an input {name!r} that does not say how many heads of which width it has")
            caches[place] = Cache(name, presents[place], shape[1], shape[3], self._type(name, kind))
        if len(caches) != len(presents):
            raise self._refused("more outputs of keys and values than inputs")
        return tuple(caches[place] for place in sorted(caches))

    def _type(self, name: str, kind: str) -> type:
        if kind not in _TYPES:
            raise self._refused(f"{name!r} of {kind[:32]}, where float32 or float16 belongs")
        return _TYPES[kind]

    def _count_type(self, name: str) -> type:
        kind, shape = self._session.inputs[name]
        if kind not in ("tensor(int64)", "tensor(int32)") or shape:
            raise self._refused(f"an input {name!r} that is no whole number")
        return np.int64 if kind == "tensor(int64)" else np.int32

    def _vocabulary(self) -> int:
        """By trying: exporters leave it open, and a file may say what is not so."""
        one = np.zeros((1, 1), np.int64)
        try:
            logits, _ = self.call(one, one, one + 1, [cache.empty(1, 0) for cache in self.caches], always)
        except EngineFailed as error:
            raise self._refused(f"no answer to a first token: {error.message.rstrip('.')}") from None
        if not np.isfinite(logits).all():
            raise self._refused("logits that are not numbers")
        if not 2 <= logits.shape[2] <= VOCABULARY_LIMIT:
            raise self._refused(f"a vocabulary of {logits.shape[2]} tokens")
        return int(logits.shape[2])

    def _refused(self, what: str) -> ModelFileInvalid:
        return ModelFileInvalid(
            f"{self._name} is no decoder that can be run here: it has {what}.",
            next_step="Export the model for text generation with past (optimum: text-generation-with-past).",
        )
