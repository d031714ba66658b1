"""A voice for sale: which library of the operating system speaks, in which voices, how fine.

Lives here: the one small JSON file of such a model's manifest (`voice.json`, role `config`), which buyers' meters and
the seller's child both read. There are no weights: they come with the system's package. Knows no library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from market.errors import EncodingInvalid, ModelFileInvalid, RequestInvalid
from market.task import MICRO
from market.values import from_plain, to_plain, value
from market.work import SpeakRequest

VOICE_FILE: Final = "voice.json"
LIMIT_BYTES: Final = 64 * 1024

VoiceName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


@value
class VoiceConfig:
    """`rate` is samples a second of the 16-bit mono PCM that comes; `slowest_micro` the lowest speed, millionths of
    normal."""

    kind: Literal["octo/voice/1"] = "octo/voice/1"
    library: Literal["espeak-ng", "flite"]
    rate: Annotated[int, Field(ge=8_000, le=48_000, multiple_of=50)]
    default: VoiceName
    voices: Annotated[tuple[VoiceName, ...], Field(min_length=1, max_length=512)]
    slowest_micro: Annotated[int, Field(ge=MICRO // 4, le=MICRO)] = MICRO // 4

    def choose(self, request: SpeakRequest) -> str:
        """The voice that is asked for. Raises RequestInvalid for one that is not there, or for too slow."""
        voice = request.voice or self.default
        if voice not in self.voices:
            raise RequestInvalid(
                f"this model has no voice {voice!r}.",
                next_step=f"It has {', '.join(self.voices[:12])}{' and others' if len(self.voices) > 12 else ''}.",
                param="voice",
            )
        if request.speed_micro < self.slowest_micro:
            raise RequestInvalid(
                f"this model speaks no slower than {self.slowest_micro / MICRO:g} of its normal speed.", param="speed"
            )
        return voice


def read_voice_config(data: bytes) -> VoiceConfig:
    """Raises EncodingInvalid."""
    if len(data) > LIMIT_BYTES:
        raise EncodingInvalid(f"{VOICE_FILE} has {len(data)} bytes; {LIMIT_BYTES} is the limit.")
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        raise EncodingInvalid(f"{VOICE_FILE} is no JSON.") from None
    config = from_plain(VoiceConfig, plain)
    if config.default not in config.voices:
        raise EncodingInvalid(f"{VOICE_FILE}: the default voice is none of the voices.")
    return config


def load_voice_config(folder: Path) -> VoiceConfig:
    """From the folder of a model. Blocking. Raises ModelFileInvalid."""
    try:
        with (folder / VOICE_FILE).open("rb") as file:
            return read_voice_config(file.read(LIMIT_BYTES + 1))
    except OSError:
        raise ModelFileInvalid(f"the model has no {VOICE_FILE}.") from None
    except EncodingInvalid as error:
        raise ModelFileInvalid(error.message) from None


def voice_config_json(config: VoiceConfig) -> bytes:
    return json.dumps(to_plain(VoiceConfig, config), indent=1).encode() + b"\n"


_LANGUAGES: Final = (
    "en-us en en-gb-scotland en-gb-x-rp af am ar az be bg bn bs ca cs cy da de el eo es es-419 et eu fa fi"
    " fr fr-be fr-ch ga gd grc gu he hi hr hu hy id is it ka kk kn ko ky la lb lt lv mi mk ml mr ms mt my nb"
    " ne nl pa pl pt pt-br ro ru si sk sl sq sr sv sw ta te th tk tr tt ug uk ur uz vi yue"
)

ESPEAK: Final = VoiceConfig(
    library="espeak-ng",
    rate=22_050,
    default="en-us",
    voices=tuple(_LANGUAGES.split()),
    slowest_micro=460_000,  # 80 of 175 words a minute
)
"""Debian's package espeak-ng: 88 voices, understood and plainly a machine's. Its Mandarin and Japanese are left out:
most of their characters it cannot read."""

FLITE: Final = VoiceConfig(library="flite", rate=16_000, default="slt", voices=("slt", "rms", "awb"))
"""Debian's package flite: English only, three voices made from recordings of speakers (CMU Arctic)."""
