"""How long to wait for a child process: before it is started again, and until it has loaded its model.

Pure numbers; must not know processes or clocks.
"""

from __future__ import annotations

from typing import Final

FIRST_LOAD_S: Final = 300.0
"""A first load may come from a slow disk."""
_FACTOR: Final = 10.0
_DOUBLINGS: Final = 16
"""Then every limit is reached; without a bound a child that fails for hours would end in an OverflowError."""


def pause_s(failures: int, *, first_s: float, limit_s: float) -> float:
    """Before the next start, after so many in a row that failed."""
    return min(limit_s, first_s * 2.0 ** min(failures, _DOUBLINGS))


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
