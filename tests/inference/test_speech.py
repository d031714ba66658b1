"""Speech synthesis: texts, voices and meters; then espeak-ng and Flite in their confined child, with hostile texts."""

from __future__ import annotations

import asyncio
import ctypes
import io
import os
import signal
import wave
from collections.abc import Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.engines.speech import open_speaking_engine
from inference.work.forked import Sink
from inference.work.runner import Task
from inference.work.speak_runner import SpeakRunner
from inference.work.speech_meters import SpeakMeter
from inference.work.spoken_text import SENTENCES_LIMIT, clean, cut
from inference.work.voice import ESPEAK, FLITE, VOICE_FILE, VoiceConfig, read_voice_config, voice_config_json
from inference.work.wav import wav_header
from market.errors import EncodingInvalid, EngineFailed, ModelFileInvalid, OctoError, RequestInvalid
from market.ports import WorkJob
from market.task import MICRO, TaskId
from market.testing_work import check_work_engine
from market.work import EmbedRequest, SpeakRequest

FOREIGN = {
    "de": "Größe, Übung, ÄÖÜ.",
    "ru": "Привет, как дела?",
    "el": "Γειά σου Κόσμε",
    "ar": "مرحبا بالعالم",
    "hi": "नमस्ते दुनिया",
    "ko": "안녕하세요 세계",
    "vi": "Xin chào thế giới",
    "fr": "Où êtes-vous, François ?",
}
PANGRAM = "The quick brown fox jumps over the lazy dog. Then it sleeps."
HARD = (
    "777777777777",
    "www.www.www " * 5,
    "WWWWWWWW",
    "%%%%%%%%",
    "1 2 3 4 5 6 7 8 9 0",
    "€€€€€",
    "👍👍👍",
    "漢字漢字",
    "a.b.c.",
)


def installed(config: VoiceConfig) -> bool:
    try:
        ctypes.CDLL({"espeak-ng": "libespeak-ng.so.1", "flite": "libflite.so.1"}[config.library])
    except OSError:
        return False
    return True


VOICES = [
    pytest.param(
        config,
        marks=pytest.mark.skipif(not installed(config), reason=f"apt-get install {config.library}"),
        id=config.library,
    )
    for config in (ESPEAK, FLITE)
]
needs_espeak = pytest.mark.skipif(not installed(ESPEAK), reason="apt-get install espeak-ng")


@asynccontextmanager
async def speaking(tmp_path: Path, config: VoiceConfig, **settings):
    (tmp_path / VOICE_FILE).write_bytes(voice_config_json(config))
    async with open_speaking_engine(tmp_path, **settings) as engine:
        yield engine


def job(request, max_units: int = 10**6) -> WorkJob:
    return WorkJob(task=TaskId(bytes(32)), request=request, blob=b"", max_units=max_units)


async def spoken(engine, text: str, *, max_units: int = 10**6, **wishes) -> tuple[bytes, str]:
    made = [item async for item in engine.make(job(SpeakRequest(text=text, **wishes), max_units))]
    return b"".join(piece for item in made for piece in item.pieces), made[-1].finish


@given(st.text(max_size=2000))
def test_cutting_loses_nothing_but_space_and_keeps_to_its_limit(text: str) -> None:
    parts = cut(text, 40)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(0 < len(part) <= 40 for part in parts)


def test_text_is_cut_between_sentences() -> None:
    assert cut("One. Two! Three?", 10) == ["One. Two!", "Three?"]
    assert cut("One.\nTwo", 100) == ["One. Two"]
    assert cut("long " * 100, 22) == ["long long long long"] * 25
    assert cut("x" * 41, 40) == ["x" * 40, "x"]
    assert max(map(len, cut("x" * 5000))) == SENTENCES_LIMIT


@given(st.text(max_size=300))
def test_what_is_left_of_a_text_has_no_control_characters(text: str) -> None:
    try:
        kept = clean(text)
    except RequestInvalid:
        return
    assert kept.strip()
    assert all(character == "\n" or character.isprintable() or character.isspace() or character in "\u200c\u200d"
               for character in kept)  # fmt: skip
    assert "\0" not in kept


@pytest.mark.parametrize("text", ["\0", "\x1b\x07", " \n\t", "\u202e", "\ue000"])
def test_a_text_without_sound_is_refused_by_buyer_and_seller(text: str) -> None:
    with pytest.raises(RequestInvalid, match="nothing that can be spoken"):
        SpeakMeter(ESPEAK).units_in(SpeakRequest(text=text), b"")


