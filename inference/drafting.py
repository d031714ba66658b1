"""Guessing the next tokens of a lone stream from what it has said before, so that one call settles several.

Lives here: look-up of the last occurrence of the last three tokens, and whether a guess is worth its rows. Must not
know: logits, sampling, llama.cpp. A guess changes no token: the batch draws each position's token as if there had
been none, and stops where the guess was wrong; up to 63 rows of one sequence in one call give the bits that single
steps give (see `inference.scheduler`).

Prompt look-up decoding: Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding; speculative decoding in
general: https://arxiv.org/abs/2211.17192
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_GRAM: Final = 3
_COSTS: Final = {1: {3: 3.0, 7: 4.2}, 2: {3: 1.8, 7: 2.6}}
"""What a call with so many guesses costs, in calls without: 5.2 ms alone; 4 rows 15.4 with one thread, 9.7 with two;
8 rows 22 and 13. Its kernels want multiples of four."""
_WORTH: Final = 1.15
"""The gain that must be expected: less is lost again in what the estimate gets wrong."""
_HOPE: Final = 0.7
_MEMORY: Final = 0.9
"""How much of what was known of the acceptance rate counts beside a new guess; 10 guesses are remembered."""
_PATIENCE: Final = 0.004
"""How fast hope comes back while no guess is made: 60 chances or so after a bad run."""


class Drafter:
    """One job's guesses. `tokens` is its prompt and what it has generated."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._right, self._guessed = _HOPE, 1.0
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """These came next."""
        for token in tokens:
            if len(self._tokens) >= _GRAM:
                self._after[tuple(self._tokens[-_GRAM:])] = len(self._tokens)
            self._tokens.append(token)

    def draft(self, room: int, *, threads: int) -> list[int]:
        """Tokens that may come next, at most `room`; none if it is not worth the rows with so many threads."""
        at = self._after.get(tuple(self._tokens[-_GRAM:]))
        if at is None:
            return []
        rate = self._right / self._guessed
        costs = _COSTS[min(threads, 2)]
        guesses = max(costs, key=lambda count: _expected(rate, count) / costs[count])
        if _expected(rate, guesses) < _WORTH * costs[guesses]:
            self._right += _PATIENCE * self._guessed
            return []
        return self._tokens[at : at + min(guesses, room)]

    def heard(self, guessed: int, right: int) -> None:
        """Of a draft of `guessed` tokens the first `right` were so. What comes after a wrong one says nothing."""
        self._right = self._right * _MEMORY + right
        self._guessed = self._guessed * _MEMORY + min(guessed, right + 1)


def _expected(rate: float, guesses: int) -> float:
    """Tokens of one call if each guess is right with this probability and the ones before it were."""
    return sum(rate**count for count in range(guesses + 1))
