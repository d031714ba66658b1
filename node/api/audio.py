"""POST /v1/audio/transcriptions, /v1/audio/translations and /v1/audio/speech: speech to text, and text to speech.

Source: OpenAI's API reference, "Audio".
"""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

from aiohttp import web
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from inference.work.sound_file import CONTENT_TYPES, SoundWriter, open_writer
from market.errors import OctoError, RequestInvalid
from market.reception import Outcome
from market.taking import Part, Shown
from market.task import MICRO
from market.work import BLOB_LIMIT_BYTES, SpeakRequest, TranscribeRequest, Work
from node.api.answering import EVENT_STREAM, Answering, Prepared, Whole, told_as_event
from node.api.answers import Answer
from node.api.bodies import Shape, parse_body, parse_fields
from node.api.clerk import Clerk, Ignored, ModelName, OctoOptions, Refused, micro
from node.api.errors import too_many
from node.api.limits import ApiLimits, Slots
from node.api.multipart import Upload, as_map, read_form
from node.api.octo_facts import DONE, event, octo_of
from node.api.transcripts import Kind, TranscriptForm
from node.api.voices import DEFAULT, Voiced, voice_for

SoundKind = Literal["wav", "pcm", "mp3", "opus", "aac", "flac"]

_RATE = 22_050
_CHANNELS, _SAMPLE_BYTES = 1, 2


class _Heard(Shape):
    """What transcriptions and translations take alike. `file` is read apart."""

    model: ModelName
    prompt: Annotated[str, Field(max_length=4096)] = ""
    response_format: Kind = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    octo: Annotated[OctoOptions, BeforeValidator(as_map)] | None = None

    user: Ignored = None


class TranslationBody(_Heard):
    pass


class TranscriptionBody(_Heard):
    language: Annotated[str, Field(pattern=r"^([a-z]{2,3})?$")] = ""
    timestamp_granularities: Annotated[list[Literal["word", "segment"]], Field(max_length=2)] | None = None
    stream: bool = False

    chunking_strategy: Refused = None
    include: Refused = None
    keywords: Refused = None
    languages: Refused = None
    known_speaker_names: Refused = None
    known_speaker_references: Refused = None

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise PydanticCustomError("times", "only verbose_json has them", {"param": "timestamp_granularities"})
        if self.stream and self.response_format not in ("json", "text"):
            raise PydanticCustomError("stream", "subtitles and verbose_json come whole", {"param": "stream"})
        return self


class SpeechBody(Shape):
    """`voice`: one of the model's, one of OpenAI's (see `voices`), or `default`."""

    model: ModelName
    input: Annotated[str, Field(min_length=1, max_length=8192)]
    voice: Annotated[
        str,
        Field(max_length=64, pattern=r"^[A-Za-z0-9_-]*$"),
        BeforeValidator(lambda raw: raw.get("id") if isinstance(raw, dict) else raw),
    ] = DEFAULT
    response_format: SoundKind | None = None
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    octo: OctoOptions | None = None

    instructions: Refused = None

    @model_validator(mode="after")
    def _events_have_no_header(self) -> Self:
        if self.stream_format == "sse" and self.response_format not in (None, "pcm"):
            raise PydanticCustomError("format", "events carry pcm", {"param": "response_format"})
        return self


