"""What a model file says about itself, read from its head alone: nothing is loaded, mapped or run.

Lives here: one answer for all formats, and the words for data types. Knows no manifest, no name of a model and no
store. What a file says is its author's claim; only what an engine does with it later is a fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from inference.models.formats import recognise
from inference.models.gguf_metadata import GgufHead, read_gguf_head
from inference.models.manifest import Format
from inference.models.onnx_header import read_onnx_header
from inference.models.safetensors_header import read_safetensors_header
from inference.models.transformers_config import KV_VALUE_BYTES
from market.errors import ModelFileInvalid
from market.values import value

UNKNOWN = "unknown"
_EMBEDDERS = frozenset(
    (
        "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "eurobert",
        "gemma-embedding", "llama-embed", "t5encoder",
    )
)  # fmt: skip
"""GGUF architectures that write no text."""
_HEADS_LIMIT = 1 << 20


@value
class FileFacts:
    """Empty texts and zeros are what the file does not say. `kv_token_bytes` is what one token's keys and values
    take in all `layers`; `external` names files beside this one that hold weights of it."""

    format: Format
    name: str = ""
    architecture: str = ""
    quantisation: str = UNKNOWN
    licence: str = ""
    modality: str = ""
    context: int = 0
    parameters: int = 0
    kv_token_bytes: int = 0
    layers: int = 0
    external: tuple[str, ...] = ()


def inspect_file(path: Path, name: str = "") -> FileFacts:
    """The facts of a weights file that calls itself `name` (its own name if empty). Blocking, bounded: a head of at
    most 128 MB, some seconds for the worst.

    A pickle is recognised and never opened. Raises ModelFileInvalid for a file that is torn, of no format of ours, or
    of another format than its name says; OSError.
    """
    format = recognise(path, name or path.name)
    if format == Format.GGUF:
        return _of_gguf(path)
    if format == Format.SAFETENSORS:
        header = read_safetensors_header(path)
        return FileFacts(format=format, quantisation=_dominant(header.bytes_by_dtype), parameters=header.parameters)
    if format == Format.ONNX:
        return _of_onnx(path)
    if format == Format.CTRANSLATE2:
        with path.open("rb") as file:
            spec = file.read(64)[6:].split(b"\0")[0].decode()
        return FileFacts(
            format=format, architecture=spec, modality="transcription" if spec.startswith("Whisper") else ""
        )
    return FileFacts(format=format)


def _of_gguf(path: Path) -> FileFacts:
    head = read_gguf_head(path)
    _check_tensors(head, path)
    fields: dict[str, Any] = head.fields
    arch = _text(fields, "general.architecture")
    return FileFacts(
        format=Format.GGUF,
        name=_text(fields, "general.name"),
        architecture=arch,
        quantisation=_gguf_quantisation(fields.get("general.file_type")),
        licence=_text(fields, "general.license"),
        modality=_gguf_modality(arch, fields.get(f"{arch}.pooling_type")),
        context=_number(fields, f"{arch}.context_length"),
        parameters=sum(_product(tensor.shape) for tensor in head.tensors),
        kv_token_bytes=_kv_token_bytes(fields, arch),
        layers=min(_number(fields, f"{arch}.block_count"), _HEADS_LIMIT),
    )


def _gguf_modality(arch: str, pooling: object) -> str:
    """A file that says how its hidden states are pooled is one of an encoder, or of a decoder made into one."""
    if pooling == gguf.PoolingType.RANK:
        return "rerank"
    pools = pooling not in (None, gguf.PoolingType.NONE)
    return "embedding" if arch in _EMBEDDERS or pools else "text"


def _check_tensors(head: GgufHead, path: Path) -> None:
    """No tensor may lie behind the end of the file: a torn download is told here, not by a crash of the engine."""
    room = path.stat().st_size - head.data_at
    for tensor in head.tensors:
        try:
            block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
        except (ValueError, KeyError):
            block, block_bytes = 1, 0  # a type newer than our library: the engine decides
        if tensor.offset + _product(tensor.shape) // block * block_bytes > room:
            raise ModelFileInvalid(
                f"{path.name} is cut off: its tensors need more bytes than it has.", next_step="Get the file again."
            )


def _kv_token_bytes(fields: Mapping[str, Any], arch: str) -> int:
    heads = _number(fields, f"{arch}.attention.head_count")
    kv_heads = fields.get(f"{arch}.attention.head_count_kv", heads)
    width = _number(fields, f"{arch}.embedding_length") // heads if heads else 0
    widths = [_number(fields, f"{arch}.attention.{part}_length") or width for part in ("key", "value")]
    layers = min(_number(fields, f"{arch}.block_count"), _HEADS_LIMIT)
    per_layer = kv_heads if isinstance(kv_heads, list) else [kv_heads] * layers
    return sum(_as_number(count) for count in per_layer) * sum(widths) * KV_VALUE_BYTES


def _of_onnx(path: Path) -> FileFacts:
    header = read_onnx_header(path)
    return FileFacts(
        format=Format.ONNX,
        quantisation=_dominant(header.bytes_by_dtype),
        modality=_onnx_modality(header.inputs, header.outputs),
        parameters=header.parameters,
        kv_token_bytes=header.cache_token_bytes,
        external=header.external,
    )


def _onnx_modality(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> str:
    """By the names that exporters give; empty if they say nothing."""
    if "pixel_values" in inputs:
        return "vision"
    if "input_features" in inputs:
        return "transcription"
    if "input_ids" in inputs and "logits" in outputs:  # without a past it may judge, and not write
        return "text" if any(name.startswith("past_key_values.") for name in inputs) else ""
    if "input_ids" in inputs:
        return "embedding"
    return ""


def _gguf_quantisation(file_type: object) -> str:
    names = {int(kind): kind.name for kind in gguf.LlamaFileType}
    name = names.get(file_type, UNKNOWN) if isinstance(file_type, int) else UNKNOWN
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def _dominant(bytes_by_dtype: Mapping[str, int]) -> str:
    return max(bytes_by_dtype, key=lambda dtype: bytes_by_dtype[dtype], default=UNKNOWN)


def _text(fields: Mapping[str, Any], key: str) -> str:
    found = fields.get(key, "")
    return found if isinstance(found, str) else ""


def _number(fields: Mapping[str, Any], key: str) -> int:
    return _as_number(fields.get(key, 0))


def _as_number(found: object) -> int:
    return found if isinstance(found, int) and 0 <= found < 1 << 40 else 0


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for dimension in shape:
        product *= dimension
    return product
