"""A small language model in ONNX: many sequences, one graph. The ONNX side of `inference.batch.Context`.

Lives here: each sequence's keys and values, which of them share a call, and how calls are shaped. Must not know: jobs,
sampling, frames. Only a worker process imports this module.

Equal bits. A job's logits must depend on its tokens alone. Measured with ONNX Runtime 1.31 on AVX-512 (SmolLM2-135M in
float32, 65 to 700 tokens, 1 and 2 threads, 1 to 16 rows a call): a row's logits are equal to the bit in any company,
if its past is filled up to a multiple of 64 tokens by a hole that the mask leaves out, however long that hole is;
filled up to other lengths they are not (5e-5). So past tokens lie at their positions, the new one behind the hole, and
one call serves sequences of all lengths. Prompts go in the scheduler's chunks of 64, alone and without a hole (what
more rows of the same chunk follow changes nothing); those bits are not those of single steps (2e-5), so what a resumed
job had generated is fed again in single steps. Other graphs differ (dynamic quantisation scales by the whole call, some
take no hole), so each is tried when it is loaded, and its rows run alone, or without holes, if they must. What that
costs: 16 rows of 40 tokens took 59 ms of one core together and 382 one by one; of 500 tokens, where copying the past is
most of it, 195 and 455.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime

from inference.batch import Row
from inference.onnx_graph import Cache, DecoderGraph
from inference.sampler import Logits
from inference.scheduler import CHUNK
from inference.work.onnx_session import CPU, Array
from inference.work.runner import GoOn, always
from market.errors import EngineFailed, NodeMisconfigured

_COMPUTE_BYTES: Final = 256 * 1024 * 1024
"""A chunk's activations and logits; 190 MB were seen for 49,152 tokens."""
_CACHE_COPIES: Final = 3
"""A sequence's own, and what goes into and comes out of a call."""
_TRIED: Final = (5, 3, 9, 2)
"""Lengths of the prompts that are tried together."""
_TOLERANCE: Final = 0.02
"""Of the largest logit: half precision and quantisation stay below; a hole that is taken for tokens does not."""


