"""Which prompts the lanes of a batch still hold, and where a new job fits best among them.

Lives here: the rules of reuse, as pure decisions over token ids. Must not know: llama.cpp, jobs, time.

Only whole blocks of 64 tokens that were prefilled **as prompt** may serve another job, and only one of the
same scope (measured: keys and values made by decoding gave other logits in 20 of 20 cases). At least one row
of a prompt is always computed, because its logits are. A lane keeps its blocks after its job has ended, until
another job needs the lane: the least recently used goes first, so that reuse takes no memory of its own.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from inference.scheduler import CHUNK

NO_SCOPE: Final = b""


@dataclass(slots=True)
class _Lane:
    """`filled` prompt rows are there; the blocks among them may be shared within `scope`."""

    scope: bytes = NO_SCOPE
    prompt: Sequence[int] = ()
    filled: int = 0
    used: int = 0
    busy: bool = False

    @property
    def blocks(self) -> int:
        """Shareable tokens."""
        return _whole(self.filled) if self.scope else 0


@dataclass(slots=True)
class Prefixes:
    """What every lane holds. Tokens are compared themselves, not their hashes."""

    lanes: int
    _lanes: list[_Lane] = field(init=False)
    _clock: int = 0

    def __post_init__(self) -> None:
        self._lanes = [_Lane() for _ in range(self.lanes)]

    def place(self, free: Sequence[int], scope: bytes, prompt: Sequence[int]) -> tuple[int, int]:
        """The free lane to take, and how many of the prompt's tokens it holds already.

        A lane whose blocks are all wanted is taken as it is. Otherwise the lane whose loss hurts least: an empty
        one, the lowest first (neighbours decode cheapest), then the least recently used; of two that hold the
        beginning, the one that does not is taken, since a copy (3 ms) loses nothing.
        """
        found = {lane: self._match(lane, scope, prompt) for lane in free}
        best = self.best(scope, prompt)[1]
        whole = [lane for lane in free if best and found[lane] == best == self._lanes[lane].blocks]
        if whole:
            return whole[0], best
        lane = min(free, key=lambda at: (self._lanes[at].blocks > 0, found[at] > 0, self._lanes[at].used, at))
        return lane, found[lane]

    def best(self, scope: bytes, prompt: Sequence[int]) -> tuple[int, int]:
        """The lane that holds most of a prompt's beginning, and how many tokens; (-1, 0) if none holds a block."""
        matches = [(self._match(lane, scope, prompt), -lane) for lane in range(self.lanes)]
        tokens, lane = max(matches, default=(0, 1))
        return (-lane, tokens) if tokens else (-1, 0)

    def ahead(self, lane: int) -> tuple[int, int]:
        """A busy lane whose prompt begins as this one's does and that is about to fill more of it than `lane` and
        anyone else holds, and how many tokens the two share; (-1, 0) if there is none."""
        mine = self._lanes[lane]
        if not mine.scope:
            return -1, 0
        have = max(mine.filled, self.best(mine.scope, mine.prompt)[1])
        best = (0, 1)
        for at, other in enumerate(self._lanes):
            if at == lane or not other.busy or other.scope != mine.scope:
                continue
            shared = min(_common(other.prompt, mine.prompt), _reusable(mine.prompt), _whole(len(other.prompt)))
            if shared > have and other.filled < shared:
                best = max(best, (shared, -at))
        return (-best[1], best[0]) if best[0] else (-1, 0)

    def begin(self, lane: int, scope: bytes, prompt: Sequence[int], filled: int) -> None:
        """A job sits down; `filled` tokens of its prompt are there already."""
        self._clock += 1
        self._lanes[lane] = _Lane(scope, prompt, filled, self._clock, busy=True)

    def fill(self, lane: int, rows: int) -> None:
        """The lane holds `rows` rows now; those beyond the prompt do not count."""
        held = self._lanes[lane]
        held.filled = min(rows, len(held.prompt))

    def end(self, lane: int) -> int:
        """The job has left: how many rows of the lane to keep."""
        held = self._lanes[lane]
        self._clock += 1
        held.busy, held.used, held.filled = False, self._clock, held.blocks
        if not held.filled:
            self._lanes[lane] = _Lane()
        return held.filled

    @property
    def held(self) -> int:
        """Tokens kept for others in lanes where no job sits."""
        return sum(lane.blocks for lane in self._lanes if not lane.busy)

    def _match(self, lane: int, scope: bytes, prompt: Sequence[int]) -> int:
        held = self._lanes[lane]
        if not scope or held.scope != scope:
            return 0
        return min(_common(held.prompt, prompt), held.blocks, _reusable(prompt))


class KnownBlocks:
    """Which blocks a worker probably still holds, as its node remembers: a hint for where to send a job.

    `limit` blocks at most; the least recently sent is forgotten first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def note(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._limit:
            self._keys.popitem(last=False)

    def count(self, keys: Sequence[bytes]) -> int:
        """How many of a prompt's blocks, from the first, are known."""
        return next((at for at, key in enumerate(keys) if key not in self._keys), len(keys))


def block_keys(scope: bytes, prompt: Sequence[int]) -> tuple[bytes, ...]:
    """A name for each reusable block of a prompt together with all before it; 1.5 us a block."""
    if not scope:
        return ()
    keys, key = [], scope
    for start in range(0, _reusable(prompt), CHUNK):
        key = hashlib.blake2b(key + array("i", prompt[start : start + CHUNK]).tobytes(), digest_size=16).digest()
        keys.append(key)
    return tuple(keys)


def scope_key(scope: str) -> bytes:
    """What a worker is told of a scope: equal or not, and nothing else."""
    return hashlib.blake2b(scope.encode(), digest_size=16).digest() if scope else NO_SCOPE


def _whole(rows: int) -> int:
    return rows // CHUNK * CHUNK


def _reusable(prompt: Sequence[int]) -> int:
    """The last token's row is always computed: its logits are wanted."""
    return _whole(len(prompt) - 1)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens in whole blocks with which both begin."""
    limit = _whole(min(len(one), len(other)))
    start = 0
    while start < limit and one[start : start + CHUNK] == other[start : start + CHUNK]:
        start += CHUNK
    return start
