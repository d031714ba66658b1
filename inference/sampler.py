"""The sampler: logits in, one token out, the same on every machine that knows the seed.

Lives here: bias, penalties, temperature, top_k, top_p and the noise that decides; log probabilities to report.
Must not know: engines, batches, time, what a grammar is, or any randomness but the seed; a verifier redraws
tokens with nothing but this, logits, and the grammar if there was one.

The rule, in float64, for the token at absolute output position `p` (0 is the first generated token):
  1. logit[t] += bias[t] - frequency * count[t] - presence * (count[t] > 0), count over tokens generated so far;
     the sum of the adjustments is made in integer millionths, so that it does not depend on their order;
     tokens that a grammar does not permit are out.
  2. temperature 0: the highest wins, and of equals the lowest token id. Otherwise:
  3. the `top_k` highest survive (256 if top_k is 0), equals ordered by lowest id; then logit / temperature;
  4. of those, the shortest run from the top whose softmax mass reaches top_p of theirs; at least one;
  5. the highest of logit / temperature + gumbel(t) wins (Gumbel-max: exactly a draw from the softmax).

The noise is a function of (seed, choice, p, t) alone:
  k0, k1 = the first two big-endian 64-bit words of SHA-256("octo/gumbel/1" | seed[32] | choice:u32 | p:u64)
  x = mix(mix(k0 + (t + 1) * 0x9E3779B97F4A7C15) ^ k1), all modulo 2^64, mix being splitmix64's finalizer
  u = ((x >> 11) | 1) / 2^53, odd, hence never 0 or 1;  gumbel(t) = -ln(-ln(u))
Vectors: tests/vectors/sampler.json. Gumbel-max sampling: https://arxiv.org/abs/1411.0030
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from market.errors import EngineFailed
from market.task import MICRO, Sampling

Logits = NDArray[np.float32]
Permits = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Which of these distinct token ids a grammar lets come next."""

LOGPROBS_LIMIT: Final = 20
_LOGPROB: Final = np.dtype([("token", "<i4"), ("logprob", "<f4")])
SURVIVORS: Final = 256
_GROUPS: Final = 1024
"""The maxima of 1024 groups bound the 256th best from below: 35 us for 49,152 logits; a partition takes 300."""

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)


class Sampler:
    """Draws one job's tokens. `generated` are tokens an earlier provider already delivered for it."""

    def __init__(self, sampling: Sampling, generated: Sequence[int] = ()) -> None:
        self._temperature = sampling.temperature_micro / MICRO
        self._top_k = sampling.top_k or SURVIVORS
        self._top_p = sampling.top_p_micro / MICRO
        self._frequency = sampling.frequency_penalty_micro
        self._presence = sampling.presence_penalty_micro
        self._noise_key = b"octo/gumbel/1" + sampling.seed + sampling.choice.to_bytes(4, "big")
        self._adjusted = _Adjusted()
        self._seen: set[int] = set()
        self.position = 0
        for bias in sampling.logit_bias:
            self._adjusted.add(bias.token, bias.bias_micro)
        for token in generated:
            self.accept(token)

    def draw(self, logits: Logits, permits: Permits | None = None) -> int:
        """The token for the next position, from one row of float32 logits. Changes nothing: `accept` it.

        Raises EngineFailed if the row holds NaN or +infinity, or nothing but -infinity, or if `permits` permits
        nothing that the row holds.
        """
        ids, values = self._adjusted.apart(logits)
        row = logits if ids is None else self._adjusted.masked(logits)
        if permits is not None:
            found, logits_ = _best_permitted(row, ids, values, self._top_k if self._temperature else 1, permits)
            return self._sample(found, logits_) if self._temperature else int(found[0])
        if self._temperature == 0:
            return _highest(row, ids, values)
        return self._sample(*_best(row, ids, values, self._top_k))

    def accept(self, token: int) -> None:
        """The token at this position is settled: count it for the penalties and move on."""
        self.position += 1
        if self._frequency or self._presence:
            first = token not in self._seen
            self._seen.add(token)
            self._adjusted.add(token, -self._frequency - (self._presence if first else 0))

    def _sample(self, ids: NDArray[np.int64], values: NDArray[np.float64]) -> int:
        scores = values / self._temperature
        if self._top_p < 1:
            mass = np.cumsum(np.exp(scores - scores[0]))
            keep = int(np.searchsorted(mass, self._top_p * mass[-1])) + 1
            ids, scores = ids[:keep], scores[:keep]
        scores = scores + gumbel(self._noise_key, self.position, ids)
        return int(ids[scores == scores.max()].min())


