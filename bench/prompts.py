"""Prompts that nobody was asked before: no cache, ours or a rival's, knows more of them than their common beginning."""

from __future__ import annotations

from collections.abc import Iterator

_SUBJECTS = "dog cat ship river robot king tree star city book horse moon train garden bridge clock"
_SOME_KINDS = "big small old new red blue green white black dark cold warm"
_MORE_KINDS = "sad happy lost brave quiet loud poor rich slow fast soft hard"
KINDS = tuple(f"{_SOME_KINDS} {_MORE_KINDS}".split())
MOST = 16
"""Prompts at once."""


def fresh_prompts() -> Iterator[list[str]]:
    """24 times 16 prompts of 18 tokens or so, as the default model's chat template puts them."""
    for kind in KINDS:
        yield [
            f"<|im_start|>user\nWrite a short story about a {kind} {subject}.<|im_end|>\n<|im_start|>assistant\n"
            for subject in _SUBJECTS.split()
        ]
