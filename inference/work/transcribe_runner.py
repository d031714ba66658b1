"""Speech recognition inside the child: a Whisper model in CTranslate2's format, by faster-whisper.

Audio is decoded and heard some minutes at a time: four hours take no more memory than five minutes, words come as they
are heard, and a file that decodes to more than its headers say is refused where it passes that mark. Silence is found
by silero's detector (its weights come with faster-whisper) and not transcribed: Whisper hears words in it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inference.work.audio import DURATION_LIMIT_MS, AudioFacts, read_audio
from inference.work.runner import Desk, Task
from inference.work.speech_meters import UNIT_MS
from inference.work.wav import wav_header
from inference.work.ways import ctranslate2_ways, open_first
from market.errors import ModelFileInvalid, NodeMisconfigured, OctoError, RequestInvalid
from market.task import MICRO
from market.values import encode
from market.work import Segment, SpokenWord, TranscribeRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FILES: Final = ("model.bin", "config.json", "tokenizer.json")
"""Without its tokenizer the library would ask a hub for one."""
_RATE: Final = 16_000
_WINDOW_S: Final = 300
_RETRIES: Final = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Temperatures that Whisper tries when a reading repeats itself or is unlikely."""
_SEED: Final = 1
_TEXT_LIMIT, _WORD_LIMIT, _WORDS_LIMIT = 16_384, 256, 4096


