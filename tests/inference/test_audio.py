"""How long audio is, from its bytes: right for what encoders write, refused for what lies, fast for anything."""

from __future__ import annotations

import contextlib
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.work.audio import DURATION_LIMIT_MS, read_audio
from inference.work.speech_meters import TranscribeMeter
from inference.work.wav import wav_header
from market.errors import EncodingInvalid, RequestInvalid
from market.values import encode
from market.work import BLOB_LIMIT_BYTES, Segment, SpeakRequest, TranscribeRequest
from tests.inference import audio_kit as kit

FILES = Path(__file__).parent / "audio"
"""1.255 s of speech, by the encoders of Debian 12: flac -8, oggenc -q0, opusenc, lame -V6 and -b 16."""
SPOKEN_MS = 1255


def refused(blob: bytes) -> str:
    with pytest.raises(RequestInvalid) as caught:
        read_audio(blob)
    assert caught.value.param == "file"
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "kind", "more_ms"),
    [("speech.flac", "flac", 0), ("vorbis.ogg", "ogg", 0), ("opus.ogg", "ogg", 0), ("vbr.mp3", "mp3", 80),
     ("cbr.mp3", "mp3", 80)],
)  # fmt: skip
def test_what_real_encoders_write_has_the_length_of_the_speech(name: str, kind: str, more_ms: int) -> None:
    """MP3 counts whole frames, the silence that the encoder puts before and after included."""
    facts = read_audio((FILES / name).read_bytes())
    assert facts.kind == kind
    assert SPOKEN_MS <= facts.duration_ms <= SPOKEN_MS + more_ms


@pytest.mark.parametrize(
    ("bits", "tag", "subformat"),
    [(8, 1, 1), (16, 1, 1), (24, 1, 1), (32, 1, 1), (32, 3, 1), (64, 3, 1), (16, 0xFFFE, 1), (32, 0xFFFE, 3)],
)
def test_every_kind_of_wav_has_its_length(bits: int, tag: int, subformat: int) -> None:
    blob = kit.wav(16_000, bits=bits, tag=tag, channels=2, subformat=subformat)
    assert read_audio(blob).duration_ms == 1000


def test_a_wav_that_was_streamed_lasts_to_its_end() -> None:
    assert read_audio(wav_header(22_050, None) + bytes(44_100)).duration_ms == 1000
    assert read_audio(kit.wav(16_000, data=0x7FFFF000)).duration_ms == 1000  # as espeak-ng writes it
    assert read_audio(wav_header(16_000, 32_000) + bytes(32_000)).duration_ms == 1000


def test_what_stands_before_the_sound_of_a_wav_is_skipped() -> None:
    """A chunk of odd length has a byte of padding behind it, and may hold what looks like sound."""
    plain = kit.wav(16_000)
    inner = b"data\x04\0\0\0abc"
    assert len(inner) % 2
    blob = plain[:36] + b"LIST" + struct.pack("<I", len(inner)) + inner + b"\0" + plain[36:]
    assert read_audio(blob).duration_ms == 1000


def test_a_wav_whose_sound_is_cut_off_is_refused() -> None:
    assert "ends within the sound" in refused(kit.wav(16_000)[:-1000])
    assert "ends within" in refused(kit.wav(16_000)[:30])


@pytest.mark.parametrize(
    "blob",
    [kit.wav(100, bits=12), kit.wav(100, tag=6, bits=8), kit.wav(100, channels=9), kit.wav(100, rate=10),
     kit.wav(100, block=7), kit.wav(0), kit.wav(100, tag=3, bits=16)],
)  # fmt: skip
def test_a_wav_that_makes_no_sense_is_refused(blob: bytes) -> None:
    refused(blob)


def test_a_wav_of_chunks_without_end_is_refused() -> None:
    blob = b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 100_000
    assert "no sound within" in refused(blob)


