"""How much input was prepaid today without a token coming back: a cap on what silent providers can take.

Counted in memory: a restart starts a new day.
"""

from __future__ import annotations

from market.errors import InsufficientFunds
from market.money import format_octo
from market.ports import Clock

DAY_MS = 24 * 3600 * 1000


class PrepaidCap:
    def __init__(self, limit: int, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._day = -1
        self._out = 0

    def take(self, amount: int) -> None:
        """Before prepaying. Raises InsufficientFunds over the day's cap."""
        day = self._clock.now_ms() // DAY_MS
        if day != self._day:
            self._day, self._out = day, 0
        if self._out + amount > self._limit:
            raise InsufficientFunds(
                f"{format_octo(self._out)} of input was prepaid today and never answered; the cap is"
                f" {format_octo(self._limit)}.",
                next_step="Wait until tomorrow (UTC), or raise payment.prepaid_per_day.",
            )
        self._out += amount

    def answered(self, amount: int) -> None:
        """The first token came: the provider earned it."""
        self._out = max(0, self._out - amount)
