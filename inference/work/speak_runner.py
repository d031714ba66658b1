"""Speech synthesis inside the child: a voice.json and a library of the operating system become pieces of PCM.

Each text runs in a fork of its own: a text that crashes the library costs its own task alone, and the same text sounds
the same to the byte. Pieces are half a second, sent as they are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from inference.work.espeak import Espeak
from inference.work.flite import Flite
from inference.work.forked import ForkFailed, Forks, Sink
from inference.work.runner import Desk, Task
from inference.work.speech_meters import UNITS_PER_S
from inference.work.spoken_text import clean, cut
from inference.work.voice import VoiceConfig, load_voice_config
from market.errors import EngineFailed, ModelFileInvalid, OctoError, RequestInvalid
from market.task import MICRO
from market.work import SpeakRequest

_TEXT_LIMIT: Final = 8192
_PIECES_PER_S: Final = 2


class Library(Protocol):
    engine: str

    def prepare(self, texts: Sequence[str]) -> list[str]:
        """What it can read of them. Raises RequestInvalid."""

    def speak(self, voice: str, speed: float, texts: Sequence[str], sink: Sink) -> None:
        """In a fork: put PCM into `sink`, whose door it closes before it looks at a text."""


class SpeakRunner:
    context = _TEXT_LIMIT

    def __init__(self, config: VoiceConfig, library: Library) -> None:
        self.engine = library.engine
        self._config = config
        self._library = library
        self._forks = Forks()

    def warm_up(self) -> None:
        """Speak a word in the default voice. Raises ModelFileInvalid if that fails."""
        try:
            with self._forks.run(lambda sink: self._library.speak(self._config.default, 1.0, ["one"], sink)) as chunks:
                sound = b"".join(chunk.data for chunk in chunks if chunk)
        except ForkFailed as failed:
            raise ModelFileInvalid(f"the library {self._config.library} does not come up ({failed}).") from None
        if not sound:
            raise ModelFileInvalid(f"the voice {self._config.default} makes no sound.")

    def run(self, desk: Desk) -> None:
        while tasks := desk.take(1):
            task = tasks[0]
            try:
                self._speak(desk, task)
            except OctoError as error:
                desk.refuse(task, error)

    def _speak(self, desk: Desk, task: Task) -> None:
        request = task.request
        if not isinstance(request, SpeakRequest):
            raise RequestInvalid("this model speaks a text, and nothing else.")
        voice = self._config.choose(request)
        texts = self._library.prepare(cut(clean(request.text)))
        sound = _Sound(self._config.rate, task.max_units)
        try:
            with self._forks.run(
                lambda sink: self._library.speak(voice, request.speed_micro / MICRO, texts, sink)
            ) as chunks:
                for chunk in chunks:
                    desk.beat()
                    if task.cancelled:
                        return
                    if chunk is None:
                        continue
                    if pieces := sound.pieces(chunk.data):
                        desk.made(task, pieces, progress=chunk.progress)
                    if sound.is_full:
                        break
        except ForkFailed as failed:
            raise EngineFailed(f"the library failed on the text ({failed}).") from None
        last = sound.rest()
        if not sound.samples:
            raise RequestInvalid("the text holds nothing that this voice can speak.", param="input")
        desk.made(task, last, progress=100, finish="length" if sound.is_full else "stop")


class _Sound:
    """Samples as they come, pieces as they become whole; no more than was agreed."""

    def __init__(self, rate: int, max_units: int) -> None:
        self._size = 2 * rate // _PIECES_PER_S
        self._left = 2 * (max_units * rate // UNITS_PER_S)
        self._buffer = bytearray()
        self.samples = 0
        self.is_full = False

    def pieces(self, data: bytes) -> list[bytes]:
        self.is_full = len(data) > self._left
        taken = data[: self._left]
        self._left -= len(taken)
        self.samples += len(taken) // 2
        self._buffer += taken
        whole = len(self._buffer) // self._size * self._size
        pieces = [bytes(self._buffer[at : at + self._size]) for at in range(0, whole, self._size)]
        del self._buffer[:whole]
        return pieces

    def rest(self) -> list[bytes]:
        return [bytes(self._buffer)] if self._buffer else []


def open_runner(folder: Path, options: Mapping[str, Any], threads: int) -> SpeakRunner:  # noqa: ARG001 - the shape of all
    """`folder` holds voice.json. Raises ModelFileInvalid, NodeMisconfigured."""
    config = load_voice_config(folder)
    library: Library = Espeak(config.rate) if config.library == "espeak-ng" else Flite(config.rate, config.voices)
    runner = SpeakRunner(config, library)
    runner.warm_up()
    return runner
