"""Bytes that say of themselves that they are audio: reading them within their bounds, refusing them in one voice."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

from market.errors import RequestInvalid

RATES: Final = range(1_000, 768_001)
"""Samples a second. Below lies no speech, above no format's field is honest."""
CHANNELS: Final = range(1, 9)


@dataclass(frozen=True, slots=True)
class Length:
    """`samples` for each channel, at `rate` a second."""

    samples: int
    rate: int


@dataclass(frozen=True, slots=True)
class AudioBytes:
    data: bytes

    def unpack(self, layout: struct.Struct, at: int, what: str) -> tuple[Any, ...]:
        """Raises RequestInvalid if the bytes end before `what` does."""
        if at + layout.size > len(self.data):
            raise self.cut_off(what)
        return layout.unpack_from(self.data, at)

    def cut_off(self, what: str) -> RequestInvalid:
        return self.refused(f"the file ends within {what}", next_step="Send the whole file.")

    def refused(self, cause: str, *, next_step: str = "") -> RequestInvalid:
        return RequestInvalid(
            f"the audio cannot be read: {cause}.",
            next_step=next_step or "Convert it anew, for example with ffmpeg.",
            param="file",
        )

    def check(self, *, rate: int, channels: int) -> None:
        if rate not in RATES:
            raise self.refused(f"{rate} samples a second")
        if channels not in CHANNELS:
            raise self.refused(f"{channels} channels")
