"""Work that is no stream of tokens: embeddings, reranking, speech, images, vision. What is asked, what comes back.

A request is one of the values below, as canonical DAG-CBOR; audio or an image travels beside it as a blob. The result
comes in pieces, each whole in itself, each counting for so many units; prices are per million units, in and out. What
counts as a unit is `Meter`'s to say, and both sides count alike.

    kind        a unit in                 a unit out               a piece
    embed       a token                   a vector                 float32, little-endian, of one input
    rerank      a token                   a document               u32 index, float32 score, little-endian
    transcribe  10 ms of audio            a UTF-8 byte of text     a Segment
    speak       a character               10 ms of audio           16-bit mono PCM, little-endian
    image       a character of prompts    a tile of 64 x 64        a PNG
                                          pixels in one step
    look        a tile of 64 x 64 pixels  a Finding                a Finding
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

from pydantic import Field

from market.task import MICRO, Mode, Privacy
from market.values import Word, decode, encode, value

REQUEST_LIMIT_BYTES = 512 * 1024
BLOB_LIMIT_BYTES = 32 * 1024 * 1024
PIECE_LIMIT_BYTES = 16 * 1024 * 1024
"""A PNG of 2048 x 2048 noise has 12 MB."""
INPUTS_LIMIT = 2048
UNITS_LIMIT = 2**31 - 1
TILE = 64

_Text = Annotated[str, Field(max_length=200_000)]
EMBED_TOKENS_LIMIT = 131_072
EmbedInput = (
    _Text
    | Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=EMBED_TOKENS_LIMIT)]
)
"""A text, or the token ids that the model is to read as they are: those of its own tokenizer, special ones included."""


class Work(Word):
    CHAT = "chat"
    EMBED = "embed"
    RERANK = "rerank"
    TRANSCRIBE = "transcribe"
    SPEAK = "speak"
    IMAGE = "image"
    LOOK = "look"


ONE_BY_ONE: Final = frozenset((Work.EMBED, Work.RERANK))
"""Their inputs share no context: an offer's is for each of them, and the meter has judged that before."""


@value
class EmbedRequest:
    """One vector for each input. `dimensions`: so many of the first, normalised anew (Matryoshka models); 0: all."""

    kind: Literal["embed"] = "embed"
    inputs: Annotated[tuple[EmbedInput, ...], Field(min_length=1, max_length=INPUTS_LIMIT)]
    dimensions: Annotated[int, Field(ge=0, le=65_536)] = 0


@value
class RerankRequest:
    kind: Literal["rerank"] = "rerank"
    query: _Text
    documents: Annotated[tuple[_Text, ...], Field(min_length=1, max_length=INPUTS_LIMIT)]


@value
class TranscribeRequest:
    """The blob is the audio: WAV, FLAC, Ogg or MP3. `language` is ISO 639-1, empty: found out. `prompt` biases the
    spelling. `translate`: into English. `words`: times for each word."""

    kind: Literal["transcribe"] = "transcribe"
    language: Annotated[str, Field(pattern=r"^([a-z]{2,3})?$")] = ""
    prompt: Annotated[str, Field(max_length=4096)] = ""
    temperature_micro: Annotated[int, Field(ge=0, le=MICRO)] = 0
    translate: bool = False
    words: bool = False


@value
class SpeakRequest:
    kind: Literal["speak"] = "speak"
    text: Annotated[str, Field(min_length=1, max_length=8192)]
    voice: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_-]*$")] = ""
    speed_micro: Annotated[int, Field(ge=MICRO // 4, le=4 * MICRO)] = MICRO


@value
class ImageRequest:
    """`seed` draws the same images on the same engine class; image i of `count` uses seed + i."""

    kind: Literal["image"] = "image"
    prompt: Annotated[str, Field(min_length=1, max_length=4096)]
    negative: Annotated[str, Field(max_length=4096)] = ""
    width: Annotated[int, Field(ge=64, le=2048, multiple_of=8)] = 512
    height: Annotated[int, Field(ge=64, le=2048, multiple_of=8)] = 512
    steps: Annotated[int, Field(ge=1, le=150)] = 20
    guidance_micro: Annotated[int, Field(ge=0, le=50 * MICRO)] = 7_500_000
    count: Annotated[int, Field(ge=1, le=10)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0


@value
class LookRequest:
    """The blob is a PNG or JPEG. `detect` finds things, `classify` names the whole, `read` is OCR."""

    kind: Literal["look"] = "look"
    what: Literal["detect", "classify", "read"]
    threshold_micro: Annotated[int, Field(ge=0, le=MICRO)] = 250_000


WorkRequest = Annotated[
    EmbedRequest | RerankRequest | TranscribeRequest | SpeakRequest | ImageRequest | LookRequest,
    Field(discriminator="kind"),
]


@value
class SpokenWord:
    start_ms: Annotated[int, Field(ge=0, lt=2**31)]
    end_ms: Annotated[int, Field(ge=0, lt=2**31)]
    text: Annotated[str, Field(max_length=256)]


@value
class Segment:
    """A piece of a transcript; times from the start of the audio."""

    start_ms: Annotated[int, Field(ge=0, lt=2**31)]
    end_ms: Annotated[int, Field(ge=0, lt=2**31)]
    text: Annotated[str, Field(max_length=16_384)]
    language: Annotated[str, Field(max_length=8)] = ""
    words: Annotated[tuple[SpokenWord, ...], Field(max_length=4096)] = ()


@value
class Finding:
    """What was seen: a class or a text, how sure (millionths), and where: left, top, right, bottom in pixels; all 0
    for the whole image."""

    label: Annotated[str, Field(max_length=4096)]
    score_micro: Annotated[int, Field(ge=0, le=MICRO)]
    box: Annotated[tuple[int, ...], Field(min_length=4, max_length=4)] = (0, 0, 0, 0)


@value
class WorkTask:
    """`request` is an encoded WorkRequest; `blob_bytes` of a blob follow it. At most `max_units` may come back."""

    model: Annotated[str, Field(max_length=128)]
    request: Annotated[bytes, Field(min_length=1, max_length=REQUEST_LIMIT_BYTES)]
    blob_bytes: Annotated[int, Field(ge=0, le=BLOB_LIMIT_BYTES)] = 0
    max_units: Annotated[int, Field(ge=1, le=UNITS_LIMIT)]
    mode: Mode = Mode.REALTIME
    privacy: Privacy = Privacy.SHARED
    salt: Annotated[bytes, Field(min_length=32, max_length=32)]


@value
class _Body:
    request: WorkRequest


def encode_request(request: WorkRequest) -> bytes:
    return encode(_Body, _Body(request=request))


def decode_request(data: bytes) -> WorkRequest:
    """Raises EncodingInvalid."""
    return decode(_Body, data, limit_bytes=REQUEST_LIMIT_BYTES).request


def work_of(request: WorkRequest) -> Work:
    return Work(request.kind)


def input_digest(salt: bytes, request: bytes, blob: bytes) -> bytes:
    """Salted hash of what is worked on: it binds the receipt to it without leaking a short one."""
    parts = hashlib.sha256(request).digest() + hashlib.sha256(blob).digest()
    return hashlib.sha256(b"octo/piecework/1" + salt + parts).digest()


NO_SAMPLING = hashlib.sha256(b"octo/piecework/no-sampling/1").digest()
"""Where a receipt of a chat names its sampling: what is not drawn token by token has its seed in the request."""
