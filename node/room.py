"""How much memory models may have here, what a loaded one takes, and what to say of one that can never fit.

Lives here: numbers and advice. Which models are in memory is `node.model_cache`'s to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final

import psutil

from inference.engines.llama_text import is_llama_text
from inference.hardware import available_ram
from inference.measuring import memory_of
from inference.models.compatibility import EngineKind, Machine
from inference.models.manifest import Manifest
from inference.quantization.fitting import what_would_fit
from inference.tuning import Setup
from market.errors import EngineFailed, NodeMisconfigured
from market.parts import Serving
from node.figures import size_words, slots_that_fit
from node.settings import Settings

_RESERVE_BYTES: Final = 512 << 20
"""Left to the rest of the machine; of a small one a sixteenth."""


def memory_budget(settings: Settings, ram_bytes: int) -> Callable[[int], int]:
    """What all models together may take, given what they have now: the setting, or what is free beside the reserve."""
    fixed = settings.engine.memory
    if fixed is not None:
        return lambda _held: fixed
    reserve = min(_RESERVE_BYTES, ram_bytes // 16)
    return lambda held: held + max(0, available_ram() - reserve)


async def weigh(serving: Serving) -> int | None:
    """What the engine's processes hold, shared pages counted once; None if it has none that we know of."""
    pids = tuple(getattr(serving.engine, "worker_pids", ()))
    return await asyncio.to_thread(_memory_of_trees, pids) if pids else None


def _memory_of_trees(pids: Sequence[int]) -> int:
    below: list[int] = []
    for pid in pids:
        try:
            below += [child.pid for child in psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            continue
    return memory_of((*pids, *below))


def check_room(
    manifest: Manifest,
    kind: EngineKind,
    setup: Setup,
    settings: Settings,
    *,
    size_bytes: int,
    budget: int,
    here: Collection[Manifest],
) -> None:
    """Raises for a model that is too large even alone, with what would fit of those that are `here`: NodeMisconfigured
    if the settings say how much there is, EngineFailed if that is what is free now, for that may change."""
    if size_bytes <= budget:
        return
    advice, words = [], ""
    if kind is EngineKind.LLAMA_CPP and not is_llama_text(manifest):
        words = f" for {setup.workers} x {setup.slots} tasks of {settings.engine.context} tokens"
        if slots := slots_that_fit(manifest, setup, settings, budget):
            advice.append(f"Set engine.workers to 1 and engine.slots to {slots}.")
    machine = Machine(ram_bytes=budget, vram_bytes=0, accelerators=frozenset())
    advice.append(what_would_fit(manifest, machine, here) or "`octo-node models search --fits` finds others.")
    if settings.engine.memory is not None:
        advice.append("Or raise engine.memory.")
    raise (EngineFailed if settings.engine.memory is None else NodeMisconfigured)(
        f"{manifest.name} needs {size_words(size_bytes)} of memory{words}, and models may have"
        f" {size_words(budget)} here.",
        next_step=" ".join(filter(None, advice)),
    )
