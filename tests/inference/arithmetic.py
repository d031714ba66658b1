"""A context that is only arithmetic: what a batch must do can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inference.batch import Batch, Row, Work
from inference.scheduler import CHUNK
from market.task import Sampling

GREEDY = Sampling(seed=bytes(32), temperature_micro=0)
VOCABULARY = 50
_FED_IN_64 = 7


class ArithmeticContext:
    """The next token is a function of all tokens of the sequence so far, and of how each was fed: in a call of 64 rows,
    or of fewer, which llama.cpp computes to other bits. Checks what llama.cpp would check."""

    replay = 63

    def __init__(self, slots: int, *, threads: int = 1, size: int = 4096) -> None:
        self.threads, self.size = threads, size
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.calls: list[list[Row]] = []
        self.copies: list[tuple[int, int]] = []
        self.poisoned: set[int] = set()

    def decode(self, rows: Sequence[Row]) -> list[np.ndarray]:
        self.calls.append(list(rows))
        found = []
        for row in rows:
            assert row.position == len(self.held[row.slot]) < self.size, "positions follow one another"
            self.held[row.slot].append(row.token + (_FED_IN_64 if len(rows) >= CHUNK else 0))
            if row.wanted:
                logits = np.zeros(VOCABULARY, dtype=np.float32)
                logits[self.next_token(self.held[row.slot])] = np.nan if row.slot in self.poisoned else 1
                found.append(logits)
        return found

    def forget(self, slot: int, start: int) -> None:
        del self.held[slot][start:]

    def copy(self, source: int, slot: int) -> None:
        self.copies.append((source, slot))
        self.held[slot] = list(self.held[source])

    @staticmethod
    def next_token(tokens: Sequence[int]) -> int:
        return (sum((at + 1) * token for at, token in enumerate(tokens)) + len(tokens)) % VOCABULARY


def expected(prompt: Sequence[int], count: int) -> list[int]:
    whole = len(prompt) // CHUNK * CHUNK
    fed = [token + _FED_IN_64 for token in prompt[:whole]] + list(prompt[whole:])
    for _ in range(count):
        fed.append(ArithmeticContext.next_token(fed))
    return fed[len(prompt) :]


def prompt_of(length: int, salt: int = 0) -> list[int]:
    return [(at * 7 + salt) % VOCABULARY for at in range(length)]


def start(batch: Batch, job: int, prompt: Sequence[int], max_tokens: int, **more: object) -> None:
    assert batch.join(job, Work(prompt=prompt, sampling=GREEDY, max_tokens=max_tokens, **more)) is None  # type: ignore[arg-type]


def run(batch: Batch, *, read: bool = True) -> dict[int, list[int]]:
    answers: dict[int, list[int]] = {}
    while batch.can_step:
        for job, token, *_ in batch.step():
            answers.setdefault(job, [])
            if token >= 0:
                answers[job].append(token)
            if read:
                batch.acknowledge(job, len(answers[job]))
    return answers
