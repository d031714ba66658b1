"""Speech to text and text to speech, asked by OpenAI's own client; and forms that are none."""

import asyncio
import base64
import gzip
import importlib
import io
import json
import sys
import wave
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from inference.work.speech_meters import SpeakMeter
from inference.work.voice import ESPEAK, FLITE
from market.errors import PeerGone
from market.task import Mode, Privacy
from market.values import encode
from market.work import BLOB_LIMIT_BYTES, Segment, SpeakRequest, SpokenWord, TranscribeRequest
from node.api.voices import OPENAI_VOICES, voice_for
from tests.inference.media_kit import PACKAGES, require_media

SOUND = b"RIFF....WAVE sound"
SEGMENTS = (
    Segment(
        start_ms=0,
        end_ms=1500,
        text=" Ever tried,",
        language="en",
        words=(SpokenWord(start_ms=0, end_ms=700, text=" Ever"), SpokenWord(start_ms=700, end_ms=1500, text=" tried,")),
    ),
    Segment(start_ms=3_661_001, end_ms=3_662_000, text=" ever <failed> -->\n\n1.", language="en"),
)
PIECES = tuple(encode(Segment, segment) for segment in SEGMENTS)
TEXT = "Ever tried, ever <failed> -->\n\n1."


async def test_audio_becomes_text_with_a_receipt(client: AsyncOpenAI, node: Any, known: Any) -> None:
    node.buyer.steps = PIECES
    raw = await client.audio.transcriptions.with_raw_response.create(
        model="small",
        file=("talk.wav", SOUND),
        language="en",
        prompt="Beckett",
        temperature=0.2,
        extra_body={"octo": {"privacy": "public", "mode": "batch"}},
    )
    (order,) = node.buyer.orders
    assert order.request == TranscribeRequest(language="en", prompt="Beckett", temperature_micro=200_000)
    assert (order.blob, order.privacy, order.mode) == (SOUND, Privacy.PUBLIC, Mode.BATCH)
    answer = raw.parse()
    assert answer.text == TEXT
    assert answer.usage.model_dump() == {"seconds": 1, "type": "duration"}  # 7 units of 10 ms
    assert answer.model_extra["octo"]["receipt"] == known.receipt == raw.headers["x-octo-receipt"]


