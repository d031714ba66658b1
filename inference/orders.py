"""What a node and its engine worker say to each other, in frames without parts (`inference.frames`).

Lives here: the settings and facts they open with, and a job as a worker hears of it. Must not know: llama.cpp,
asyncio, what a job is for.

Node to worker, after the settings: ["run", job number, Order], ["cancel", job], ["read", job, tokens read in all].
Worker to node, once it is ready: ["step", [[job, token or -1, finish, error, cached, logprobs], …]] for each decode
call (see `inference.batch.Emission`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field

from inference.frames import Dialect, Limits
from market.task import Sampling
from market.values import value

LIMITS: Final = Limits(4 * 1024 * 1024)
"""Both ways. A prompt of 131,072 tokens is 512 KiB; a step of 60 jobs 2 KiB."""

CHUNK_LIMIT_S: Final = 3600.0
"""Nothing takes so long for 64 rows, and is given the time to load."""


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


def pack_tokens(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()


def unpack_tokens(data: bytes) -> list[int]:
    tokens = array("i")
    tokens.frombytes(data)
    return tokens.tolist()


DIALECT: Final = Dialect(settings=WorkerSettings, facts=WorkerFacts, to_child=LIMITS, to_node=LIMITS)
