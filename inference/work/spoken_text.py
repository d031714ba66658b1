"""Text on its way to a synthesiser: what has no sound is taken out, what is long is cut between sentences.

A synthesiser is an old C library, and its text a stranger's: it gets no control characters and no endless sentence.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from market.errors import RequestInvalid

SENTENCES_LIMIT: Final = 300
"""Characters handed over at once: some 20 s of speech, spoken in 0.3 s by the slowest library."""
_JOINERS: Final = "\u200c\u200d"
"""Letters of Persian and Indic scripts need them, and some emoji."""
_SOUNDLESS: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))
_END: Final = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n+")


def clean(text: str) -> str:
    """Raises RequestInvalid if nothing is left."""
    kept = "".join(
        " " if unicodedata.category(c) in _SOUNDLESS and c not in _JOINERS and c != "\n" else c for c in text
    )
    if not kept.strip(_JOINERS + " \n") or kept.isspace():
        raise RequestInvalid("the text holds nothing that can be spoken.", param="input")
    return kept


def cut(text: str, limit: int = SENTENCES_LIMIT) -> list[str]:
    """Whole sentences, as many together as fit into `limit` characters; one that does not fit is cut at a space."""
    parts: list[str] = []
    for sentence in _END.split(text):
        rest = sentence.strip()
        while len(rest) > limit:
            at = rest.rfind(" ", limit // 2, limit)
            at = at if at > 0 else limit
            parts.append(rest[:at].strip())
            rest = rest[at:].strip()
        if rest and parts and len(parts[-1]) + 1 + len(rest) <= limit:
            parts[-1] += " " + rest
        elif rest:
            parts.append(rest)
    return parts