class TranscribeRunner:
    context = DURATION_LIMIT_MS // UNIT_MS

    def __init__(self, model: Any, *, engine: str, beam: int) -> None:
        self.engine = engine
        self._model = model
        self._beam = beam
        self._languages = frozenset(model.supported_languages)

    def run(self, desk: Desk) -> None:
        while tasks := desk.take(1):
            try:
                self._transcribe(desk, tasks[0])
            except OctoError as error:
                desk.refuse(tasks[0], error)

    def warm_up(self) -> None:
        """Hear five words, given to it, in a second of noise: what libraries load late, they load now."""
        import numpy as np

        from inference.work.decoding import Decoder

        samples = np.random.default_rng(0).normal(0, 3000, _RATE).astype("<i2").tobytes()
        noise = Decoder(wav_header(_RATE, len(samples)) + samples, AudioFacts(kind="wav", duration_ms=1000)).read(_RATE)
        _has_speech(noise)
        segments, _ = self._model.transcribe(
            noise, prefix="one two three four five", hotwords="one", word_timestamps=True, temperature=[0.0, 0.5]
        )
        list(segments)

    def _transcribe(self, desk: Desk, task: Task) -> None:
        request = task.request
        if not isinstance(request, TranscribeRequest):
            raise RequestInvalid("this model writes down speech, and nothing else.")
        self._check(request)
        facts = read_audio(task.blob)
        importlib.import_module("ctranslate2").set_random_seed(_SEED)  # the same audio gives the same text, retries too
        count = 0
        for segment in self._segments(desk, task, request, facts):
            if task.cancelled:
                return
            count += 1
            done = min(99, segment.end_ms * 100 // facts.duration_ms)
            desk.made(task, [encode(Segment, segment)], progress=done)
        if task.cancelled:
            return
        silence = [] if count else [Segment(start_ms=0, end_ms=facts.duration_ms, text="", language=request.language)]
        desk.made(task, [encode(Segment, segment) for segment in silence], progress=100, finish="stop")

    def _check(self, request: TranscribeRequest) -> None:
        if request.language and request.language not in self._languages:
            known = ", ".join(sorted(self._languages)[:100])
            raise RequestInvalid(
                f"this model does not know the language {request.language!r}.", next_step=f"It knows {known}."
            )
        if request.translate and not self._model.model.is_multilingual:
            raise RequestInvalid("this model knows English alone, and translates nothing.", param="model")

    def _segments(self, desk: Desk, task: Task, request: TranscribeRequest, facts: AudioFacts) -> Iterator[Segment]:
        """Window by window. The last words of a window may be cut off: they are heard again at the head of the next,
        unless they are all of it."""
        import numpy as np

        from inference.work.decoding import Decoder

        decoder = Decoder(task.blob, facts)
        window = np.zeros(0, np.float32)
        start, language = 0, request.language
        while True:
            window = np.concatenate([window, decoder.read(_WINDOW_S * _RATE - len(window))])
            is_last = len(window) < _WINDOW_S * _RATE
            desk.beat()
            if task.cancelled or not len(window):
                return
            heard, held = len(window), None
            if _has_speech(window):
                offset_ms = start * 1000 // _RATE
                limit_ms = max(offset_ms, facts.duration_ms)
                for raw, spoken in self._hear(window, request, language):
                    desk.beat()
                    if task.cancelled:
                        return
                    if held is not None:
                        yield held
                    language = language or spoken
                    held, at = _segment(raw, spoken, offset_ms, limit_ms), int(raw.start * _RATE)
            if held is not None and not is_last and at > 0:
                heard, held = at, None
            if held is not None:
                yield held
            if is_last:
                return
            window, start = window[heard:], start + heard

    def _hear(
        self, window: NDArray[np.float32], request: TranscribeRequest, language: str
    ) -> Iterator[tuple[Any, str]]:
        """faster-whisper's segments and the language; times from the window's start.

        Each half minute is heard for itself: reading on from the words before, small models repeat themselves (a
        sentence said ten times in five minutes came thirteen times).
        """
        temperature = request.temperature_micro / MICRO
        segments, info = self._model.transcribe(
            window,
            language=language or None,
            task="translate" if request.translate else "transcribe",
            beam_size=self._beam,
            temperature=[temperature, *(retry for retry in _RETRIES if retry > temperature)],
            condition_on_previous_text=False,
            hotwords=request.prompt or None,
            word_timestamps=request.words,
            vad_filter=True,
        )
        for segment in segments:
            yield segment, info.language


def _has_speech(window: NDArray[np.float32]) -> bool:
    vad = importlib.import_module("faster_whisper.vad")
    return bool(vad.get_speech_timestamps(window, vad.VadOptions()))


def _segment(raw: Any, language: str, offset_ms: int, limit_ms: int) -> Segment:
    def moment(seconds: float) -> int:
        return min(max(0, round(seconds * 1000)) + offset_ms, limit_ms)

    words = tuple(
        SpokenWord(start_ms=moment(word.start), end_ms=moment(word.end), text=word.word[:_WORD_LIMIT])
        for word in (raw.words or ())[:_WORDS_LIMIT]
    )
    start_ms = moment(raw.start)
    return Segment(
        start_ms=start_ms,
        end_ms=max(start_ms, moment(raw.end)),
        text=raw.text[:_TEXT_LIMIT],
        language=language[:8],
        words=words,
    )


def open_runner(folder: Path, options: Mapping[str, Any], threads: int) -> TranscribeRunner:
    """Raises ModelFileInvalid, NodeMisconfigured."""
    for name in _FILES:
        if not (folder / name).is_file():
            raise ModelFileInvalid(f"the model has no {name}.", next_step="Convert it anew, with its tokenizer.")
    if options["packages"]:
        sys.path.append(str(options["packages"]))
    try:
        library = importlib.import_module("faster_whisper")
        importlib.import_module("inference.work.decoding")
    except ImportError as error:
        raise NodeMisconfigured(
            f"transcription needs the package faster-whisper ({error.name} is missing).",
            next_step="Install it: .venv/bin/pip install -e '.[speech]'.",
        ) from None

    def open_one(device: str, compute: str) -> TranscribeRunner:
        model = library.WhisperModel(str(folder), device=device, compute_type=compute, cpu_threads=threads)
        engine = f"faster-whisper/{library.__version__}/{device}/{compute}"
        runner = TranscribeRunner(model, engine=engine, beam=int(options["beam"]))
        runner.warm_up()
        return runner

    translator = importlib.import_module("ctranslate2")
    return open_first(ctranslate2_ways(translator, str(options["compute"]), cards=bool(options["cards"])), open_one)