def logprobs_of(logits: Logits, token: int, count: int) -> bytes:
    """The log probability of `token` (little-endian float32), then of the `count` most likely tokens, best first,
    equals by lowest id (int32 id and float32 each), all of the softmax of the row as the model gave it. 0.5 ms.

    Raises EngineFailed as `Sampler.draw` does.
    """
    found, values = _best(logits, None, None, max(1, count))
    top = float(values[0])
    mass = top + float(np.log(np.exp(logits.astype(np.float64) - top).sum()))
    packed = np.empty(count, dtype=_LOGPROB)
    packed["token"], packed["logprob"] = found[:count], values[:count] - mass
    return struct.pack("<f", float(logits[token]) - mass) + packed.tobytes()


def read_logprobs(data: bytes) -> tuple[float, tuple[tuple[int, float], ...]]:
    """What `logprobs_of` packed. Raises ValueError for bytes that it cannot have packed."""
    (own,) = struct.unpack_from("<f", data) if len(data) >= 4 else (np.nan,)
    top = np.frombuffer(data, dtype=_LOGPROB, offset=4) if (len(data) - 4) % _LOGPROB.itemsize == 0 else None
    if top is None or np.isnan(own) or np.isnan(top["logprob"]).any():
        raise ValueError("these are no log probabilities")
    return own, tuple(zip(top["token"].tolist(), top["logprob"].tolist(), strict=True))


