"""What a buyer remembers of answers that may be told again: the salt of its keys, and who gave which answer.

A provider that gave an answer is asked first the next time, for it alone can tell it again. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from market.asking import Ask
from market.caching import CacheKey, Caching, cache_key
from market.reception import Outcome
from market.routing import Choice

KEYS_LIMIT = 4096


@dataclass(slots=True)
class AnswerCounts:
    """Of answers bought since the start: how many might have been told again, how many were."""

    asked: int = 0
    told_again: int = 0


class AnswerMemory:
    def __init__(self, salt: Callable[[], bytes] | None) -> None:
        self._salt = salt
        self._gave: OrderedDict[CacheKey, str] = OrderedDict()
        self.counts = AnswerCounts()

    def may_ask(self, wanted: Caching) -> bool:
        return self._salt is not None and wanted is not Caching.OFF

    def key(self, content: bytes, wanted: Caching, whose: str) -> CacheKey | None:
        if self._salt is None:
            return None
        return cache_key(content, salt=self._salt(), shared=wanted is Caching.SHARED, whose=whose)

    def prefer(self, ask: Ask, choice: Choice) -> Choice:
        """The same choice, with the provider first that gave this very answer, if telling it again is cheaper."""
        gave = self._gave.get(ask.cache) if ask.cache is not None else None
        known = next((c for c in choice.ranked if c.peer == gave and c.model.keeps_answers), None)
        if known is None or known.max_cost * known.model.cached_percent > choice.ranked[0].max_cost * 100:
            return choice
        others = tuple(candidate for candidate in choice.ranked if candidate is not known)
        return Choice(ranked=(known, *others), refused=choice.refused, because="gave this answer before")

    def note(self, ask: Ask, outcome: Outcome) -> None:
        if ask.cache is None:
            return
        self.counts.asked += 1
        self.counts.told_again += outcome.cached != ""
        self._gave[ask.cache] = outcome.provider
        self._gave.move_to_end(ask.cache)
        while len(self._gave) > KEYS_LIMIT:
            self._gave.popitem(last=False)

    def told_us(self) -> set[str]:
        """Everyone who may still keep an answer of ours."""
        return set(self._gave.values())

    def clear(self) -> None:
        self._gave.clear()
