"""How long to wait for a child process: before it is started again, until it has loaded its model, until it speaks.

Pure numbers; must not know processes or clocks.
"""

from __future__ import annotations

from typing import Final

FIRST_LOAD_S: Final = 300.0
"""A first load may come from a slow disk."""
_FACTOR: Final = 10.0
_SILENCE_S: Final = (8.0, 300.0)
"""At least: buyers in real time give up after 15 s, and another worker needs some of them; a busy machine stops a
process for a second or two. At most: what is slower than that serves nobody."""
_CHUNKS: Final = 30.0
"""Behind a long prompt a chunk takes some times what it takes alone, with other programs on the cores again."""
_DOUBLINGS: Final = 16
"""Then every limit is reached; without a bound a child that fails for hours would end in an OverflowError."""


def pause_s(failures: int, *, first_s: float, limit_s: float) -> float:
    """Before the next start, after so many in a row that failed."""
    return min(limit_s, first_s * 2.0 ** min(failures, _DOUBLINGS))


def silence_limit_s(chunk_s: float) -> float:
    """How long a busy worker of a language model may be silent, that took `chunk_s` for its first 64 rows: it speaks
    between two calls, and no call has more."""
    least_s, most_s = _SILENCE_S
    return min(most_s, max(least_s, _CHUNKS * chunk_s))


class LoadPatience:
    """A child that is started again may take ten times as long as the slowest load so far, and twice that after each
    failure: one that hangs while it loads is not waited for as long as a first load. Never less than `least_s`."""

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self._slowest_s = 0.0

    def loaded(self, took_s: float) -> None:
        self._slowest_s = max(self._slowest_s, took_s)

    def limit_s(self, failures: int) -> float:
        if not self._slowest_s:
            return FIRST_LOAD_S
        return pause_s(failures, first_s=max(self._least_s, _FACTOR * self._slowest_s), limit_s=FIRST_LOAD_S)
