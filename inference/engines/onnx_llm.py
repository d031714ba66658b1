"""Small language models in ONNX: ONNX Runtime in worker processes, with our own continuous batching and sampler.

Lives here: which file of a folder is the decoder, what its head must say, and the settings of ONNX Runtime for
`batched`. It never loads a graph itself: a model file is a stranger's bytes, and only workers touch them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from inference.devices import NO_CARDS, CardAccess
from inference.engines.batched import BatchedEngine, open_batched_engine
from inference.hardware import available_ram, cpu_flags, isa_word
from inference.models.manifest import Format, Manifest
from inference.models.onnx_header import read_onnx_header
from inference.orders import WorkerSettings
from market.errors import ModelFileInvalid, NodeMisconfigured

_CPU_INFO: Final = Path("/proc/cpuinfo")
CACHE_COPIES: Final = 3
"""Of keys and values: a sequence's own, and what goes into and comes out of a call."""


def is_onnx_llm(manifest: Manifest) -> bool:
    """Whether a model is for this engine: ONNX that writes text."""
    return manifest.format == Format.ONNX and manifest.modality == "text"


@asynccontextmanager
async def open_onnx_llm_engine(
    model: Path,
    *,
    workers: int = 1,
    threads: int = 1,
    slots: int = 8,
    context: int = 2048,
    window: int = 64,
    precision: str = "f32",
    providers: Sequence[str] = (),
    cards: CardAccess = NO_CARDS,
    hang_s: float | None = None,
) -> AsyncIterator[BatchedEngine]:
    """Start `workers` processes with the decoder `model`, an ONNX graph with a key-value cache, each with `slots` jobs
    at once and `context` tokens for each. Its weights may be in files beside it, and nowhere else.

    `precision` is the manifest's quantisation. `providers`: `cpu`, `cuda`, `tensorrt`, most wanted first; none named:
    CUDA if there are `cards` and the library has it, else the processor. The rest is as in `open_llama_engine`.
    Raises ModelFileInvalid with the reason, NodeMisconfigured. Must be opened on a thread that lives as long as the
    engine.
    """
    settings = WorkerSettings(
        parent=os.getpid(),
        model=_checked(model),
        slots=slots,
        context=context,
        threads=threads,
        window=window,
        memory_bytes=available_ram() // max(1, workers),
        core=-1,
        library="onnxruntime",
        providers=tuple(providers) or (("cuda", "cpu") if cards.devices else ("cpu",)),
        fall_back=not providers,
        engine_words=f"{_isa()}/{precision.lower()}",
    )
    async with open_batched_engine(settings, workers=workers, hang_s=hang_s) as engine:
        yield engine


def _isa() -> str:
    """A worker may not look for itself."""
    return isa_word(cpu_flags(_CPU_INFO.read_text() if _CPU_INFO.exists() else ""))


def _checked(model: Path) -> str:
    """The absolute path: the worker sees the folder of that file, and nothing else."""
    try:
        path = model.resolve()
        _check_beside(path, read_onnx_header(path).external)
    except OSError as error:
        raise NodeMisconfigured(
            f"cannot read the model {model}: {error.strerror}.", next_step="Pull it again, or correct the path."
        ) from None
    return str(path)


def _check_beside(model: Path, external: Sequence[str]) -> None:
    """The library reads whatever path a graph names: it must be a file beside it, and no link to elsewhere."""
    folder = model.parent
    for location in external:
        path = PurePosixPath(location)
        beside = folder / path
        if path.is_absolute() or ".." in path.parts or not beside.resolve().is_relative_to(folder):
            raise ModelFileInvalid(
                f"{model.name} keeps weights in {location[:80]!r}, outside of its folder.",
                next_step="Do not trust where it came from; get the model from its publisher.",
            )
        if not beside.is_file():
            raise ModelFileInvalid(
                f"{model.name} keeps weights in {location[:80]!r}, which is not there.",
                next_step="Get that file too, and put it beside the graph.",
            )