def test_a_voice_file_comes_back_as_it_was_written() -> None:
    for config in (ESPEAK, FLITE):
        assert read_voice_config(voice_config_json(config)) == config


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[" * 60_000, b"[]", voice_config_json(ESPEAK).replace(b"espeak-ng", b"/bin/sh"),
     voice_config_json(FLITE).replace(b"16000", b"1"),
     voice_config_json(FLITE).replace(b'"default": "slt"', b'"default": "x"'),
     voice_config_json(FLITE).replace(b'"rms"', b'"../../etc"'), voice_config_json(FLITE) + b" " * 70_000],
)  # fmt: skip
def test_a_bad_voice_file_is_refused(data: bytes) -> None:
    with pytest.raises(EncodingInvalid):
        read_voice_config(data)


def test_speaking_counts_characters_in_and_ten_milliseconds_out() -> None:
    meter, request = SpeakMeter(FLITE), SpeakRequest(text="Grüße")
    assert meter.units_in(request, b"") == 5
    assert meter.units_of(request, bytes(320)) == 1
    assert meter.units_of(request, bytes(322)) == 2
    assert meter.units_of(request, bytes(16_000)) == 50
    fast = SpeakRequest(text="Grüße" * 100, speed_micro=2 * MICRO)
    assert meter.units_out_limit(fast, b"") < meter.units_out_limit(SpeakRequest(text=fast.text), b"")
    for piece in (b"", b"x"):
        with pytest.raises(EncodingInvalid):
            meter.units_of(request, piece)
    for wrong in (EmbedRequest(inputs=("x",)), SpeakRequest(text="x", voice="nobody")):
        with pytest.raises(RequestInvalid):
            meter.units_in(wrong, b"")
    with pytest.raises(RequestInvalid, match="no slower"):
        SpeakMeter(ESPEAK).units_in(SpeakRequest(text="x", speed_micro=MICRO // 4), b"")


def test_pcm_behind_our_header_is_a_wav() -> None:
    with wave.open(io.BytesIO(wav_header(22_050, 4) + b"\1\0\2\0")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (22_050, 1, 2)
        assert file.readframes(9) == b"\1\0\2\0"


@pytest.mark.parametrize("config", VOICES)
async def test_a_voice_is_an_engine(tmp_path: Path, config: VoiceConfig) -> None:
    meter = SpeakMeter(config)
    async with speaking(tmp_path, config) as engine:
        request = SpeakRequest(text=PANGRAM)
        pieces = await check_work_engine(engine, meter, request, wrong=SpeakRequest(text="x", voice="nobody"))
        assert {meter.units_of(request, piece) for piece in pieces[:-1]} == {50}
        assert 2 * config.rate * 3 < sum(map(len, pieces)) < 2 * config.rate * 8, "three to eight seconds"
        assert len(set(b"".join(pieces))) > 100, "it is no silence"
        slow, _ = await spoken(engine, PANGRAM, speed_micro=MICRO // 2)
        fast, _ = await spoken(engine, PANGRAM, speed_micro=2 * MICRO)
        assert len(slow) > 3 * len(fast)
        other, _ = await spoken(engine, PANGRAM, voice=config.voices[-1])
        assert other != b"".join(pieces)


@pytest.mark.parametrize("config", VOICES)
async def test_what_is_hard_to_say_stays_within_what_was_agreed(tmp_path: Path, config: VoiceConfig) -> None:
    meter = SpeakMeter(config)
    async with speaking(tmp_path, config) as engine:
        for text in HARD:
            limit = meter.units_out_limit(SpeakRequest(text=text), b"")
            try:
                sound, finish = await spoken(engine, text)
            except RequestInvalid:  # Flite reads English alone
                assert config is FLITE
                continue
            assert finish == "stop"
            assert meter.units_of(SpeakRequest(text=text), sound) <= limit, text


@needs_espeak
async def test_a_language_in_a_voice_of_its_own_stays_within_what_was_agreed(tmp_path: Path) -> None:
    meter = SpeakMeter(ESPEAK)
    async with speaking(tmp_path, ESPEAK) as engine:
        for voice, text in FOREIGN.items():
            request = SpeakRequest(text=text, voice=voice)
            sound, finish = await spoken(engine, text, voice=voice)
            units = meter.units_of(request, sound)
            assert finish == "stop" and 50 < units <= meter.units_out_limit(request, b"") - 300, voice


@pytest.mark.parametrize("config", VOICES)
async def test_hostile_texts_are_spoken_or_refused_and_the_next_is_spoken(tmp_path: Path, config: VoiceConfig) -> None:
    async with speaking(tmp_path, config) as engine:
        before = engine.worker_pids
        for text in ("\0" * 100 + "a", "[[" * 1000, "<speak><voice name='/etc/passwd'>", "%s%n" * 500, "e\u0301" * 4000,
                     "x" * 3000, "()" * 4000, "|shutdown", "\u202eabc", "9" * 300, "!" * 8192):  # fmt: skip
            try:
                sound, _ = await spoken(engine, text, max_units=1500)
            except (RequestInvalid, EngineFailed):
                continue
            assert len(sound) % 2 == 0
        again, _ = await spoken(engine, "hello")
        assert again == (await spoken(engine, "hello"))[0]
        assert engine.worker_pids == before, "no text ended the worker"


@pytest.mark.parametrize("config", VOICES)
async def test_no_more_is_spoken_than_was_agreed(tmp_path: Path, config: VoiceConfig) -> None:
    async with speaking(tmp_path, config) as engine:
        sound, finish = await spoken(engine, PANGRAM, max_units=73)
        assert (len(sound), finish) == (2 * (73 * config.rate // 100), "length")


@needs_espeak
async def test_pieces_come_while_it_speaks_and_progress_with_them(tmp_path: Path) -> None:
    async with speaking(tmp_path, ESPEAK) as engine:
        made = [item async for item in engine.make(job(SpeakRequest(text=f"{PANGRAM} " * 130)))]
    assert len([item for item in made if item.pieces]) > 3
    assert any(0 < item.progress < 100 for item in made)


class Endless:
    """A library that speaks for ever."""

    engine = "endless"

    def prepare(self, texts: Sequence[str]) -> list[str]:
        return list(texts)

    def speak(self, voice: str, speed: float, texts: Sequence[str], sink: Sink) -> None:
        while True:
            sink.put(bytes(320))


class CancellingDesk:
    """Hands out one task, and cancels it at the third beat."""

    def __init__(self, task: Task) -> None:
        self.task, self.tasks, self.beats, self.said = task, [task], 0, []

    def take(self, limit: int, wait_s: float = 0.0) -> list[Task]:
        tasks, self.tasks = self.tasks, []
        return tasks

    def made(self, task: Task, pieces: Sequence[bytes] = (), *, progress: int = 0, finish: str = "") -> None:
        self.said.append(finish)

    def refuse(self, task: Task, error: OctoError) -> None:
        self.said.append(error.code)

    def beat(self) -> None:
        self.beats += 1
        self.task.cancelled = self.beats >= 3


def test_a_cancelled_text_is_not_spoken_to_its_end() -> None:
    desk = CancellingDesk(Task(1, SpeakRequest(text="x"), b"", 1_000_000))
    SpeakRunner(FLITE, Endless()).run(desk)
    assert desk.beats == 3
    assert set(desk.said) <= {""}, "neither finished nor refused"


@needs_espeak
async def test_a_cancelled_text_leaves_its_place_at_once(tmp_path: Path) -> None:
    async with speaking(tmp_path, ESPEAK) as engine:
        async with aclosing(engine.make(job(SpeakRequest(text=f"{PANGRAM} " * 130)))) as stream:
            await anext(stream)
        async with asyncio.timeout(60):
            assert (await spoken(engine, "hello"))[0]


@needs_espeak
async def test_a_killed_worker_costs_its_task_and_comes_back(tmp_path: Path) -> None:
    async with speaking(tmp_path, ESPEAK) as engine:
        async with aclosing(engine.make(job(SpeakRequest(text=f"{PANGRAM} " * 130)))) as stream:
            await anext(stream)
            os.kill(engine.worker_pids[0], signal.SIGKILL)
            with pytest.raises(EngineFailed):
                async for _ in stream:
                    pass
        async with asyncio.timeout(60):
            assert (await spoken(engine, "hello"))[1] == "stop"


@needs_espeak
async def test_a_worker_that_hangs_is_ended_and_comes_back(tmp_path: Path) -> None:
    async with speaking(tmp_path, ESPEAK, hang_s=3.0) as engine:
        async with aclosing(engine.make(job(SpeakRequest(text=f"{PANGRAM} " * 130)))) as stream:
            await anext(stream)
            os.kill(engine.worker_pids[0], signal.SIGSTOP)
            with pytest.raises(EngineFailed, match="silent"):
                async for _ in stream:
                    pass
        async with asyncio.timeout(60):
            assert (await spoken(engine, "hello"))[1] == "stop"


async def test_a_model_without_its_voice_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileInvalid, match="has no voice"):
        async with open_speaking_engine(tmp_path):
            pass


@needs_espeak
async def test_a_voice_that_its_library_lacks_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    config = VoiceConfig(library="espeak-ng", rate=22_050, default="klingon-x", voices=("klingon-x",))
    with pytest.raises(ModelFileInvalid, match="does not come up"):
        async with speaking(tmp_path, config):
            pass
    with pytest.raises(ModelFileInvalid, match="does not come up"):
        async with speaking(tmp_path, VoiceConfig(library="espeak-ng", rate=16_000, default="en", voices=("en",))):
            pass
