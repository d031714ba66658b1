"""How much room and memory a quantisation takes, reckoned from the source's head alone, before anything is run.

Lives here: the sums, for each format. Must not know: processes, stores. Blocking, bounded as the head readers are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from inference.models.formats import recognise
from inference.models.gguf_metadata import GgufTensor, read_gguf_head
from inference.models.manifest import Format
from inference.models.onnx_header import read_onnx_header
from inference.quantization.convert import layout_of
from inference.quantization.targets import Target, parse_target
from market.errors import ModelFileInvalid, RequestInvalid
from market.values import value

_SHARD: Final = re.compile(r"-00001-of-(\d{5})\.gguf$")
_K_ROW: Final = 256
_HEAD_BITS: Final = 8.5
"""Embeddings and the last layer keep more bits than the rest: Q6_K, or Q8_0 where rows are not multiples of 256."""
_PROTOBUF_LIMIT_BYTES: Final = 2 * 1000**3
_ONNX_COPIES: Final = 8
"""Of the source, in memory: parsed, shapes inferred, written out and read back, and the result; 5.5 were seen."""
_STREAM_BYTES: Final = 256 * 1024 * 1024
_OVERHEAD_BYTES: Final = 768 * 1024 * 1024
"""Python, the libraries and their threads' stacks, which count as soon as they are set aside."""


@value
class Plan:
    """`source_bytes` of all shards; `target_bytes` is an estimate, exact for safetensors; `memory_bytes` is what the
    child may take."""

    format: Format
    to: str
    sources: tuple[Path, ...]
    source_bytes: int
    target_bytes: int
    memory_bytes: int


def plan_quantisation(source: Path, to: str) -> Plan:
    """`source` is a weights file, of GGUF shards the first. Raises ModelFileInvalid, RequestInvalid, OSError."""
    format = recognise(source, source.name)
    target = parse_target(to, format)
    sources = _shards(source) if format == Format.GGUF else (source,)
    if format == Format.GGUF:
        size, memory = _gguf(sources, target)
    elif format == Format.SAFETENSORS:
        size, memory = layout_of(source, target.word).file_bytes, _STREAM_BYTES
    else:
        size, memory = _onnx(source, target)
    return Plan(
        format=format,
        to=target.word,
        sources=sources,
        source_bytes=sum(path.stat().st_size for path in sources),
        target_bytes=size,
        memory_bytes=memory + _OVERHEAD_BYTES,
    )


def _shards(source: Path) -> tuple[Path, ...]:
    found = _SHARD.search(source.name)
    if found is None:
        return (source,)
    stem, count = source.name[: found.start()], int(found[1])
    shards = tuple(source.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1))
    if missing := [path.name for path in shards if not path.is_file()]:
        raise ModelFileInvalid(f"{missing[0]} is missing beside {source.name}.", next_step="Pull the whole model.")
    return shards


def _gguf(sources: Sequence[Path], target: Target) -> tuple[int, int]:
    heads = [read_gguf_head(path) for path in sources]
    tensors = [tensor for head in heads for tensor in head.tensors]
    if not tensors:
        raise ModelFileInvalid(f"{sources[0].name} has no tensors.", next_step="Pull the model again.")
    size = sum(_bits(tensor, target) * math.prod(tensor.shape) / 8 + 32 for tensor in tensors)
    largest = max(math.prod(tensor.shape) for tensor in tensors)
    # Unpacked to float32, and the packed result, of one tensor at a time.
    return int(size) + sum(head.data_at for head in heads), 8 * largest


def _bits(tensor: GgufTensor, target: Target) -> float:
    if len(tensor.shape) < 2 or not tensor.name.endswith("weight"):
        return 32
    row = tensor.shape[0]
    bits = target.fallback_bits if row % _K_ROW else target.bits
    if row % 32:
        return 16
    return max(bits, _HEAD_BITS) if tensor.name in ("token_embd.weight", "output.weight") else bits


def _onnx(source: Path, target: Target) -> tuple[int, int]:
    header = read_onnx_header(source)
    size = source.stat().st_size
    if header.external or size > _PROTOBUF_LIMIT_BYTES:
        raise RequestInvalid(
            f"{source.name} keeps weights in other files, or is over 2 GB.",
            next_step="Merge it into one file of at most 2 GB, or take a smaller model.",
        )
    floats = sum(count for kind, count in header.bytes_by_dtype.items() if kind in ("F32", "F16", "F64"))
    width = 2 if header.bytes_by_dtype.get("F16", 0) * 2 > floats else 4
    # INT4 leaves embeddings as they are: whatever is not multiplied with stays.
    kept = 0.6 if target.word == "INT4" else 0.05
    packed = floats / width * target.bits / 8
    return int(size - floats + packed + kept * floats), _ONNX_COPIES * size
