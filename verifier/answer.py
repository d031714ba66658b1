"""Whether an answer, as it was shown, is the text that a transcript commits to.

The transcript hashes the bytes that the tokens stand for, chunk by chunk. What was shown may differ from them in
two honest ways: a stop string was cut off its end, or its last character was cut in the middle and shows as U+FFFD.
Knows hashes and sizes; needs no tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal

from market.values import value

Verdict = Literal["holds", "broken", "unknown"]
_REPLACEMENT = "\ufffd".encode()
_CONTINUATION = range(0x80, 0xC0)


@value
class AnswerMatch:
    verdict: Verdict
    detail: str


def match_answer(
    answer: str, *, stop: Sequence[str], text_sizes: Sequence[int], text_digests: Sequence[bytes]
) -> AnswerMatch:
    """Compare `answer` with the chunks' sizes (bytes) and sha-256 digests.

    `stop` are the stop strings of the request: only they excuse an answer that ends before its transcript.
    """
    data, total, chunks = answer.encode("utf-8", "replace"), sum(text_sizes), len(text_sizes)
    whole = _Cover(data, text_sizes, text_digests)
    if whole.completed_by(b""):
        return AnswerMatch(verdict="holds", detail=f"all {total} bytes of the answer hash to its {chunks} chunks")
    for text in stop:
        if whole.completed_by(text.encode()):
            detail = f"the answer's {len(data)} bytes and the stop string after them hash to its {chunks} chunks"
            return AnswerMatch(verdict="holds", detail=detail)
    if data.endswith(_REPLACEMENT):
        shown = _Cover(data[: -len(_REPLACEMENT)], text_sizes, text_digests)
        if any(shown.completed_by(tail) for tail in _cut_characters(shown.missing)):
            detail = f"all {chunks} chunks hash to the answer, whose last character was cut off after {shown.missing} B"
            return AnswerMatch(verdict="holds", detail=detail)
    equal = f"{whole.covered} of {chunks} chunks are equal"
    if whole.differs:
        hint = " (it shows U+FFFD: bytes that are no text cannot be compared)" if _REPLACEMENT in data else ""
        return AnswerMatch(
            verdict="broken", detail=f"chunk {whole.covered} of the answer is not what was transcribed{hint}; {equal}"
        )
    if len(data) > total:
        return AnswerMatch(verdict="broken", detail=f"the answer has {len(data)} bytes, its transcript {total}")
    covers = (_Cover(data + text.encode(), text_sizes, text_digests) for text in stop)
    if any(not cover.differs and cover.missing >= 0 for cover in covers):
        detail = (
            f"the transcript goes on for {whole.missing} bytes from the stop string; {equal}, and the answer's last "
            f"{len(data) - whole.at} bytes lie in a chunk that was not shown whole, so its hash cannot be compared"
        )
        return AnswerMatch(verdict="unknown", detail=detail)
    detail = f"the answer has {len(data)} bytes, its transcript {total}; {equal}, the rest was not shown"
    if not stop:
        detail += " (if a stop string ended the answer, name it)"
    return AnswerMatch(verdict="broken", detail=detail)


class _Cover:
    """How far `data` covers the chunks: `covered` whole chunks are equal, up to byte `at`; `differs` if the next
    one is whole and unequal; `missing` bytes remain to the end (negative: there are too many)."""

    def __init__(self, data: bytes, sizes: Sequence[int], digests: Sequence[bytes]) -> None:
        self.covered, self.at, self.differs = 0, 0, False
        self.missing = sum(sizes) - len(data)
        for size, digest in zip(sizes, digests, strict=True):
            if self.at + size > len(data):
                break
            if hashlib.sha256(data[self.at : self.at + size]).digest() != digest:
                self.differs = True
                break
            self.covered, self.at = self.covered + 1, self.at + size
        self._held = len(data) - self.at
        self._open = hashlib.sha256(data[self.at :])
        self._rest = list(zip(sizes, digests, strict=True))[self.covered :]

    def completed_by(self, tail: bytes) -> bool:
        """Whether the data and `tail` together are the whole text. Hashes little more than the tail."""
        if self.differs or len(tail) != self.missing:
            return False
        hasher, held, used = self._open.copy(), self._held, 0
        for size, digest in self._rest:
            take = size - held
            hasher.update(tail[used : used + take])
            if hasher.digest() != digest:
                return False
            hasher, held, used = hashlib.sha256(), 0, used + take
        return True


def _cut_characters(size: int) -> Iterator[bytes]:
    """Every beginning of a UTF-8 character that is `size` bytes long and lacks at least one byte: 20,480 at most."""
    first_lead = {1: 0xC2, 2: 0xE0, 3: 0xF0}.get(size)
    if first_lead is not None:
        for lead in range(first_lead, 0xF5):
            for rest in product(_CONTINUATION, repeat=size - 1):
                yield bytes((lead, *rest))
