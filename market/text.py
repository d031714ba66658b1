"""From token bytes to text that may be shown: whole UTF-8 characters, cut at the first stop string.

Both sides run it: the seller to know when to stop, the buyer to know what to show. Pure.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextAssembler:
    """Feeds on the bytes of tokens; holds back what may still become part of a character or a stop string."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        """The text that became safe to show; nothing more after a stop string."""
        return self._advance(self._decode(data))

    def finish(self) -> str:
        """What was held back, at the end of the answer; bytes that never became a character are U+FFFD."""
        text = self._advance(self._decode(b"", True))
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _advance(self, text: str) -> str:
        if self.stopped:
            return ""
        held = self._held + text
        # The stop string that is complete first wins, or the cut would depend on how the bytes were split:
        # of "abcd" and "bc", a seller that sees "abc" before the "d" must stop where a buyer does who sees both.
        found = min(((at + len(stop), at) for stop in self._stop if (at := held.find(stop)) >= 0), default=None)
        if found is not None:
            self.stopped, self._held = True, ""
            return held[: found[1]]
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that is a beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
