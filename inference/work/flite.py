"""Flite (Festival Lite), the library, through ctypes: English text into 16-bit mono PCM. Runs in a fork (see `forked`).

Lives here: its C interface, and how text becomes the ASCII that it reads.
Source: flite.h and cst_wave.h of Flite 2.2; cst_voice begins with its name and its features.
"""

from __future__ import annotations

import ctypes
import unicodedata
from collections.abc import Sequence
from typing import Final

from inference.work.forked import Sink
from market.errors import NodeMisconfigured, RequestInvalid

_LIBRARIES: Final = ("libflite.so.1", "libflite_usenglish.so.1", "libflite_cmulex.so.1")
_VOICE: Final = "libflite_cmu_us_{}.so.1"
_PUNCTUATION: Final = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": ", ", "—": ", ", "…": "...", "ß": "ss"}
)


class _Wave(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


class _Voice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p)]


class Flite:
    engine = "flite/2"

    def __init__(self, rate: int, voices: Sequence[str]) -> None:
        """Raises NodeMisconfigured if it, or a voice, is not installed."""
        self._rate = rate
        try:
            self._library = ctypes.CDLL(_LIBRARIES[0], mode=ctypes.RTLD_GLOBAL)
            for name in _LIBRARIES[1:]:
                ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            self._library.flite_init()
            self._voices = {voice: _register(voice) for voice in voices}
        except (OSError, AttributeError):
            raise NodeMisconfigured(
                "this voice needs the library flite.", next_step="Install it: apt-get install flite."
            ) from None
        self._library.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
        self._library.flite_text_to_wave.argtypes = (ctypes.c_char_p, ctypes.POINTER(_Voice))
        self._library.delete_wave.argtypes = (ctypes.POINTER(_Wave),)
        self._library.feat_set_float.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float)

    def prepare(self, texts: Sequence[str]) -> list[str]:
        """As ASCII. Raises RequestInvalid if most of the letters are of another alphabet."""
        plain = [_ascii(text) for text in texts]
        letters = sum(c.isalnum() for text in texts for c in text)
        if 2 * sum(c.isalnum() for text in plain for c in text) < letters:
            raise RequestInvalid("this voice reads English alone.", param="input")
        return [text for text in plain if text.strip()]

    def speak(self, voice: str, speed: float, texts: Sequence[str], sink: Sink) -> None:
        sink.close_the_door()
        speaker = self._voices[voice]
        self._library.feat_set_float(speaker.contents.features, b"duration_stretch", 1 / speed)
        for at, text in enumerate(texts):
            wave = self._library.flite_text_to_wave(text.encode("ascii"), speaker)
            if not wave:
                raise OSError("the text was not spoken")
            sound = wave.contents
            if sound.sample_rate != self._rate or sound.num_channels != 1:
                raise OSError("a voice of another rate")
            sink.put(ctypes.string_at(sound.samples, 2 * sound.num_samples), (at + 1) * 100 // len(texts))
            self._library.delete_wave(wave)


def _register(voice: str) -> ctypes._Pointer[_Voice]:
    register = getattr(ctypes.CDLL(_VOICE.format(voice)), f"register_cmu_us_{voice}")
    register.restype, register.argtypes = ctypes.POINTER(_Voice), (ctypes.c_char_p,)
    speaker: ctypes._Pointer[_Voice] = register(None)
    return speaker


def _ascii(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text.translate(_PUNCTUATION))
    return folded.encode("ascii", "ignore").decode()
