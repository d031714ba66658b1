"""espeak-ng, the library, through ctypes: text into 16-bit mono PCM. Runs in a fork only (see `forked`).

Lives here: its C interface. It keeps noise and phases from one text to the next and cannot be started twice, so each
text gets a fresh one: 10 to 30 ms. Source: espeak-ng/speak_lib.h of espeak-ng 1.51.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

from inference.work.forked import Sink
from market.errors import NodeMisconfigured

_LIBRARY: Final = "libespeak-ng.so.1"
_SYNCHRONOUS: Final = 2  # espeak_AUDIO_OUTPUT: audio comes by callback before espeak_Synth returns
_DO_NOT_EXIT: Final = 0x8000  # espeakINITIALIZE_DONT_EXIT
_UTF8, _END_PAUSE = 1, 0x1000  # no espeakSSML, no espeakPHONEMES: a text is text
_RATE_PARAMETER: Final = 1
_WORDS_PER_MINUTE: Final = 175
_BUFFER_MS: Final = 200
_CALLBACK: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    def __init__(self, rate: int) -> None:
        """Raises NodeMisconfigured if it is not installed."""
        self._rate = rate
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError:
            raise NodeMisconfigured(
                "this voice needs the library espeak-ng.", next_step="Install it: apt-get install espeak-ng."
            ) from None
        self._library.espeak_Info.restype = ctypes.c_char_p
        version = self._library.espeak_Info(None).decode("ascii", "replace").split(" ")[0]
        self.engine = f"espeak-ng/{version}"

    def prepare(self, texts: Sequence[str]) -> list[str]:
        return list(texts)

    def speak(self, voice: str, speed: float, texts: Sequence[str], sink: Sink) -> None:
        """Raises OSError if the library or the voice does not come up."""
        library, progress = self._library, 0

        def on_sound(samples: Any, count: int, _events: Any) -> int:
            if count > 0:
                try:
                    sink.put(ctypes.string_at(samples, 2 * count), progress)
                except OSError:
                    return 1  # nobody listens: stop
            return 0

        callback = _CALLBACK(on_sound)
        if library.espeak_Initialize(_SYNCHRONOUS, _BUFFER_MS, None, _DO_NOT_EXIT) != self._rate:
            raise OSError("no voices, or of another rate")
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.encode()):
            raise OSError("no such voice")
        library.espeak_SetParameter(_RATE_PARAMETER, round(_WORDS_PER_MINUTE * speed), 0)
        sink.forbid_sockets()  # files stay open to it: a word of another script needs another dictionary
        for at, text in enumerate(texts):
            progress = at * 100 // len(texts)
            self._synthesise(text)

    def _synthesise(self, text: str) -> None:
        data = text.encode() + b"\0"
        if self._library.espeak_Synth(data, len(data), 0, 0, 0, _UTF8 | _END_PAUSE, None, None):
            raise OSError("the text was not spoken")
