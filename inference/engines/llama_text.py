"""Embedding and reranking by llama.cpp, from GGUF files, in confined children.

Lives here: which manifests it runs, and its settings. It never loads a model itself: a model file is a stranger's
bytes, and only children touch them. Chats with GGUF models are `llama_cpp`'s.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from inference.engines.texts import CONTEXT, TEXT_KINDS, TEXT_WORKS, check_numbers, text_meter
from inference.modelfile import check_gguf
from inference.models.manifest import Format, Manifest, Role
from inference.work.engine import SupervisedEngine, open_work_engine
from market.errors import ModelFileInvalid
from market.ports import Meter

_BASE_BYTES: Final = 2 << 30
"""Libraries, threads' stacks and buffers of a call; 8,192 rows ask for a mask of 400 MB."""


def is_llama_text(manifest: Manifest) -> bool:
    """Whether this engine is for it, and not the one for chats."""
    return manifest.format == Format.GGUF and manifest.modality.lower() in TEXT_KINDS


def llama_text_kind(manifest: Manifest) -> str:
    """`embed` or `rerank`. Raises ModelFileInvalid for another model."""
    if not is_llama_text(manifest):
        raise ModelFileInvalid(
            f"{manifest.name} is a {manifest.format} model of modality {manifest.modality!r}: it does not embed.",
            next_step=f"GGUF models of modality {', '.join(sorted(TEXT_KINDS))} do.",
        )
    return TEXT_KINDS[manifest.modality.lower()]


def llama_text_meter(manifest: Manifest, paths: Mapping[Role, Path]) -> Meter:
    """Blocking (0.1 s). `paths` has the manifest's tokenizer; no weights are needed. Raises ModelFileInvalid."""
    return text_meter(manifest, paths, TEXT_WORKS[llama_text_kind(manifest)])


@asynccontextmanager
async def open_llama_text_engine(
    folder: Path,
    *,
    kind: str,
    model: str,
    meter: Meter,
    tokenizer: str = "tokenizer.json",
    context: int = CONTEXT,
    workers: int = 1,
    threads: int = 1,
    slots: int = 64,
    loose: bool = False,
    memory_bytes: int = 0,
    hang_s: float = 60.0,
) -> AsyncIterator[SupervisedEngine]:
    """Start `workers` processes with the GGUF file `model` of `folder` (`inference.models.library.model_folder`), the
    first of its shards if it has several.

    `slots` jobs go to a worker at once, whose texts share calls. `loose` lets more texts share one (512 tokens) though
    their vectors are then the same up to rounding only. `memory_bytes` for each worker, 0: twice the model and 2 GiB
    (the weights are mapped; kernels keep a copy of their own beside the file).
    Raises ModelFileInvalid, NodeMisconfigured. Must be opened on a thread that lives as long as the engine.
    """
    check_numbers(workers=workers, threads=threads, slots=slots, context=context)
    if kind not in TEXT_WORKS:
        raise ModelFileInvalid(f"the llama.cpp engine has no kind {kind!r}.")
    check_gguf(folder / model)
    options = {"kind": kind, "model": model, "tokenizer": tokenizer, "context": context, "loose": loose}
    async with open_work_engine(
        "inference.work.llama_runner",
        folder,
        works=frozenset((TEXT_WORKS[kind],)),
        meter=meter,
        options=options,
        workers=workers,
        slots=slots,
        threads=threads,
        memory_bytes=memory_bytes or 2 * _size_bytes(folder) + _BASE_BYTES,
        hang_s=hang_s,
    ) as engine:
        yield engine


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.gguf"))