class Audio:
    def __init__(self, clerk: Clerk, answering: Answering, *, limits: ApiLimits) -> None:
        self._clerk = clerk
        self._answering = answering
        self._limits = limits
        self._uploads = Slots(limits.uploads)

    async def transcribe(self, request: web.Request) -> web.StreamResponse:
        return await self._uploaded(request, self._transcription)

    async def translate(self, request: web.Request) -> web.StreamResponse:
        return await self._uploaded(request, self._translation)

    async def _uploaded(
        self, request: web.Request, prepare: Callable[[Upload, bytes], Awaitable[Prepared]]
    ) -> web.StreamResponse:
        """The slot holds until the end: the audio stays in memory until it is sold."""
        began_s = time.perf_counter()
        audio = bytearray()

        async def keep(data: bytes) -> None:
            audio.extend(data)

        with self._uploads.slot() as room:
            if not room:
                return too_many(f"{self._limits.uploads} files are under way, the most that this node takes.")
            upload = await read_form(request, self._limits, keep, limit_bytes=BLOB_LIMIT_BYTES)
            if not upload.size:
                raise RequestInvalid("file: it is empty.", param="file")
            return await self._answering.respond(request, await prepare(upload, bytes(audio)), began_s)

    async def _transcription(self, upload: Upload, audio: bytes) -> Prepared:
        asked = parse_fields(TranscriptionBody, upload.fields)
        times = asked.timestamp_granularities or ["segment"]
        heard = TranscribeRequest(
            language=asked.language,
            prompt=asked.prompt,
            temperature_micro=micro(asked.temperature),
            words="word" in times,
        )
        form = TranscriptForm(
            asked.response_format,
            task="transcribe",
            temperature=asked.temperature,
            words="word" in times,
            segments="segment" in times,
        )
        order = self._clerk.work_order(asked.model, heard, asked.octo, blob=audio, param="prompt")
        return Prepared(orders=[order], form=form, stream=asked.stream)

    async def _translation(self, upload: Upload, audio: bytes) -> Prepared:
        asked = parse_fields(TranslationBody, upload.fields)
        heard = TranscribeRequest(prompt=asked.prompt, temperature_micro=micro(asked.temperature), translate=True)
        form = TranscriptForm(
            asked.response_format, task="translate", temperature=asked.temperature, words=False, segments=True
        )
        order = self._clerk.work_order(asked.model, heard, asked.octo, blob=audio, param="prompt")
        return Prepared(orders=[order], form=form)

    async def prepare_speech(self, data: bytes) -> Prepared:
        asked = parse_body(SpeechBody, data)
        request = SpeakRequest(
            text=asked.input,
            voice="" if asked.voice == DEFAULT else asked.voice,
            speed_micro=max(MICRO // 4, min(4 * MICRO, micro(asked.speed))),
        )
        kind = "sse" if asked.stream_format == "sse" else asked.response_format or "wav"
        return await speech(self._clerk, asked.model, request, asked.octo, kind=kind, param="input")


async def speech(
    clerk: Clerk,
    model: str,
    request: SpeakRequest,
    octo: OctoOptions | None,
    *,
    kind: SoundKind | Literal["sse"],
    param: str,
) -> Prepared:
    """`request` in the voice of the model that comes nearest to the one it names; `param` names its text. Raises
    RequestInvalid for a format that this node cannot write."""
    order = clerk.work_order(model, request, octo, param=param)
    meter = await clerk.meter(order.model, Work.SPEAK)
    rate, voice = _RATE, request.voice
    if isinstance(meter, Voiced):
        rate, voice = meter.rate, voice_for(request.voice, meter)
        order = replace(order, request=replace(request, voice=voice))
    if kind == "sse":
        return Prepared(orders=[order], form=SpeechEvents(rate, voice), stream=True)
    if kind not in ("wav", "pcm"):
        encoded = EncodedSpeech(kind, await asyncio.to_thread(open_writer, kind, rate), rate, voice)
        return Prepared(orders=[order], form=encoded, settle=encoded.settle)
    # WAV says its length at its beginning: it comes whole. PCM needs no beginning, and leaves as it is made.
    return Prepared(orders=[order], form=SpeechForm(kind, rate, voice), stream=kind == "pcm")


class SpeechForm:
    """16-bit mono, little-endian."""

    def __init__(self, kind: SoundKind, rate: int, voice: str) -> None:
        self._kind = kind
        self._rate = rate
        self._told = {"x-octo-sample-rate": str(rate), "x-octo-voice": voice}
        self.stream_headers: Mapping[str, str] = {
            "Content-Type": f"audio/pcm;rate={rate};channels={_CHANNELS}",
            **self._told,
        }

    def whole(self, answers: Sequence[Answer]) -> Whole:
        (answer,) = answers
        sound = b"".join(_sound(item) for item in answer.shown)
        body = wav_header(len(sound), self._rate) + sound if self._kind == "wav" else sound
        return Whole(body, f"audio/{self._kind}", self._told)

    def opening(self) -> bytes:
        return b""

    def piece(self, index: int, shown: Shown) -> bytes:  # noqa: ARG002 - the port's shape: there is one
        return _sound(shown)

    def finish(self, index: int, outcome: Outcome) -> bytes:  # noqa: ARG002
        return b""

    def closing(self, outcomes: Sequence[Outcome]) -> bytes:  # noqa: ARG002
        return b""

    def broken(self, error: OctoError) -> bytes | None:  # noqa: ARG002
        return None


class EncodedSpeech(SpeechForm):
    """All at once, with its receipt in the headers."""

    def __init__(self, kind: SoundKind, writer: SoundWriter, rate: int, voice: str) -> None:
        super().__init__(kind, rate, voice)
        self._writer = writer
        self._file = b""

    async def settle(self, answers: Sequence[Answer]) -> None:
        """A second of sound takes the encoder some milliseconds: a thread has them, not everybody's streams."""
        (answer,) = answers
        self._file = await asyncio.to_thread(self._encoded, [_sound(item) for item in answer.shown])

    def whole(self, answers: Sequence[Answer]) -> Whole:  # noqa: ARG002 - `settle` has heard them
        return Whole(self._file, CONTENT_TYPES[self._kind], self._told)

    def _encoded(self, sounds: Sequence[bytes]) -> bytes:
        return b"".join([*(self._writer.feed(sound) for sound in sounds), self._writer.end()])


class SpeechEvents(SpeechForm):
    """PCM in server-sent events, the receipt in the last one."""

    def __init__(self, rate: int, voice: str) -> None:
        super().__init__("pcm", rate, voice)
        self.stream_headers = {**EVENT_STREAM, "x-octo-voice": voice}

    def piece(self, index: int, shown: Shown) -> bytes:
        audio = base64.b64encode(super().piece(index, shown)).decode()
        return event({"type": "speech.audio.delta", "audio": audio, "rate": self._rate})

    def finish(self, index: int, outcome: Outcome) -> bytes:  # noqa: ARG002
        usage = {
            "input_tokens": outcome.tokens_in,
            "output_tokens": outcome.tokens_out,
            "total_tokens": outcome.tokens_in + outcome.tokens_out,
        }
        return event({"type": "speech.audio.done", "usage": usage, "octo": octo_of(outcome)})

    def closing(self, outcomes: Sequence[Outcome]) -> bytes:  # noqa: ARG002
        return DONE

    def broken(self, error: OctoError) -> bytes | None:
        return told_as_event(error)


def _sound(shown: Shown) -> bytes:
    assert isinstance(shown, Part)
    return shown.data


def wav_header(size: int, rate: int) -> bytes:
    """Of `size` bytes of 16-bit mono PCM. Source: RFC 2361, and every reader of WAV."""
    wide = _CHANNELS * _SAMPLE_BYTES
    return (
        struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE")
        + struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, _CHANNELS, rate, rate * wide, wide, 8 * _SAMPLE_BYTES)
        + struct.pack("<4sI", b"data", size)
    )
