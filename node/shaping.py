"""How the engine of one model is cut on this machine: what settings and tuner say, made to fit, with layers on cards.

Lives here: which facts are asked for, and when a card counts. The sums are `inference.shape`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from inference.devices import NO_CARDS, CardAccess, card_access
from inference.hardware import Hardware
from inference.models.compatibility import HERE, EngineKind, Machine, compatibility
from inference.models.inspection import inspect_file
from inference.models.manifest import Format, Manifest
from inference.offload import supports_offload
from inference.quantization.fitting import what_would_fit
from inference.shape import ALL_LAYERS, HOST_BYTES, Burden, in_memory, on_cards
from inference.tuning import Setup
from market.values import value
from node.settings import EngineSettings

log = structlog.get_logger()

_LARGEST: Final = Machine(ram_bytes=1 << 62, vram_bytes=1 << 62, accelerators=frozenset(("cuda",)))
_ROUNDED_BYTES: Final = 1 << 20
"""A manifest's needs are in whole MiB, by which `node.figures` reckons a slot."""


@value
class Shape:
    """`setup` is how many workers, threads and slots; `gpu_layers` of the model go to the cards, -1: all;
    `vram_bytes` is what they have for it."""

    setup: Setup
    gpu_layers: int = 0
    vram_bytes: int = 0

    def in_ram(self, expected_bytes: int) -> int:
        """What of it is left to the machine's own memory."""
        return min(expected_bytes, HOST_BYTES) if self.gpu_layers == ALL_LAYERS else expected_bytes


async def usable(
    settings: EngineSettings,
    manifest: Manifest,
    hardware: Hardware,
    *,
    offload: Callable[[], Awaitable[bool]] = supports_offload,
) -> Hardware:
    """The machine as this model's engine can use it: without cards, if the settings want none, or llama.cpp was built
    for none. Settings that name layers are believed: the engine then says what is missing."""
    asked = settings.gpu_layers
    if not hardware.gpus or asked == 0:
        return replace(hardware, gpus=())
    if manifest.format != Format.GGUF or asked is not None or await offload():
        return hardware
    log.info("cards_not_used", why="llama.cpp was built without support for them", gpus=len(hardware.gpus))
    return replace(hardware, gpus=())


async def cards_of(hardware: Hardware) -> CardAccess:
    """What an engine's children must reach to compute on the cards that are usable."""
    return await asyncio.to_thread(card_access) if hardware.gpus else NO_CARDS


async def shape_of(
    setup: Setup, settings: EngineSettings, hardware: Hardware, manifest: Manifest, *, weights: Path, ram_bytes: int
) -> Shape:
    """`hardware` as it is usable, `ram_bytes` what may be taken of its memory. 0.1 s, in a thread.

    Raises ModelFileInvalid for a file that is none."""
    facts = await asyncio.to_thread(inspect_file, weights, weights.name)
    burden = Burden(
        weights_bytes=sum(file.size_bytes for file in manifest.weights),
        slot_bytes=facts.kv_token_bytes * context_of(settings, manifest) + _ROUNDED_BYTES,
        layers=facts.layers,
    )
    cards = tuple(gpu.vram_bytes for gpu in hardware.gpus)
    named = settings.workers is not None
    if settings.gpu_layers:
        cut = setup if named else replace(setup, workers=1)
        return Shape(setup=cut, gpu_layers=settings.gpu_layers, vram_bytes=sum(cards))
    if cards:
        cut, layers = on_cards(setup, burden, vram_bytes=cards, workers_named=named)
        if layers:
            threads = cut.threads if layers == ALL_LAYERS or settings.threads else hardware.cores
            return Shape(setup=replace(cut, threads=threads), gpu_layers=layers, vram_bytes=sum(cards))
    if named:
        return Shape(setup=setup)
    slots_named = settings.slots is not None
    return Shape(setup=in_memory(setup, burden, ram_bytes=ram_bytes, cores=hardware.cores, slots_named=slots_named))


def shape_in_vllm(setup: Setup, hardware: Hardware) -> Shape:
    """Where there are cards vLLM lays a model out on them by itself, all of it, and says itself what does not fit."""
    return Shape(
        setup=setup,
        gpu_layers=ALL_LAYERS if hardware.gpus else 0,
        vram_bytes=sum(gpu.vram_bytes for gpu in hardware.gpus),
    )


def context_of(settings: EngineSettings, manifest: Manifest) -> int:
    """Tokens of a slot."""
    return min(settings.context, manifest.context or settings.context)


def would_fit(
    manifest: Manifest, machine: Machine, here: Mapping[str, Manifest], engines: Collection[EngineKind]
) -> str:
    """What to run instead, if all that the model lacks here is memory; else empty. `here` are this store's models."""

    def runs(on: Machine) -> bool:
        return any(fit.ok for fit in compatibility(manifest, here=on, engines=engines) if fit.tier == HERE)

    return what_would_fit(manifest, machine, here.values()) if runs(_LARGEST) and not runs(machine) else ""
