"""What a node and its engine worker say to each other, and how that becomes bytes on their socket pair.

Lives here: frames (4-byte big-endian length + DAG-CBOR), the settings and facts they open with. Must not
know: llama.cpp, asyncio, what a job is for.

Node to worker: settings, then ["run", job number, Order], ["cancel", job], ["read", job, tokens read in all].
Worker to node: ["ready", facts] or ["fail", code, message, next step], then ["step", [[job, token or -1, finish,
error, cached, logprobs], …]] for each decode call (see `inference.batch.Emission`), ["alive"] while it works
without tokens. Neither side waits for an answer; the end of the stream is goodbye.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import libipld
from pydantic import Field

from market.errors import EncodingInvalid
from market.task import Sampling
from market.values import decode_plain, value

LIMIT_BYTES: Final = 4 * 1024 * 1024
"""A prompt of 131,072 tokens is 512 KiB; a step of 60 jobs 2 KiB."""

CHUNK_LIMIT_S: Final = 3600.0
"""Nothing takes so long for 64 rows, and is given the time to load."""

_LENGTH: Final = struct.Struct(">I")


@value
class WorkerSettings:
    """`memory_bytes` is what this worker may use; `core` pins it to one core, -1 leaves it free; `gpu_layers` go to the
    GPU, -1 means all; `draft`: a lone stream's tokens are guessed, which changes none. For ONNX Runtime: `providers`,
    most wanted first, of which those that the library lacks are left out if it may `fall_back`; `engine_words` is
    what the engine class says of processor and precision."""

    parent: int
    model: str
    slots: int
    context: int
    threads: int
    window: int
    memory_bytes: int
    core: int
    gpu_layers: int = 0
    draft: bool = True
    library: Literal["llama.cpp", "onnxruntime"] = "llama.cpp"
    providers: tuple[str, ...] = ()
    fall_back: bool = False
    engine_words: str = ""


@value
class WorkerFacts:
    """What a worker reports once the model is loaded. `engine` is the engine class; `vocabulary` its size; `chunk_s`
    what its first 64 rows took; `grammars` whether its library can keep a text to one."""

    engine: str
    vocabulary: int
    isolation: str
    chunk_s: Annotated[float, Field(ge=0, le=CHUNK_LIMIT_S, allow_inf_nan=False, strict=True)]
    grammars: bool = True


@value
class Order:
    """A job as a worker hears of it; see `inference.batch.Work`. Tokens are packed int32, `scope` is a hash."""

    prompt: bytes
    sampling: Sampling
    max_tokens: int
    end_tokens: tuple[int, ...] = ()
    priority: int = 0
    generated: bytes = b""
    read: int = 0
    scope: bytes = b""
    logprobs: int = -1
    grammar: str = ""


def pack(message: Sequence[Any]) -> bytes:
    body = bytes(libipld.encode_dag_cbor(message))
    if len(body) > LIMIT_BYTES:
        raise EncodingInvalid(f"a frame of {len(body)} bytes is over the limit of {LIMIT_BYTES}.")
    return _LENGTH.pack(len(body)) + body


def pack_tokens(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()


def unpack_tokens(data: bytes) -> list[int]:
    tokens = array("i")
    tokens.frombytes(data)
    return tokens.tolist()


class FrameBuffer:
    """Bytes as they arrive, frames as they become whole."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Raises EncodingInvalid for a frame over the limit, or one that is not DAG-CBOR."""
        self._data += data
        while len(self._data) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._data)
            if size > LIMIT_BYTES:
                raise EncodingInvalid(f"a frame of {size} bytes is over the limit of {LIMIT_BYTES}.")
            end = _LENGTH.size + size
            if len(self._data) < end:
                return
            body = bytes(self._data[_LENGTH.size : end])
            del self._data[:end]
            yield decode_plain(body, limit_bytes=LIMIT_BYTES)