def gumbel(key: bytes, position: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """The noise of `tokens`; `key` is "octo/gumbel/1" | seed | choice:u32."""
    uniform = noise_bits(key, position, tokens).astype(np.float64) * 2.0**-53
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def noise_bits(key: bytes, position: int, tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The 53-bit odd integers behind the noise: exact on every machine, unlike logarithms."""
    digest = hashlib.sha256(key + position.to_bytes(8, "big")).digest()
    first = np.uint64(int.from_bytes(digest[:8], "big"))
    second = np.uint64(int.from_bytes(digest[8:16], "big"))
    mixed = _mix(_mix(first + (tokens.astype(np.uint64) + np.uint64(1)) * _GOLDEN) ^ second)
    return (mixed >> np.uint64(11)) | np.uint64(1)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer, a bijection of 64-bit words. Source: https://prng.di.unimi.it/splitmix64.c"""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


class _Adjusted:
    """The few tokens whose logits are changed, and by how many millionths. Grows by one token at a time."""

    def __init__(self) -> None:
        self._index: dict[int, int] = {}
        self._ids = np.zeros(64, dtype=np.int64)
        self._micro = np.zeros(64, dtype=np.int64)
        self._scratch: Logits = np.zeros(0, dtype=np.float32)

    def add(self, token: int, micro: int) -> None:
        at = self._index.setdefault(token, len(self._index))
        if at == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._micro = np.concatenate([self._micro, np.zeros_like(self._micro)])
        self._ids[at] = token
        self._micro[at] += micro

    def apart(self, logits: Logits) -> tuple[NDArray[np.int64] | None, NDArray[np.float64] | None]:
        """The changed tokens and their new logits in float64."""
        if not self._index:
            return None, None
        ids = self._ids[: len(self._index)]
        values: NDArray[np.float64] = logits[ids].astype(np.float64) + self._micro[: len(ids)] / MICRO
        return ids, values

    def masked(self, logits: Logits) -> Logits:
        """The row without the changed tokens, which are ranked apart. A copy of 196 KB: 8 us."""
        if len(self._scratch) != len(logits):
            self._scratch = np.empty_like(logits)
        self._scratch[:] = logits
        self._scratch[self._ids[: len(self._index)]] = -np.inf
        return self._scratch


def _highest(row: Logits, ids: NDArray[np.int64] | None, values: NDArray[np.float64] | None) -> int:
    at = int(row.argmax())  # the first of equals; of a row with NaN, the first NaN
    top = float(row[at])
    if ids is not None and values is not None:
        other = float(values.max())
        if other >= top or np.isnan(other):
            lowest = int(ids[values == other].min(initial=len(row)))
            at = min(at, lowest) if other == top else lowest
            top = other
    _check_finite(top)
    return at


def _best(
    row: Logits, ids: NDArray[np.int64] | None, values: NDArray[np.float64] | None, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The `count` highest logits of the row and the changed tokens together, best first, equals by lowest id."""
    bound = _lower_bound(row, count)
    found = np.flatnonzero(row >= bound) if bound > -np.inf else np.flatnonzero(row > bound)
    logits = row[found].astype(np.float64)
    if ids is not None and values is not None:
        found, logits = np.concatenate([found, ids]), np.concatenate([logits, values])
    order = np.lexsort((found, -logits))[:count]
    found, logits = found[order], logits[order]
    # -NaN sorts last, so a NaN among the changed tokens is looked for, not met; those of the row
    # showed in the bound.
    if values is not None and np.isnan(values).any():
        _check_finite(float("nan"))
    _check_finite(float(logits[0]) if len(logits) else -np.inf)
    return found, logits


def _best_permitted(
    row: Logits,
    ids: NDArray[np.int64] | None,
    values: NDArray[np.float64] | None,
    count: int,
    permits: Permits,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """As `_best`, of the permitted tokens alone. Asks for the likeliest few first: a grammar that permits most tokens
    (inside a string) is slow to ask for all of them, 60 ms for 49,152."""
    for few in (count, 2 * count + 64):
        found, logits = _best(row, ids, values, few)
        keep = permits(found)
        if keep.sum() >= count:
            return found[keep][:count], logits[keep][:count]
    allowed = permits(np.arange(len(row)))
    row = np.where(allowed, row, np.float32(-np.inf))
    if ids is not None and values is not None:
        values = np.where(allowed[ids], values, -np.inf)
    if not (np.isfinite(row).any() or (values is not None and np.isfinite(values).any())):
        raise EngineFailed(
            "the grammar permits no token that the model could say here.", next_step="Loosen the grammar or schema."
        )
    found, logits = _best(row, ids, values, count)
    keep = logits > -np.inf
    return found[keep], logits[keep]


def _lower_bound(row: Logits, count: int) -> np.float32:
    """A value that at least `count` of the row reach, and few more do."""
    groups = len(row) // _GROUPS
    if groups < 2:
        maxima = row
    else:
        body = row[: groups * _GROUPS].reshape(groups, _GROUPS).max(axis=0)
        maxima = np.concatenate([body, row[groups * _GROUPS :]])
    # NaN is the largest in numpy's order and spreads through max: one look at the top finds it.
    if np.isnan(maxima.max(initial=-np.inf)):
        _check_finite(float("nan"))
    if len(maxima) <= count:
        return np.float32(-np.inf)
    return np.float32(np.partition(maxima, len(maxima) - count)[len(maxima) - count])


def _check_finite(top: float) -> None:
    if not np.isfinite(top):
        raise EngineFailed(
            "the engine's logits are not numbers.", next_step="Check the model file; if it is whole, report this."
        )
