"""OpenAI's names of voices, for models that have others: a client that only knows `alloy` is heard, too.

Pure. A name that the model has itself is always taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from market.errors import RequestInvalid

DEFAULT = "default"

_LOW, _HIGH, _BRITISH = ("rms",), ("slt",), ("awb", "en-gb-x-rp")
OPENAI_VOICES: Mapping[str, Sequence[str]] = {
    "alloy": (),
    "ash": _LOW,
    "ballad": _BRITISH,
    "cedar": _LOW,
    "coral": _HIGH,
    "echo": _LOW,
    "fable": _BRITISH,
    "marin": _HIGH,
    "nova": _HIGH,
    "onyx": _LOW,
    "sage": _HIGH,
    "shimmer": _HIGH,
    "verse": ("awb", "en-gb-scotland"),
}
"""What each comes closest to, by how OpenAI's voices sound; where a model has none of these, its own default speaks."""


@runtime_checkable
class Voiced(Protocol):
    """A meter of speech that knows how its model sounds: samples a second, names of voices, which one if none is
    named."""

    @property
    def rate(self) -> int: ...

    @property
    def voices(self) -> Sequence[str]: ...

    @property
    def default_voice(self) -> str: ...


def voice_for(asked: str, meter: Voiced) -> str:
    """The voice of the model that speaks when `asked` is asked for. Raises RequestInvalid naming all that there are."""
    if asked in meter.voices:
        return asked
    if asked in ("", DEFAULT):
        return meter.default_voice
    if asked in OPENAI_VOICES:
        return next((near for near in OPENAI_VOICES[asked] if near in meter.voices), meter.default_voice)
    raise RequestInvalid(
        f"voice: this model has no voice {asked!r}.",
        next_step=f"It has {', '.join(meter.voices)}; OpenAI's names ({', '.join(OPENAI_VOICES)}) stand for the nearest"
        f" of them, and {DEFAULT} for {meter.default_voice}.",
        param="voice",
    )
