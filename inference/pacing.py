"""How many threads a call should have now: all of them on free cores, one where others want the cores too.

Lives here: the decision, from how long calls of a shape take. Must not know: llama.cpp, clocks.

Threads meet some hundred times in a call, and each waits for the last one. Where a core is shared, the last one may not
even be running: beside a dozen busy processes a call of eight rows took 200 ms with two threads and 110 with one, 22 of
which it ran. The number of threads changes no bit (lone rows, which it would change, always go through one), so it may
change from call to call.

The measure is the work done in a second, in seconds of one thread's: a call with one thread tells what its shape costs,
by the time that it ran, which no company changes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final

_FREE: Final = 0.65
"""All threads together that do so much of what they could at best have the cores to themselves; nothing else need be
tried. Two were seen to do 0.8 to 0.86."""
_MEMORY_S: Final = 0.05
"""Of what was so long ago a third still counts: three calls on free cores, less than one where threads wait."""
_FIRST_TRIAL_S: Final = 0.5
_LAST_TRIAL_S: Final = 8.0


class Pace:
    """Begins with all `threads`. Times are seconds of any clock that does not stop."""

    def __init__(self, threads: int) -> None:
        self._all = threads
        self._cost_s: dict[Hashable, float] = {}
        self._speed = {1: 1.0, threads: float(threads)}
        self._interval_s = _FIRST_TRIAL_S
        self._tried_at = 0.0
        self._last = threads
        self._best = threads
        self.threads = threads

    def threads_for(self, shape: Hashable) -> int:
        """Of a call of this shape; the first of its kind goes through one."""
        return self.threads if shape in self._cost_s else 1

    def heard(self, shape: Hashable, threads: int, *, began: float, wall_s: float, ran_s: float) -> None:
        """A call with so many threads took `wall_s`, of which its own thread ran `ran_s`."""
        if self._all == 1 or wall_s <= 0:
            return
        if threads == 1:
            known = shape in self._cost_s
            self._cost_s[shape] = ran_s
            if not known and self.threads > 1:
                return
        # The first after others says how it is now; what was known of its kind is old.
        fades = math.exp(-wall_s / _MEMORY_S) if threads == self._last else 0.0
        self._last = threads
        speed = self._cost_s[shape] / wall_s
        self._speed[threads] = fades * self._speed[threads] + (1 - fades) * speed
        best = self._all if self._speed[self._all] >= self._speed[1] else 1
        if best != self._best:
            self._best, self._interval_s, self._tried_at = best, _FIRST_TRIAL_S, began
        self.threads = best
        if self._speed[self._all] < _FREE * self._all and began - self._tried_at >= self._interval_s:
            self._interval_s = min(2 * self._interval_s, _LAST_TRIAL_S)
            self._tried_at = began
            self.threads = self._all if best == 1 else 1