def test_flac_is_as_long_as_its_last_frame_says() -> None:
    assert read_audio(kit.flac(4, block=4000)).duration_ms == 1000
    assert read_audio(kit.flac(4, block=4000, total=0)).duration_ms == 1000  # an encoder in a pipe does not know
    assert (
        read_audio(b"ID3\4\0\0\0\0\0\5hello" + kit.flac(4, block=4000) + b"TAG".ljust(128, b"\0")).duration_ms == 1000
    )


def test_a_flac_head_that_lies_is_refused() -> None:
    assert "says that it has 16000 samples, and has 64000" in refused(kit.flac(16, block=4000, total=16_000))
    assert "says that it has" in refused(kit.flac(2, block=4000, total=1 << 35))


def test_a_flac_that_is_cut_off_is_refused() -> None:
    real = (FILES / "speech.flac").read_bytes()
    for size in (10, 41, 100, len(real) // 2, len(real) - 1):
        refused(real[:size])
    assert "says that it has" in refused(kit.flac(4, block=4000)[: -len(kit.flac_frame(3, 4000))])


def test_a_frame_whose_head_is_damaged_counts_for_nothing() -> None:
    """No decoder plays it."""
    assert read_audio(kit.flac(4, block=4000, total=0) + kit.flac_frame(4, 4000, head_crc=1)).duration_ms == 1000


def test_a_flac_bomb_is_refused_by_its_length() -> None:
    """Five hours of silence in 62 KB."""
    bomb = kit.flac(4400)
    assert len(bomb) < 70_000
    assert "is the limit" in refused(bomb)
    assert "is the limit" in refused(kit.flac(4400, total=0))


def test_ogg_is_as_long_as_its_last_page_says() -> None:
    assert read_audio(kit.ogg(960, 48_312)).duration_ms == 1000  # 312 places come before the sound
    assert read_audio(kit.ogg(-1, 16_000, -1, head=kit.VORBIS_HEAD)).duration_ms == 1000
    assert "is the limit" in refused(kit.ogg(48_000 * 60 * 60 * 5))


@pytest.mark.parametrize(
    ("blob", "cause"),
    [
        (kit.ogg(960, 480), "run backwards"),
        (kit.ogg(960)[:-1], "ends within a page"),
        (kit.ogg(960) + kit.ogg_page(3, 1920), "page 2 is missing"),
        (kit.ogg(960) + kit.ogg_page(2, 1920, serial=8), "more than one stream"),
        (kit.ogg(960) + kit.ogg(960), "more than one stream"),
        (kit.ogg(960) + b"junk" * 20, "no page of Ogg begins"),
        (kit.ogg(960, head=b"\x80theora" + bytes(30)), "without Vorbis or Opus"),
        (kit.ogg(960, head=b"OpusHead" + struct.pack("<BBHI", 0x20, 1, 0, 0)), "later version"),
        (kit.ogg(960, head=b"OpusHead" + struct.pack("<BBHI", 1, 0, 0, 0)), "0 channels"),
        (kit.ogg(0), "no sound"),
    ],
)
def test_a_bad_ogg_is_refused(blob: bytes, cause: str) -> None:
    assert cause in refused(blob)


def test_mp3_is_as_long_as_its_frames() -> None:
    frame = kit.mp3_frame()
    assert read_audio(frame * 100).duration_ms == 3600
    assert read_audio(kit.mp3_frame(version=3, rate_index=1) * 100).duration_ms == 2400
    tagged = b"ID3\4\0\0\0\0\0\5hello" + frame * 100 + b"TAG".ljust(128, b"x")
    assert read_audio(tagged).duration_ms == 3600


def test_what_an_mp3_says_of_its_length_is_not_believed() -> None:
    """A Xing head that claims 5 frames, before 1,000."""
    liar = kit.mp3_frame(filling=bytes(9) + b"Xing" + struct.pack(">II", 1, 5))
    assert read_audio(liar + kit.mp3_frame() * 1000).duration_ms == 36_000


@pytest.mark.parametrize(
    "blob",
    [
        kit.mp3_frame() * 3 + b"junk" * 100 + kit.mp3_frame() * 3,
        kit.mp3_frame() * 3 + kit.mp3_frame(version=3),
        kit.mp3_frame()[:100],
        b"\xff\xfb\x90\x00" + bytes(50),
    ],
)
def test_a_bad_mp3_is_refused(blob: bytes) -> None:
    refused(blob)


@pytest.mark.parametrize(
    ("blob", "what"),
    [
        (b"", "no audio"),
        (b"hello", "no audio"),
        (b"\x1aE\xdf\xa3" + bytes(100), "WebM"),
        (b"\0\0\0\x20ftypM4A " + bytes(100), "MP4"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "no audio"),
        (b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(100), "no audio"),
        (bytes(BLOB_LIMIT_BYTES + 1), "is the limit"),
    ],
)
def test_what_is_no_audio_of_ours_is_named_and_refused(blob: bytes, what: str) -> None:
    assert what in refused(blob)


@pytest.mark.parametrize(
    "blob",
    [
        kit.mp3_frame(kbits_index=1) * (BLOB_LIMIT_BYTES // 36),
        kit.ogg(960) + b"".join(kit.ogg_page(number, 960) for number in range(2, 300_002)),
        kit.flac(1, block=16)[:42] + b"\xff\xf8" * (BLOB_LIMIT_BYTES // 2 - 21),
        kit.flac(1, block=16)[:42] + kit.flac_frame(1, 16)[:9] * (BLOB_LIMIT_BYTES // 9 - 5),
        b"fLaC" + b"\0\0\0\0" * (BLOB_LIMIT_BYTES // 4 - 1),
        b"ID3\4\0\0\0\0\0\0" * (BLOB_LIMIT_BYTES // 10),
    ],
    ids=["frames", "pages", "syncs", "frame heads", "metadata", "tags"],
)
def test_no_file_takes_long(blob: bytes) -> None:
    began = time.process_time()
    with contextlib.suppress(RequestInvalid):
        read_audio(blob)
    assert time.process_time() - began < 5.0  # 0.4 s when measured


GOOD = [kit.wav(400), kit.flac(2, block=400), kit.flac(2, block=400, total=0), kit.ogg(960, 1920), kit.mp3_frame() * 4,
        *(path.read_bytes() for path in sorted(FILES.iterdir()))]  # fmt: skip


@given(st.sampled_from(GOOD), st.data())
@settings(max_examples=300)
def test_damaged_audio_has_a_length_or_is_refused(blob: bytes, data: st.DataObject) -> None:
    damaged = bytearray(blob)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(damaged) - 1, 600)) | st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    try:
        facts = read_audio(bytes(damaged[:cut]))
    except RequestInvalid:
        return
    assert 1 <= facts.duration_ms <= DURATION_LIMIT_MS


@given(st.sampled_from([b"RIFF\0\0\0\0WAVEfmt ", b"fLaC", b"OggS", b"\xff\xfb", b"ID3", b""]), st.binary(max_size=300))
@settings(max_examples=300)
def test_noise_behind_any_magic_is_refused_or_counted(magic: bytes, noise: bytes) -> None:
    try:
        read_audio(magic + noise)
    except RequestInvalid as error:
        assert error.message


def test_transcription_counts_ten_milliseconds_in_and_bytes_out() -> None:
    meter, request = TranscribeMeter(), TranscribeRequest()
    blob = kit.wav(16_001)
    assert meter.units_in(request, blob) == 101
    assert meter.units_out_limit(request, blob) > 1000
    said = Segment(start_ms=0, end_ms=900, text=" grün", language="de")
    assert meter.units_of(request, encode(Segment, said)) == 6
    assert meter.units_of(request, encode(Segment, Segment(start_ms=0, end_ms=1, text=""))) == 1
    for bad in (b"", b"text", encode(Segment, Segment(start_ms=2, end_ms=1, text="x"))):
        with pytest.raises(EncodingInvalid):
            meter.units_of(request, bad)
    with pytest.raises(RequestInvalid):
        meter.units_in(SpeakRequest(text="x"), blob)
    with pytest.raises(RequestInvalid):
        meter.units_in(request, b"")
