"""Which prompts the lanes of a batch still hold, and where a new job fits best among them.

Lives here: the rules of reuse, as pure decisions over token ids. Must not know: llama.cpp, jobs, time.

Only what was prefilled **as prompt** may serve another job, and only one of the same scope (measured: keys and values
made by decoding gave other logits in 20 of 20 cases). A prompt is whole blocks of 64 tokens and a tail of 1 to 63, if
any. Blocks serve all prompts that begin with them. A tail's rows have the bits of single steps, so as many of them as
two prompts share serve the other too, if it has as many whole blocks (397 of 397 equal). At least one row is always
computed, because its logits are. A lane keeps its prompt after its job has ended, until another job needs the lane: the
least recently used goes first, so that reuse takes no memory of its own.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from inference.scheduler import CHUNK

NO_SCOPE: Final = b""


COPY_WORTH: Final = 16
"""Tokens that are worth a copy, which takes 3 ms in a lane of 2,048 tokens, as 6 rows do."""
_MOVE_WORTH: Final = 4
"""Times as many are worth a move: nobody may ever ask for them again."""


@dataclass(slots=True)
class _Lane:
    """`filled` prompt rows are there; they may be shared within `scope`."""

    scope: bytes = NO_SCOPE
    prompt: Sequence[int] = ()
    filled: int = 0
    used: int = 0
    busy: bool = False


class Place(NamedTuple):
    """A lane to take, how many of the prompt's tokens it holds already, and the lane to which all that it holds is to
    be copied before; -1 if to none."""

    lane: int
    filled: int
    moved: int = -1


class Prefixes:
    """What every lane holds. Tokens are compared themselves, not their hashes.

    `tails`: whether a tail's rows have the bits of single steps; `copy_worth`: so many tokens are worth a copy.
    """

    def __init__(self, lanes: int, *, tails: bool = True, copy_worth: int = COPY_WORTH) -> None:
        self._tails = tails
        self._copy_worth = copy_worth
        self._lanes = [_Lane() for _ in range(lanes)]
        self._clock = 0

    def place(self, free: Sequence[int], scope: bytes, prompt: Sequence[int]) -> Place:
        """Where a job sits down. A lane whose prompt goes on in this one is taken as it is. Otherwise the prompt whose
        loss hurts least is lost: none if a lane is empty, then the least recently used; of two that hold the beginning,
        the other, since a copy (3 ms) loses nothing.

        Neighbours decode cheapest (4 rows side by side in half the time of 4 scattered ones), so it is a lane that
        widens the span of the busy ones least; what that lane holds moves to the lane of what is lost.
        """
        found = {lane: self._match(lane, scope, prompt, least=1) for lane in free}
        near = self._near(free)
        best = self.best(scope, prompt)[1]
        for lane in near:
            if found[lane] >= max(best, 1) and self._goes_on(self._lanes[lane], prompt, found[lane]):
                return Place(lane, found[lane])

        def loss(lane: int) -> tuple[bool, bool, int, int]:
            return self._kept(self._lanes[lane]) > 0, found[lane] > 0, self._lanes[lane].used, lane

        lane, lost = min(near, key=loss), min(free, key=loss)
        if lane == lost or self._kept(self._lanes[lane]) < _MOVE_WORTH * self._copy_worth:
            return Place(lane, found[lane])
        self._lanes[lost] = self._lanes[lane]
        return Place(lane, found[lane], moved=lost)

    def best(self, scope: bytes, prompt: Sequence[int]) -> tuple[int, int]:
        """The lane that holds most of a prompt's beginning, and how many tokens; (-1, 0) if none holds enough."""
        least = self._copy_worth
        matches = [(self._match(lane, scope, prompt, least=least), -lane) for lane in range(len(self._lanes))]
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
            shared = self._shared(other.prompt, len(other.prompt), mine.prompt, least=self._copy_worth)
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
        held.busy, held.used, held.filled = False, self._clock, self._kept(held)
        if not held.filled:
            self._lanes[lane] = _Lane()
        return held.filled

    @property
    def held(self) -> int:
        """Tokens kept for others in lanes where no job sits."""
        return sum(lane.filled for lane in self._lanes if not lane.busy)

    def _near(self, free: Sequence[int]) -> list[int]:
        """The free lanes that make a decode call of the busy ones widest by least; calls are padded to fours."""
        busy = [at for at, lane in enumerate(self._lanes) if lane.busy]
        width = {lane: -(-(max(lane, *busy) - min(lane, *busy) + 1) // 4) if busy else 0 for lane in free}
        return [lane for lane in free if width[lane] == min(width.values())]

    def _goes_on(self, held: _Lane, prompt: Sequence[int], found: int) -> bool:
        """Whether a lane that holds `found` tokens of `prompt` loses nothing worth keeping to it."""
        return self._kept(held) <= found or _common(held.prompt, prompt) == len(held.prompt)

    def _kept(self, held: _Lane) -> int:
        """How many of its rows may serve another."""
        if not held.scope:
            return 0
        whole = _whole(held.filled)
        return held.filled if self._tails and held.filled - whole >= self._copy_worth else whole

    def _match(self, lane: int, scope: bytes, prompt: Sequence[int], *, least: int) -> int:
        held = self._lanes[lane]
        return self._shared(held.prompt, held.filled, prompt, least=least) if scope and held.scope == scope else 0

    def _shared(self, held: Sequence[int], filled: int, prompt: Sequence[int], *, least: int) -> int:
        """How many tokens of `prompt` may come from a lane that holds the first `filled` rows of `held`; of the tail
        none or at `least` so many."""
        common = min(_common(held, prompt), filled, len(prompt) - 1)
        whole = _whole(common)
        alike = self._tails and len(held) // CHUNK == len(prompt) // CHUNK == whole // CHUNK
        return common if alike and common - whole >= least else whole


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
    """Tokens with which both begin."""
    start = 0
    while one[start : start + CHUNK] == other[start : start + CHUNK] and start < len(one):
        start += CHUNK
    pairs = zip(one[start : start + CHUNK], other[start : start + CHUNK], strict=False)
    return start + next(
        (at for at, (a, b) in enumerate(pairs) if a != b), min(CHUNK, len(one) - start, len(other) - start)
    )
