"""What a model was on this machine when it was last loaded, and what one needs that never was.

Lives here: the figures, the file in the data folder that keeps them, and the estimate of memory before anybody
measured. With them a model can be offered and quoted truly without being loaded. Loads nothing.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import structlog
from pydantic import Field

from inference.engines.llama_text import is_llama_text
from inference.engines.onnx_llm import is_onnx_llm
from inference.hardware import Hardware
from inference.models.compatibility import EngineKind
from inference.models.manifest import Manifest
from inference.speed import Speed
from inference.tuning import Setup
from market.errors import DiskFull, EncodingInvalid, NodeMisconfigured
from market.parts import Serving
from market.ports import EngineInfo
from market.values import from_plain, to_plain, value
from market.work import Work
from node.folder import write_whole
from node.measurements import engine_version, hardware_words, key_of
from node.serving_onnx import onnx_llm_bytes
from node.settings import Settings

FILE: Final = "figures.json"
_LIMIT_BYTES: Final = 1 << 20
_ENTRIES_LIMIT: Final = 256
_ENGINE_BYTES: Final = 96 << 20
"""Graph and output buffers of a language model; 60 MB were seen for the default one. `inference.models.draft` counts
the same into a manifest's needs."""
_WORKER_BYTES: Final = 40 << 20
"""Python with llama.cpp: 119 MiB were measured beside weights and slots, the buffers among them."""
_SLOT_TOKENS: Final = 2048
"""The context that a manifest's needs are reckoned with."""
_VLLM_KV_BYTES: Final = 1 << 30
_VLLM_OVER_RAY_BYTES: Final = 2 << 30
"""vLLM's server and scheduler, 1.2 GB, and what a worker takes beside its part, 0.7: seen with 0.32.0."""
_CHILD_BYTES: Final = 64 << 20
"""Python and onnxruntime: 49 MB were measured around a model of some kilobytes."""

log = structlog.get_logger()


@value
class Figures:
    """`key` says by hardware, settings and version what they hold for; `size_bytes` is the most that it was seen to
    take, `tokens_per_s` and `first_token_ms` what one stream reached."""

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    engine: Annotated[str, Field(min_length=1, max_length=128)]
    context: Annotated[int, Field(ge=1, lt=2**31)]
    slots: Annotated[int, Field(ge=1, le=1 << 16)]
    features: Annotated[tuple[Annotated[str, Field(max_length=32)], ...], Field(max_length=16)]
    isolation: Annotated[str, Field(max_length=64)]
    leaves_host: bool
    works: Annotated[tuple[Work, ...], Field(min_length=1, max_length=8)]
    tokens_per_s: Annotated[int, Field(ge=0, lt=2**31)]
    size_bytes: Annotated[int, Field(ge=0, lt=2**53)]
    first_token_ms: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def info(self) -> EngineInfo:
        return EngineInfo(name=self.engine, context=self.context, slots=self.slots, features=frozenset(self.features))

    def speed(self) -> Speed:
        return Speed(tokens_per_s=self.tokens_per_s, first_token_ms=self.first_token_ms)


@value
class _Book:
    version: Annotated[int, Field(ge=1, le=1)] = 1
    entries: Annotated[tuple[Figures, ...], Field(max_length=_ENTRIES_LIMIT)] = ()


def figures_key(hardware: Hardware, setup: Setup, settings: Settings) -> str:
    """What the figures depend on: another machine, other settings or another engine find nothing."""
    words = f"{engine_version()} {setup.workers} {setup.threads} {setup.slots} {settings.engine.context}"
    words += f" {settings.engine.gpu_layers}"
    return key_of(hardware_words(hardware), setup.model, f"{words} {settings.vllm!r}")


def figures_of(key: str, serving: Serving, size_bytes: int) -> Figures:
    """Of a model that is loaded."""
    info, offer = serving.engine.info, serving.model
    return Figures(
        key=key,
        engine=info.name,
        context=info.context,
        slots=info.slots,
        features=tuple(sorted(info.features)),
        isolation=getattr(serving.engine, "isolation", "none")[:64],
        leaves_host=getattr(serving.engine, "leaves_host", False),
        works=offer.works,
        tokens_per_s=offer.tokens_per_s,
        size_bytes=size_bytes,
        first_token_ms=offer.first_token_ms,
    )


class FiguresBook:
    """All figures by key; one node at a time has the folder."""

    def __init__(self, data_dir: Path) -> None:
        """Blocking. A file that is torn, or of a later version, counts as none."""
        self._path = data_dir / FILE
        self._writing = asyncio.Lock()
        self._known: dict[str, Figures] = {}
        try:
            with self._path.open("rb") as file:
                book = from_plain(_Book, json.loads(file.read(_LIMIT_BYTES)))
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError, EncodingInvalid) as error:
            log.warning("figures_unreadable", file=FILE, why=type(error).__name__)
            return
        self._known = {figures.key: figures for figures in book.entries}

    def get(self, key: str) -> Figures | None:
        return self._known.get(key)

    async def keep(self, figures: Figures) -> None:
        """A disk that is full costs the figures, not the model."""
        if self._known.get(figures.key) == figures:
            return
        self._known.pop(figures.key, None)
        self._known[figures.key] = figures
        async with self._writing:
            book = _Book(entries=tuple(self._known.values())[-_ENTRIES_LIMIT:])
            data = (json.dumps(to_plain(_Book, book), indent=2) + "\n").encode()
            try:
                await asyncio.to_thread(write_whole, self._path, data)
            except (DiskFull, NodeMisconfigured) as error:
                log.warning("figures_not_kept", why=error.message)


def expected_bytes(manifest: Manifest, kind: EngineKind, setup: Setup, settings: Settings) -> int:
    """What a model that was never loaded should take here: weights, buffers, and keys and values of all slots. Over Ray
    they lie where the cluster puts them, which alone knows how much there is."""
    weights = sum({file.cid: file.size_bytes for file in manifest.weights}.values())
    if kind is EngineKind.VLLM:
        whole = max(manifest.needs.min_ram_bytes, weights) + (settings.vllm.memory or _VLLM_KV_BYTES)
        return min(whole, _VLLM_OVER_RAY_BYTES) if settings.vllm.ray else whole
    if is_llama_text(manifest):
        return (settings.engine.workers or 1) * (max(manifest.needs.min_ram_bytes, weights) + _CHILD_BYTES)
    if is_onnx_llm(manifest):
        return onnx_llm_bytes(manifest, setup, settings)
    if kind is not EngineKind.LLAMA_CPP:
        return max(manifest.needs.min_ram_bytes, weights) + _CHILD_BYTES
    one_slot = max(0, manifest.needs.min_ram_bytes - weights - _ENGINE_BYTES)
    context = min(settings.engine.context, manifest.context or settings.engine.context)
    slot = one_slot * context // min(_SLOT_TOKENS, manifest.context or _SLOT_TOKENS)
    return setup.workers * (weights + _ENGINE_BYTES + _WORKER_BYTES + setup.slots * slot)


def slots_that_fit(manifest: Manifest, setup: Setup, settings: Settings, budget_bytes: int) -> int:
    """In one worker of a language model; 0: not even one slot fits."""
    for slots in range(setup.slots, 0, -1):
        smaller = replace(setup, workers=1, slots=slots)
        if expected_bytes(manifest, EngineKind.LLAMA_CPP, smaller, settings) <= budget_bytes:
            return slots
    return 0


def size_words(count: int) -> str:
    return f"{count / 10**9:.1f} GB" if count >= 10**9 else f"{count / 10**6:.0f} MB"
