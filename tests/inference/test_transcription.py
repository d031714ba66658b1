"""Real speech in, real words out: Whisper's tiny.en weights in a confined child; hostile audio too."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from inference.engines.speech import open_speaking_engine, open_transcription_engine
from inference.work.audio import read_audio
from inference.work.sound_file import CONTENT_TYPES, open_writer
from inference.work.speech_meters import SpeakMeter, TranscribeMeter
from inference.work.voice import FLITE, VOICE_FILE, voice_config_json
from inference.work.wav import wav_header
from market.errors import EngineFailed, ModelFileInvalid, NodeMisconfigured, RequestInvalid
from market.ports import WorkJob
from market.task import TaskId
from market.testing_work import check_work_engine
from market.values import decode
from market.work import Segment, SpeakRequest, TranscribeRequest
from tests.inference import audio_kit as kit
from tests.inference.media_kit import PACKAGES, WHISPER, require_media

FILES = Path(__file__).parent / "audio"
SENTENCE = "Good morning. The weather is fine today, and the train leaves at seven."
SPOKEN = "good morning the weather is fine today and the train leaves at (seven|7)"


@pytest.fixture(scope="module")
async def whisper(anyio_backend):
    require_media()
    async with open_transcription_engine(WHISPER, packages=PACKAGES, beam=1) as engine:
        yield engine


@pytest.fixture(scope="module")
async def speech(anyio_backend, tmp_path_factory) -> bytes:
    """The sentence, spoken by Flite."""
    folder = tmp_path_factory.mktemp("voice")
    (folder / VOICE_FILE).write_bytes(voice_config_json(FLITE))
    request = SpeakRequest(text=SENTENCE)
    limit = SpeakMeter(FLITE).units_out_limit(request, b"")
    try:
        async with open_speaking_engine(folder) as engine:
            made = [item async for item in engine.make(job(request, b"", limit))]
    except NodeMisconfigured as error:
        pytest.skip(error.next_step)
    return b"".join(piece for item in made for piece in item.pieces)


def job(request, blob: bytes, max_units: int = 10**6) -> WorkJob:
    return WorkJob(task=TaskId(bytes(32)), request=request, blob=blob, max_units=max_units)


def as_wav(pcm: bytes, rate: int = 16_000) -> bytes:
    return wav_header(rate, len(pcm)) + pcm


async def heard(engine, blob: bytes, **wishes) -> list[Segment]:
    made = [item async for item in engine.make(job(TranscribeRequest(**wishes), blob))]
    assert made[-1].finish == "stop"
    return [decode(Segment, piece) for item in made for piece in item.pieces]


def words(segments: list[Segment]) -> str:
    return " ".join(re.sub(r"[^a-z0-9 ]", "", "".join(part.text for part in segments).lower()).split())


@pytest.mark.heavy
async def test_what_a_voice_says_is_written_down_word_by_word(whisper, speech) -> None:
    blob = as_wav(speech)
    request = TranscribeRequest(words=True, language="en")
    pieces = await check_work_engine(
        whisper, TranscribeMeter(), request, blob=blob, wrong=TranscribeRequest(language="de")
    )
    segments = [decode(Segment, piece) for piece in pieces]
    assert re.fullmatch(SPOKEN, words(segments))
    times = [word.start_ms for segment in segments for word in segment.words]
    assert times == sorted(times) and len(times) == 13
    assert max(segment.end_ms for segment in segments) <= read_audio(blob).duration_ms
    assert {segment.language for segment in segments} == {"en"}


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["speech.flac", "vorbis.ogg", "opus.ogg", "vbr.mp3", "cbr.mp3"])
async def test_every_format_is_heard(whisper, name: str) -> None:
    assert re.search(r"one two|1 2|12", words(await heard(whisper, (FILES / name).read_bytes())))


@pytest.mark.heavy
async def test_silence_and_noise_are_one_empty_segment(whisper) -> None:
    for pcm in (bytes(160_000), os.urandom(160_000)):
        [segment] = await heard(whisper, as_wav(pcm))
        assert (segment.text, segment.start_ms, segment.end_ms) == ("", 0, 5000)


@pytest.mark.heavy
async def test_minutes_are_heard_in_turn_with_nothing_lost_where_they_meet(whisper, speech) -> None:
    """Five and a half minutes: the sentence every 30 s, and across the five-minute mark, where a window ends."""
    silence, length = bytes(2 * 16_000 * 30 - len(speech)), len(speech)
    pcm = (speech + silence) * 9 + bytes(2 * 16_000 * 28) + speech + bytes(2 * 16_000 * 30 - length)
    made = []
    async with aclosing(whisper.make(job(TranscribeRequest(), as_wav(pcm)))) as stream:
        async for item in stream:
            made.append(item)
    segments = [decode(Segment, piece) for item in made for piece in item.pieces]
    assert len(re.findall(SPOKEN, words(segments))) == 10
    starts = [segment.start_ms for segment in segments]
    assert starts == sorted(starts)
    assert abs(starts[-1] - 298_000) < 3000 or abs(starts[-2] - 298_000) < 3000
    assert len({item.progress for item in made}) > 2, "they came while it listened"


@pytest.mark.heavy
async def test_audio_that_decodes_to_more_than_it_says_is_refused(whisper) -> None:
    """Ten seconds whose last frame, with a valid checksum, calls itself the fourth: its headers say one second."""
    liar = kit.flac(40, block=4000, total=16_000) + kit.flac_frame(3, 4000)
    assert read_audio(liar).duration_ms == 1000
    with pytest.raises(RequestInvalid, match="longer than its headers say"):
        await heard(whisper, liar)
    assert await heard(whisper, kit.flac(4, block=4000))


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("blob", "wishes"),
    [
        (b"RIFF", {}),
        (kit.flac(4400), {}),
        (kit.wav(16_000)[:-1], {}),
        (kit.ogg(48_000, 96_000), {}),
        (kit.wav(16_000), {"translate": True}),
        (kit.wav(16_000), {"language": "xx"}),
    ],
    ids=["no audio", "bomb", "cut off", "no opus within", "translation", "unknown language"],
)
async def test_what_cannot_be_heard_is_refused(whisper, blob: bytes, wishes: dict) -> None:
    with pytest.raises(RequestInvalid):
        await heard(whisper, blob, **wishes)


@pytest.mark.heavy
async def test_damaged_files_end_with_an_answer_and_the_worker_lives(whisper) -> None:
    before = whisper.worker_pids
    for path in sorted(FILES.iterdir()):
        blob = bytearray(path.read_bytes())
        for at in range(len(blob) // 3, len(blob) // 2, 7):
            blob[at] ^= 0x55
        with suppress(RequestInvalid):
            await heard(whisper, bytes(blob))
    assert whisper.worker_pids == before


@pytest.mark.heavy
async def test_a_worker_that_is_killed_or_hangs_costs_its_task_and_comes_back(speech) -> None:
    require_media()
    blob = as_wav(speech * 40)  # three minutes: on a busy machine, eight sentences were heard before the blow fell
    async with open_transcription_engine(WHISPER, packages=PACKAGES, beam=1, hang_s=20.0) as engine:
        for blow in (signal.SIGKILL, signal.SIGSTOP):
            async with aclosing(engine.make(job(TranscribeRequest(), blob))) as stream:
                await anext(stream)
                os.kill(engine.worker_pids[0], blow)
                with pytest.raises(EngineFailed):
                    async for _ in stream:
                        pass
            async with asyncio.timeout(60):
                assert words(await heard(engine, as_wav(speech)))


@pytest.mark.heavy
async def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    require_media()
    with pytest.raises(ModelFileInvalid, match=r"has no model\.bin"):
        async with open_transcription_engine(tmp_path, packages=PACKAGES):
            pass
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copy(WHISPER / name, tmp_path / name)
    (tmp_path / "model.bin").write_bytes((WHISPER / "model.bin").read_bytes()[:1_000_000])
    with pytest.raises(ModelFileInvalid):
        async with open_transcription_engine(tmp_path, packages=PACKAGES):
            pass


async def test_without_faster_whisper_its_owner_is_told_what_to_install(tmp_path: Path) -> None:
    if any((Path(entry) / "faster_whisper").is_dir() for entry in sys.path):
        pytest.skip("faster-whisper is installed beside the node")
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(NodeMisconfigured, match="faster-whisper") as caught:
        async with open_transcription_engine(tmp_path):
            pass
    assert "'.[speech]'" in caught.value.next_step


@pytest.mark.parametrize("format", ["wav", "pcm"])
def test_speech_goes_out_as_it_comes(format: str) -> None:
    writer = open_writer(format, 16_000)
    sent = writer.feed(b"\1\0" * 8000) + writer.feed(b"\2\0") + writer.end()
    assert sent.endswith(b"\1\0\2\0")
    assert len(sent) == 16_002 + (44 if format == "wav" else 0)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="no audio format"):
        open_writer("midi", 16_000)


@pytest.mark.heavy
@pytest.mark.parametrize("format", sorted(set(CONTENT_TYPES) - {"pcm", "aac"}))
async def test_speech_in_any_format_is_understood(whisper, speech, format: str) -> None:
    sys.path.append(str(PACKAGES))
    try:
        writer = open_writer(format, 16_000)
        parts = [writer.feed(speech[at : at + 16_000]) for at in range(0, len(speech), 16_000)]
        blob = b"".join(parts) + writer.end()
    finally:
        sys.path.remove(str(PACKAGES))
    assert sum(1 for part in parts if part) >= len(parts) // 2, "it is sent as it comes"
    assert re.fullmatch(SPOKEN, words(await heard(whisper, blob)))