class OnnxContext:
    """A graph with `slots` sequences of `size` tokens each; `together` says whether rows share calls. `engine` is the
    engine class: library, version, where it runs, and `engine_words`; equal classes replay bit for bit. `go_on` is
    asked now and then in a call that takes long.

    Raises ModelFileInvalid, NodeMisconfigured if it does not fit `memory_bytes`.
    """

    replay: Final = 1
    """Generated tokens of a resumed job that a call feeds again: a chunk's bits are not those of single steps."""
    threads: Final = 1
    """What a layout of rows is chosen by (`inference.scheduler.layout`): rows need no neighbours here."""

    def __init__(
        self,
        path: Path,
        *,
        slots: int,
        size: int,
        threads: int,
        memory_bytes: int,
        engine_words: str,
        providers: Sequence[str] = ("cpu",),
        fall_back: bool = False,
    ) -> None:
        onnxruntime.disable_telemetry_events()
        self.go_on: GoOn = always
        self.size = size
        self._graph = DecoderGraph(path, threads=threads, providers=providers, fall_back=fall_back)
        self._check_size(path, slots, memory_bytes)
        self.vocabulary = self._graph.vocabulary
        self._lanes = _Lanes(self._graph.caches, slots, size)
        self._calls: dict[tuple[int, ...], _Call] = {}
        self._hole, self._behind, self._more = CHUNK, True, 0
        self.together = self._try(slots)
        self.chunk_s = self._warm_up()
        first = self._graph.providers[0]
        on = "cpu" if first == CPU else first.removesuffix("ExecutionProvider").lower()
        self.engine = f"onnxruntime/{onnxruntime.__version__}/{on}-{engine_words}"

    def decode(self, rows: Sequence[Row]) -> list[Logits]:
        if len({row.slot for row in rows}) > 1:
            return self._step([row for row in rows if row.wanted])  # the others are padding, which nothing here needs
        made = self._step(rows) if len(rows) == 1 else self._chunk(rows)
        return [logits for row, logits in zip(rows, made, strict=True) if row.wanted]

    def forget(self, slot: int, start: int) -> None:
        if start < self._lanes.held[slot]:
            self._lanes.cut(slot, start)

    def copy(self, source: int, slot: int) -> None:
        self._lanes.copy(source, slot)

    def _chunk(self, rows: Sequence[Row]) -> list[Logits]:
        """Tokens of a prompt, at their positions behind those that are there. Logits are right for the last alone, if
        the graph makes no others."""
        slot, start = rows[0].slot, rows[0].position
        self._lanes.check(slot, start)
        tokens = np.array([[row.token for row in rows]], np.int64)
        positions = np.arange(start, start + len(rows), dtype=np.int64)[None]
        mask = np.ones((1, start + len(rows)), np.int64)
        logits, present = self._graph.call(tokens, positions, mask, self._lanes.past(slot, start), self.go_on)
        self._lanes.put(slot, start, [array[0, :, start:] for array in present])
        made: list[Logits] = list(np.broadcast_to(logits[0], (len(rows), self.vocabulary)))
        return made

    def _step(self, rows: Sequence[Row]) -> list[Logits]:
        """One token for each of these sequences."""
        if not self.together and len(rows) > 1:
            return [logits for row in rows for logits in self._step([row])]
        for row in rows:
            self._lanes.check(row.slot, row.position)
        call = self._call(tuple(sorted(row.slot for row in rows)))
        made = call.run({row.slot: row.token for row in rows}, behind=self._behind, go_on=self.go_on)
        return [made[row.slot] for row in rows]

    def _call(self, slots: tuple[int, ...]) -> _Call:
        """Arrays for these sequences: those of the last step, if nothing else has happened to them since."""
        held = max(self._lanes.held[slot] for slot in slots)
        room = max(-(-held // self._hole), 1) * self._hole + self._more if self._hole else held
        call = self._calls.pop(slots, None)
        if call is None or not call.fits(room):
            if self.together:
                self._calls.clear()
            call = _Call(self._graph, self._lanes, slots, room)
        self._calls[slots] = call
        return call

    # ---- at the start --------------------------------------------------------------------------------

    def _try(self, slots: int) -> bool:
        """Whether rows that share a call have the bits that they have alone; on the way, what holes the graph takes.
        Every buffer is touched: the first job is not slower than the second."""
        for slot in range(slots):
            length = _TRIED[slot % len(_TRIED)]
            self._chunk([Row(slot, (7 * slot + at) % self.vocabulary, at, False) for at in range(length)])
        self.together = False
        alone = self._alone(slots)
        together = slots > 1 and self._hole > 0 and all(self._same(alone, rows) for rows in _shares(slots))
        for slot in range(slots):
            self.forget(slot, 0)
        self._calls.clear()
        return together

    def _warm_up(self) -> float:
        """A chunk of a prompt; seconds taken."""
        began_s = time.monotonic()
        self._chunk([Row(0, at % self.vocabulary, at, False) for at in range(min(CHUNK, self.size))])
        self.forget(0, 0)
        return time.monotonic() - began_s

    def _alone(self, slots: int) -> list[Logits]:
        """Each row's logits by itself: with a hole, if that comes to the same as without."""
        self._hole = 0
        plain = self._stepped(range(slots))
        key = [self._lanes.past(slot, self._lanes.held[slot] + 1)[0][0, :, -1].copy() for slot in range(slots)]
        self._hole = CHUNK
        for behind in (True, False):
            self._behind = behind
            try:
                made = self._stepped(range(slots))
            except EngineFailed:
                continue
            found = [self._lanes.past(slot, self._lanes.held[slot] + 1)[0][0, :, -1] for slot in range(slots)]
            if all(_alike(*pair) for pair in (*zip(plain, made, strict=True), *zip(key, found, strict=True))):
                return made
        self._hole = 0
        return plain

    def _same(self, alone: Sequence[Logits], slots: Sequence[int]) -> bool:
        """With the hole that they need, and with a longer one, as a longer neighbour would bring."""
        self.together = True
        try:
            for self._more in (0, CHUNK):
                made = self._stepped(slots)
                if not all(np.array_equal(alone[slot], one) for slot, one in zip(slots, made, strict=True)):
                    return False
        except EngineFailed:
            return False
        finally:
            self.together, self._more = False, 0
        return True

    def _stepped(self, slots: Sequence[int]) -> list[Logits]:
        rows = [Row(slot, (3 * slot + 1) % self.vocabulary, self._lanes.held[slot], True) for slot in slots]
        made = [logits.copy() for logits in self._step(rows)]
        for row in rows:
            self._lanes.cut(row.slot, row.position)
        return made

    def _check_size(self, path: Path, slots: int, memory_bytes: int) -> None:
        per_slot = self.size * self._graph.token_bytes * _CACHE_COPIES
        weights = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
        fixed = weights * 5 // 4 + _COMPUTE_BYTES  # 684 MB at most were seen for 540 of weights
        if fixed + slots * per_slot <= memory_bytes:
            return
        fitting = (memory_bytes - fixed) // per_slot
        raise NodeMisconfigured(
            f"{slots} slots of {self.size} tokens need {(fixed + slots * per_slot) >> 20} MiB of memory for each "
            f"worker, and {memory_bytes >> 20} MiB are free.",
            next_step=f"Use at most {fitting} slots, or a shorter context." if fitting > 0 else "Use a smaller model.",
        )


class _Lanes:
    """Every sequence's keys and values, each at its token's position. Made at once, touched as they fill."""

    def __init__(self, caches: Sequence[Cache], slots: int, size: int) -> None:
        self._arrays = [cache.empty(slots, size) for cache in caches]
        self._size = size
        self.held = [0] * slots
        self.changes = [0] * slots
        """Counts all that happens to a sequence but single steps."""

    def check(self, slot: int, start: int) -> None:
        if start != self.held[slot] or start >= self._size:
            raise EngineFailed(f"a token for position {start} of a sequence of {self.held[slot]} tokens.")

    def past(self, slot: int, tokens: int) -> list[Array]:
        """The first so many, as a call wants them."""
        return [np.ascontiguousarray(array[slot : slot + 1, :, :tokens]) for array in self._arrays]

    def fill(self, slot: int, arrays: Sequence[Array], at: int) -> None:
        """All there are of a sequence into row `at` of a call's arrays, which are empty."""
        held = self.held[slot]
        for array, into in zip(self._arrays, arrays, strict=True):
            into[at, :, :held] = array[slot, :, :held]

    def put(self, slot: int, start: int, new: Sequence[Array]) -> None:
        stop = start + new[0].shape[1]
        for array, values in zip(self._arrays, new, strict=True):
            array[slot, :, start:stop] = values
        self.held[slot] = stop
        self.changes[slot] += 1

    def put_one(self, slots: Sequence[int], new: Sequence[Array]) -> None:
        """One more token for each of these, [slots, heads, width] of each cache."""
        at = [self.held[slot] for slot in slots]
        for array, values in zip(self._arrays, new, strict=True):
            array[slots, :, at] = values
        for slot in slots:
            self.held[slot] += 1

    def cut(self, slot: int, tokens: int) -> None:
        self.held[slot] = tokens
        self.changes[slot] += 1

    def copy(self, source: int, slot: int) -> None:
        held = self.held[source]
        for array in self._arrays:
            array[slot, :, :held] = array[source, :, :held]
        self.held[slot] = held
        self.changes[slot] += 1


class _Call:
    """A step for the same sequences, again and again: their keys and values stay where the graph reads them, and each
    step adds one. A hole holds zeros: keys and values of tokens that were dropped could be NaN, and NaN times no weight
    is NaN."""

    def __init__(self, graph: DecoderGraph, lanes: _Lanes, slots: tuple[int, ...], room: int) -> None:
        self._lanes, self._slots, self._room = lanes, slots, room
        rows = len(slots)
        self._past = [cache.empty(rows, room) for cache in graph.caches]
        self._present = [cache.empty(rows, room + 1) for cache in graph.caches]
        self._tokens, self._positions = np.zeros((rows, 1), np.int64), np.zeros((rows, 1), np.int64)
        self._mask = np.zeros((rows, room + 1), np.int64)
        self._mask[:, room] = 1
        for at, slot in enumerate(slots):
            lanes.fill(slot, self._past, at)
            self._mask[at, : lanes.held[slot]] = 1
        self._bound, self._logits = graph.bind(self._tokens, self._positions, self._mask, self._past, self._present)
        self._changes = [lanes.changes[slot] for slot in slots]

    def fits(self, room: int) -> bool:
        return room == self._room and self._changes == [self._lanes.changes[slot] for slot in self._slots]

    def run(self, tokens: dict[int, int], *, behind: bool, go_on: GoOn) -> dict[int, Logits]:
        """Logits by slot. `behind`: the graph puts the new token's key behind the hole, and not into it."""
        rows = range(len(self._slots))
        held = [self._lanes.held[slot] for slot in self._slots]
        self._tokens[:, 0] = [tokens[slot] for slot in self._slots]
        self._positions[:, 0] = held
        self._bound.run(go_on)
        made = [self._room] * len(held) if behind else held
        new = [array[rows, :, made] for array in self._present]
        if max(held) < self._room:
            for past, values in zip(self._past, new, strict=True):
                past[rows, :, held] = values
            self._mask[rows, held] = 1
        self._lanes.put_one(self._slots, new)
        logits = self._logits[:, 0].astype(np.float32)
        return {slot: logits[at] for at, slot in enumerate(self._slots)}


def _shares(slots: int) -> Iterator[range]:
    """Companies to try: kernels differ by the number of rows."""
    for rows in sorted({2, 3, slots // 2, slots}):
        if 2 <= rows <= slots:
            yield range(slots - rows, slots)


def _alike(one: Array, other: Array) -> bool:
    scale = float(np.abs(one).max(initial=0))
    return bool(np.isfinite(other).all()) and float(np.abs(one.astype(np.float64) - other).max()) <= _TOLERANCE * scale
