"""What speech counts for, the same for buyer and seller: 10 ms of audio, a character, a byte of text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final

from inference.work.audio import read_audio
from inference.work.spoken_text import clean
from inference.work.voice import VoiceConfig
from market.errors import EncodingInvalid, RequestInvalid
from market.task import MICRO
from market.values import decode
from market.work import PIECE_LIMIT_BYTES, Segment, SpeakRequest, TranscribeRequest, WorkRequest

UNITS_PER_S: Final = 100
UNIT_MS: Final = 1000 // UNITS_PER_S
SEGMENT_LIMIT_BYTES: Final = PIECE_LIMIT_BYTES // 16
_TEXT_BYTES_PER_S: Final = 60
"""Fast speech has 25 letters a second, of up to 3 bytes in UTF-8 (but then fewer of them)."""
_TEXT_BYTES_MORE: Final = 2048
"""A model that hears words in noise writes at most 224 tokens, about 1,000 bytes, for the half minute."""
_MORE_UNITS: Final = 300
"""Pauses before, after and between."""


class TranscribeMeter:
    """A unit in is 10 ms of audio, by the audio's own headers; a unit out a UTF-8 byte of text, at least one for a
    segment. The words of a segment are its text once more, and free."""

    def units_in(self, request: WorkRequest, blob: bytes) -> int:
        return -(-_duration_ms(request, blob) // UNIT_MS)

    def units_out_limit(self, request: WorkRequest, blob: bytes) -> int:
        return _duration_ms(request, blob) * _TEXT_BYTES_PER_S // 1000 + _TEXT_BYTES_MORE

    def units_of(self, request: WorkRequest, piece: bytes) -> int:  # noqa: ARG002 - the port's shape
        segment = decode(Segment, piece, limit_bytes=SEGMENT_LIMIT_BYTES)
        if segment.end_ms < segment.start_ms:
            raise EncodingInvalid("a segment ends before it begins.")
        return max(1, len(segment.text.encode()))


class SpeakMeter:
    """A unit in is a character, a unit out 10 ms of 16-bit mono PCM at the voice's rate, rounded up for each piece."""

    def __init__(self, config: VoiceConfig) -> None:
        self._config = config

    @property
    def rate(self) -> int:
        """Samples a second."""
        return self._config.rate

    @property
    def voices(self) -> Sequence[str]:
        return self._config.voices

    @property
    def default_voice(self) -> str:
        return self._config.default

    def units_in(self, request: WorkRequest, blob: bytes) -> int:
        return len(self._checked(request, blob).text)

    def units_out_limit(self, request: WorkRequest, blob: bytes) -> int:
        """Three to four times what prose takes; what is spoken still slower is cut off there."""
        speak = self._checked(request, blob)
        return sum(map(_units_of_character, speak.text)) * MICRO // speak.speed_micro + _MORE_UNITS

    def units_of(self, request: WorkRequest, piece: bytes) -> int:  # noqa: ARG002 - the port's shape
        if not piece or len(piece) % 2 or len(piece) > PIECE_LIMIT_BYTES:
            raise EncodingInvalid(f"{len(piece)} bytes are no 16-bit PCM.")
        return -(-(len(piece) // 2) * UNITS_PER_S // self._config.rate)

    def _checked(self, request: WorkRequest, blob: bytes) -> SpeakRequest:
        if not isinstance(request, SpeakRequest) or blob:
            raise RequestInvalid("this model speaks a text, and nothing else.", param="model")
        self._config.choose(request)
        clean(request.text)
        return request


def _duration_ms(request: WorkRequest, blob: bytes) -> int:
    if not isinstance(request, TranscribeRequest):
        raise RequestInvalid("this model writes down speech, and nothing else.", param="model")
    return read_audio(blob).duration_ms


def _units_of_character(character: str) -> int:
    """10 ms that it may take at normal speed. Measured for the worst of espeak-ng and flite: prose 7, "www" 62,
    digits of a number 72, a sign ("%") 57, an emoji 60, a Chinese character 74, a braille pattern 190."""
    if character.isspace():
        return 10
    if character.isascii():
        return (45 if character.isupper() else 25) if character.isalpha() else 80
    return 25 if unicodedata.category(character) in ("Ll", "Lu", "Mn", "Mc") else 200
