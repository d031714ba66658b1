"""The ONNX engine: embeddings, reranking, and looking at images, by ONNX Runtime in confined children.

Lives here: what a manifest's words mean for it, and its settings. It never loads a graph itself: a model file is a
stranger's bytes, and only children touch them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from inference.devices import NO_CARDS, CardAccess
from inference.engines.texts import CONTEXT, TEXT_KINDS, TEXT_WORKS, check_numbers, text_meter
from inference.hardware import cpu_flags, isa_word
from inference.models.manifest import Format, Manifest, Role
from inference.work.engine import SupervisedEngine, open_work_engine
from inference.work.meters import LookMeter
from market.errors import ModelFileInvalid
from market.ports import Meter
from market.work import Work

WORKS: Final[Mapping[str, Work]] = {
    **TEXT_WORKS,
    "detect": Work.LOOK,
    "classify": Work.LOOK,
    "read": Work.LOOK,
}
_KINDS: Final[Mapping[str, str]] = {
    **TEXT_KINDS,
    "detection": "detect",
    "classification": "classify",
    "vision": "classify",
    "ocr": "read",
}
"""By a manifest's modality. `vision` is what `add` writes for a graph that takes `pixel_values`."""
_CPU_INFO: Final = Path("/proc/cpuinfo")
_BASE_BYTES: Final = 2 << 30
"""Libraries, threads' stacks and buffers of a call; 4,096 tokens in a layer of 1,024 take 16 MiB a buffer."""


def onnx_kind(manifest: Manifest) -> str:
    """What this engine does with a model: a key of WORKS. Raises ModelFileInvalid if it does nothing with it."""
    kind = _KINDS.get(manifest.modality.lower())
    if manifest.format != Format.ONNX or kind is None:
        raise ModelFileInvalid(
            f"the ONNX engine does not run {manifest.format} models of modality {manifest.modality!r}.",
            next_step=f"It runs ONNX models of {', '.join(sorted(_KINDS))}.",
        )
    return kind


def onnx_models(manifest: Manifest) -> tuple[str, ...]:
    """Names of the graphs in the order that the engine wants: what finds text before what reads it."""
    return tuple(sorted((file.name for file in manifest.weights), key=lambda name: ("rec" in name.lower(), name)))


def onnx_meter(manifest: Manifest, paths: Mapping[Role, Path]) -> Meter:
    """Blocking (0.1 s). `paths` has the manifest's tokenizer if it works on text; no weights are needed.

    Raises ModelFileInvalid.
    """
    work = WORKS[onnx_kind(manifest)]
    if work == Work.LOOK:
        return LookMeter(onnx_kind(manifest))
    return text_meter(manifest, paths, work)


@asynccontextmanager
async def open_onnx_engine(
    folder: Path,
    *,
    kind: str,
    models: Sequence[str],
    meter: Meter,
    context: int = CONTEXT,
    precision: str = "f32",
    workers: int = 1,
    threads: int = 1,
    slots: int = 64,
    providers: Sequence[str] = (),
    cards: CardAccess = NO_CARDS,
    loose: bool = False,
    memory_bytes: int = 0,
    hang_s: float = 60.0,
) -> AsyncIterator[SupervisedEngine]:
    """Start `workers` processes with the graphs `models` of `folder` (`inference.models.library.model_folder`).

    `precision` is the manifest's quantisation. `slots` jobs go to a worker at once, whose texts share calls:
    those that come while a call runs are in the next (waiting some ms for more gained nothing: 350 texts a second with
    and without, and cost a lone one those ms). `providers`: `cpu`, `cuda`, `tensorrt`, most wanted first; none named:
    CUDA if there are `cards` and the library has it, else the processor. (TensorRT takes minutes for each new shape of
    its input, so it is used by name alone.) `loose` lets texts share calls though the graph gives them other bytes
    then. `memory_bytes` for each worker, 0: three times the model and 2 GiB.
    Raises ModelFileInvalid, NodeMisconfigured. Must be opened on a thread that lives as long as the engine.
    """
    check_numbers(workers=workers, threads=threads, slots=slots, context=context)
    if kind not in WORKS or not models:
        raise ModelFileInvalid(f"the ONNX engine has no kind {kind!r}, or the model no graph.")
    size, isa = _facts(folder, models)
    options = {
        "kind": kind,
        "models": list(models),
        "context": context,
        "providers": list(providers) or (["cuda", "cpu"] if cards.devices else ["cpu"]),
        "fall_back": not providers,
        "engine_words": f"-{isa}/{precision.lower()}{'/loose' if loose else ''}",
        "loose": loose,
    }
    async with open_work_engine(
        "inference.work.onnx_runner",
        folder,
        works=frozenset((WORKS[kind],)),
        meter=meter,
        options=options,
        cards=cards,
        workers=workers,
        slots=slots,
        threads=threads,
        memory_bytes=memory_bytes or 3 * size + _BASE_BYTES,
        hang_s=hang_s,
    ) as engine:
        yield engine


def _facts(folder: Path, models: Sequence[str]) -> tuple[int, str]:
    """(bytes of all graphs and what lies beside them, the processor's instruction set in a word)."""
    try:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for name in models:
            (folder / name).stat()
        return size, isa_word(cpu_flags(_CPU_INFO.read_text() if _CPU_INFO.exists() else ""))
    except OSError as error:
        raise ModelFileInvalid(
            f"the model cannot be read: {error.strerror}.", next_step="Pull the model again."
        ) from None