async def test_a_translation_is_into_english(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = PIECES
    answer = await client.audio.translations.create(model="small", file=SOUND)
    assert node.buyer.orders[0].request == TranscribeRequest(translate=True)
    assert answer.text == TEXT


async def test_times_come_with_segments_and_words(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = PIECES
    answer = await client.audio.transcriptions.create(
        model="small", file=SOUND, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert node.buyer.orders[0].request.words
    assert (answer.language, answer.duration) == ("en", 0.07)
    assert [(segment.start, segment.end) for segment in answer.segments or ()] == [(0.0, 1.5), (3661.001, 3662.0)]
    assert [(word.word, word.end) for word in answer.words or ()] == [("Ever", 0.7), ("tried,", 1.5)]


@pytest.mark.parametrize(
    ("form", "kind", "said"),
    [
        ("text", "text/plain", TEXT + "\n"),
        (
            "srt",
            "application/x-subrip",
            "1\n00:00:00,000 --> 00:00:01,500\nEver tried,\n\n"
            "2\n01:01:01,001 --> 01:01:02,000\never <failed> -> 1.\n\n",
        ),
        (
            "vtt",
            "text/vtt",
            "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nEver tried,\n\n"
            "01:01:01.001 --> 01:01:02.000\never &lt;failed&gt; -&gt; 1.\n",
        ),
    ],
)
async def test_a_transcript_comes_as_text_or_subtitles(
    client: AsyncOpenAI, node: Any, form: Any, kind: str, said: str
) -> None:
    node.buyer.steps = PIECES
    raw = await client.audio.transcriptions.with_raw_response.create(model="small", file=SOUND, response_format=form)
    assert raw.text == said  # type: ignore[comparison-overlap]  # a property here, a method in httpx's stub
    assert raw.headers["content-type"].split(";")[0] == kind
    assert "x-octo-receipt" in raw.headers


async def test_a_transcript_streams_segment_by_segment(client: AsyncOpenAI, node: Any, known: Any) -> None:
    node.buyer.steps = PIECES
    stream = await client.audio.transcriptions.create(model="small", file=SOUND, stream=True)
    events: list[Any] = [event async for event in stream]
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == TEXT
    assert events[-1].type == "transcript.text.done"
    assert events[-1].model_extra["octo"]["receipt"] == known.receipt


async def test_segments_without_spaces_get_them_where_a_language_has_them(client: AsyncOpenAI, node: Any) -> None:
    for language, joined in (("en", "a b"), ("ja", "ab")):
        node.buyer.steps = [
            encode(Segment, Segment(start_ms=0, end_ms=1, text=text, language=language)) for text in ("a", "b")
        ]
        answer = await client.audio.transcriptions.create(model="small", file=SOUND)
        assert answer.text == joined


async def test_a_piece_that_is_no_segment_is_the_providers_failure(client: AsyncOpenAI, node: Any) -> None:
    node.buyer.steps = (b"nonsense",)
    with pytest.raises(openai.InternalServerError) as caught:
        await client.audio.transcriptions.create(model="small", file=SOUND)
    assert caught.value.code == "peer_failed"


# ---- forms ----


async def sent(http: Any, body: bytes, *, kind: str = "multipart/form-data; boundary=x", **headers: str) -> Any:
    async with http.post("/v1/audio/transcriptions", data=body, headers={"Content-Type": kind, **headers}) as response:
        return response.status, (await response.json())["error"]


def part(name: str, content: bytes, *, more: bytes = b"", filename: str = "") -> bytes:
    named = f'; filename="{filename}"' if filename else ""
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"{named}\r\n'.encode()
    return head + more + b"\r\n" + content + b"\r\n"


FILE = part("file", SOUND, filename="a.wav")
MODEL = part("model", b"small")
MIXED = b"Content-Type: multipart/mixed; boundary=y\r\n"
END = b"--x--\r\n"

FORMS = {
    "no form": (b"{}", "multipart", "application/json"),
    "no boundary": (b"", "malformed", "multipart/form-data"),
    "nothing": (b"", "no file|malformed", ""),
    "no file": (MODEL + END, "no file", ""),
    "an empty file": (MODEL + part("file", b"") + END, "empty", ""),
    "no model": (FILE + END, "model", ""),
    "two files": (FILE + FILE + MODEL + END, "one file", ""),
    "a field twice": (MODEL + MODEL + FILE + END, "twice", ""),
    "a field in two ways": (part("include", b"x") + part("include[]", b"x") + FILE + END, "two ways", ""),
    "cut off": (MODEL + FILE[:-20], "malformed|model|no file", ""),
    "33 fields": (b"".join(part(f"f{n}", b"") for n in range(33)) + END, "more than 32", ""),
    "a long field": (part("prompt", b"x" * 70_000) + FILE + END, "65536", ""),
    "a field that is no text": (part("model", b"\xff") + FILE + END, "UTF-8", ""),
    "a part in a part": (part("file", b"", more=MIXED) + END, "own", ""),
    "a packed part": (part("file", b"x", more=b"Content-Encoding: gzip\r\n") + END, "packed", ""),
    "a base64 part": (part("file", b"eA==", more=b"Content-Transfer-Encoding: base64\r\n") + END, "packed", ""),
    "no name": (b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n" + END, "name", ""),
    "a thousand headers": (b"--x\r\n" + b"A: b\r\n" * 1000 + b"\r\n" + END, "malformed", ""),
    "an unknown field": (MODEL + FILE + part("best_of", b"2") + END, "no such parameter", ""),
    "subtitles in a stream": (
        MODEL + FILE + part("stream", b"true") + part("response_format", b"srt") + END, "whole", "",
    ),
    "times without a place": (MODEL + FILE + part("timestamp_granularities[]", b"word") + END, "verbose_json", ""),
    "too hot": (MODEL + FILE + part("temperature", b"2") + END, "less than or equal to 1", ""),
    "no number": (MODEL + FILE + part("temperature", b"NaN") + END, "finite", ""),
    "a strange language": (MODEL + FILE + part("language", b"klingon") + END, "pattern", ""),
    "no privacy": (MODEL + FILE + part("octo", b'{"privacy": "x"}') + END, "octo.privacy", ""),
    "options that are no map": (MODEL + FILE + part("octo", b"[") + END, "octo", ""),
}  # fmt: skip


@pytest.mark.parametrize(("body", "reason", "kind"), FORMS.values(), ids=FORMS)
async def test_a_form_that_is_none_is_refused(http: Any, node: Any, body: bytes, reason: str, kind: str) -> None:
    status, error = await sent(http, body, **({"kind": kind} if kind else {}))
    assert status == 400, error
    assert any(word in error["message"] for word in reason.split("|")), error
    assert node.buyer.orders == []


async def test_a_file_that_is_too_large_is_refused_before_and_while_it_comes(http: Any, node: Any) -> None:
    body = MODEL + part("file", bytes(BLOB_LIMIT_BYTES + 1)) + END
    status, error = await sent(http, body + b" " * 200_000)
    assert (status, error["code"]) == (413, "request_too_large")

    async def unannounced() -> Any:
        for at in range(0, len(body), 1 << 20):
            yield body[at : at + (1 << 20)]

    status, error = await sent(http, unannounced())  # type: ignore[arg-type]
    assert (status, error["code"]) == (413, "request_too_large")
    assert node.buyer.orders == []


async def test_a_packed_form_is_measured_unpacked(http: Any) -> None:
    bomb = gzip.compress(MODEL + part("file", bytes(BLOB_LIMIT_BYTES + 1)) + END)
    assert len(bomb) < 100_000
    status, error = await sent(http, bomb, **{"Content-Encoding": "gzip"})
    assert (status, error["code"]) == (413, "request_too_large")


async def test_options_may_be_one_field_of_json(http: Any, node: Any) -> None:
    node.buyer.steps = PIECES
    body = MODEL + part("octo", b'{"privacy": "private"}') + FILE + END
    async with http.post(
        "/v1/audio/transcriptions", data=body, headers={"Content-Type": "multipart/form-data; boundary=x"}
    ) as response:
        assert response.status == 200, await response.text()
    assert node.buyer.orders[0].privacy is Privacy.PRIVATE


async def test_only_so_many_files_are_taken_at_once(api: str, http: Any, node: Any, known: Any) -> None:
    node.buyer.steps = (3600.0,)
    async with aiohttp.ClientSession(api, headers={"Authorization": f"Bearer {known.key}"}) as session:
        waiting = [
            asyncio.create_task(
                session.post("/v1/audio/translations", data={"model": "small", "file": io.BytesIO(SOUND)})
            )
            for _ in range(8)
        ]
        async with asyncio.timeout(60):
            while node.buyer.running < 8:
                await asyncio.sleep(0.01)
        status, error = await sent(http, MODEL + FILE + END)
        assert (status, error["code"]) == (429, "rate_limit_exceeded")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(60):
        while node.buyer.running:  # hanging up ended the purchases
            await asyncio.sleep(0.01)


# ---- speech ----

PCM = (b"\x01\x00" * 100, b"\x02\x00" * 50)


async def test_a_text_is_spoken_as_wav(client: AsyncOpenAI, node: Any, known: Any) -> None:
    node.buyer.steps = PCM
    answer = await client.audio.speech.create(model="small", voice="en-us", input="Hello.", speed=1.5)
    assert node.buyer.orders[0].request == SpeakRequest(text="Hello.", voice="en-us", speed_micro=1_500_000)
    with wave.open(io.BytesIO(answer.content)) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (22_050, 1, 2)
        assert sound.readframes(1000) == b"".join(PCM)
    assert answer.response.headers["content-type"] == "audio/wav"
    assert answer.response.headers["x-octo-receipt"] == known.receipt


async def test_pcm_leaves_as_it_is_made_and_says_its_rate(client: AsyncOpenAI, node: Any) -> None:
    node.sound_rate = 16_000
    node.buyer.steps = (PCM[0], 3600.0)
    async with client.audio.speech.with_streaming_response.create(
        model="small", voice="default", input="Hello.", response_format="pcm"
    ) as answer:
        assert answer.headers["content-type"] == "audio/pcm;rate=16000;channels=1"
        assert await anext(aiter(answer.iter_bytes())) == PCM[0]
    assert node.buyer.orders[0].request.voice == "en-us"
    async with asyncio.timeout(60):
        await node.buyer.hung_up.wait()


async def test_sound_that_breaks_off_is_not_taken_for_all_of_it(http: Any, node: Any) -> None:
    node.buyer.steps = (PCM[0], 0.05, PeerGone("gone.", peer="12D3KooWgone"))
    body = {"model": "small", "input": "Hello.", "voice": "default", "response_format": "pcm"}
    with pytest.raises(aiohttp.ClientError):
        async with http.post("/v1/audio/speech", json=body) as response:
            await response.read()


async def test_without_its_encoder_a_format_is_refused_before_anything_is_bought(http: Any, node: Any) -> None:
    if find_spec("av") is not None:
        pytest.skip("PyAV is installed beside the node")
    body = {"model": "small", "input": "Hello.", "voice": "default", "response_format": "mp3"}
    async with http.post("/v1/audio/speech", json=body) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "response_format")
    assert "cannot write mp3" in error["message"] and "wav or pcm" in error["message"]
    assert node.buyer.orders == []


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("format", "head"), [("mp3", b"ID3"), ("opus", b"OggS"), ("aac", b"\xff\xf1"), ("flac", b"fLaC")]
)
async def test_speech_comes_in_each_of_openais_formats_with_its_receipt(
    client: AsyncOpenAI, node: Any, known: Any, format: Any, head: bytes
) -> None:
    require_media()
    node.buyer.steps = (b"\x01\x00" * 11_025,) * 4
    sys.path.append(str(PACKAGES))
    try:
        answer = await client.audio.speech.create(model="small", voice="en", input="Hello.", response_format=format)
        with importlib.import_module("av").open(io.BytesIO(answer.content)) as sound:
            heard = sum(frame.samples / frame.sample_rate for frame in sound.decode(audio=0))
    finally:
        sys.path.remove(str(PACKAGES))
    assert answer.content.startswith(head)
    assert heard == pytest.approx(2.0, abs=0.15)
    assert answer.response.headers["content-type"].startswith("audio/")
    assert answer.response.headers["x-octo-receipt"] == known.receipt


@pytest.mark.parametrize("asked", [*OPENAI_VOICES, "default", "awb"])
@pytest.mark.parametrize("model", [ESPEAK, FLITE], ids=lambda model: model.library)
async def test_openais_names_speak_in_the_nearest_voice_that_there_is(
    client: AsyncOpenAI, node: Any, asked: str, model: Any
) -> None:
    node.voice, node.buyer.steps = model, PCM
    if asked not in model.voices and asked == "awb":
        with pytest.raises(openai.BadRequestError, match="OpenAI's names"):
            await client.audio.speech.create(model="small", voice=asked, input="Hello.", response_format="wav")
        return
    answer = await client.audio.speech.create(model="small", voice=asked, input="Hello.", response_format="wav")
    voice = node.buyer.orders[0].request.voice
    near = {
        "flite": {"onyx": "rms", "nova": "slt", "fable": "awb"},
        "espeak-ng": {"onyx": "en-us", "fable": "en-gb-x-rp"},
    }
    assert voice in model.voices
    assert voice == near[model.library].get(asked, voice)
    assert answer.response.headers["x-octo-voice"] == voice


def test_a_voice_that_the_model_has_is_taken_as_it_is_named() -> None:
    own = SpeakMeter(replace(FLITE, voices=("slt", "alloy"), default="slt"))
    assert [voice_for(asked, own) for asked in ("alloy", "onyx", "default", "")] == ["alloy", "slt", "slt", "slt"]


async def test_speech_in_events_ends_with_its_receipt(http: Any, node: Any, known: Any) -> None:
    node.buyer.steps = PCM
    body = {"model": "small", "input": "Hello.", "voice": {"id": "default"}, "stream_format": "sse"}
    async with http.post("/v1/audio/speech", json=body) as response:
        lines = [line.removeprefix("data: ") for line in (await response.text()).split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    *sounds, done = map(json.loads, lines[:-1])
    assert b"".join(base64.b64decode(sound["audio"]) for sound in sounds) == b"".join(PCM)
    assert done["octo"]["receipt"] == known.receipt


@pytest.mark.parametrize(
    ("change", "param", "reason"),
    [
        ({"input": ""}, "input", "at least 1"),
        ({"input": "x" * 8193}, "input", "8192"),
        ({"voice": "../../etc"}, "voice", "pattern"),
        ({"voice": 5}, "voice", "string"),
        ({"voice": "Alloy"}, "voice", "It has en-us, en, en-gb-scotland, "),
        ({"response_format": "midi"}, "response_format", "'pcm'"),
        ({"response_format": "wav", "stream_format": "sse"}, "response_format", "pcm"),
        ({"response_format": "mp3", "stream_format": "sse"}, "response_format", "pcm"),
        ({"speed": 5}, "speed", "4"),
        ({"instructions": "sing"}, "instructions", "not supported"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_cannot_be_spoken_is_refused_by_name(
    http: Any, node: Any, change: dict[str, Any], param: str, reason: str
) -> None:
    body = {"model": "small", "input": "Hello.", "voice": "default", **change}
    async with http.post("/v1/audio/speech", json=body) as response:
        error = (await response.json())["error"]
        assert response.status == 400
    assert error["param"] == param
    assert reason in error["message"]
    assert node.buyer.orders == []
