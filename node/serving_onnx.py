"""A language model in ONNX: what settings, manifest and memory make of its engine.

Lives here: how many processes, threads and slots it gets. How it is run is `inference.engines.onnx_llm`'s to know.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from inference.devices import CardAccess
from inference.engines.batched import BatchedEngine
from inference.engines.onnx_llm import CACHE_COPIES, open_onnx_llm_engine
from inference.hardware import Hardware, available_ram
from inference.models.inspection import inspect_file
from inference.models.library import model_folder
from inference.models.manifest import Manifest, Role
from inference.models.store import Store
from inference.shape import BUFFERS_BYTES, Burden, in_memory
from inference.tuning import Setup
from market.errors import ModelFileInvalid, NodeMisconfigured
from node.measurements import setup_for
from node.settings import Settings

_BASE_BYTES = 512 << 20
"""Of a process: Python, the library, a chunk's activations and logits."""


@asynccontextmanager
async def open_onnx_llm(
    manifest: Manifest, *, store: Store, settings: Settings, hardware: Hardware, cards: CardAccess
) -> AsyncIterator[BatchedEngine]:
    """The model's files must be in the store and held there. Raises NodeMisconfigured, ModelFileInvalid, ContentError,
    EngineFailed."""
    if len(manifest.weights) != 1:
        raise ModelFileInvalid(
            f"{manifest.name} has {len(manifest.weights)} graphs; one that writes text is one graph.",
            next_step="Add the folder of one decoder alone.",
        )
    if not manifest.tokens.end:
        raise NodeMisconfigured(
            f"{manifest.name} does not say which token ends an answer: none would end before its limit.",
            next_step="Add the model again from a folder whose generation_config.json names eos_token_id.",
        )
    path = await model_folder(store, manifest) / manifest.weights[0].name
    facts = await asyncio.to_thread(inspect_file, path, path.name)
    context = _context(manifest, settings)
    burden = Burden(
        weights_bytes=_held_bytes(manifest) + _BASE_BYTES, slot_bytes=CACHE_COPIES * facts.kv_token_bytes * context
    )
    setup = in_memory(
        onnx_setup(setup_for(settings.engine, None, model=manifest.name, cores=hardware.cores), settings),
        burden,
        ram_bytes=available_ram(),
        cores=hardware.cores,
        slots_named=settings.engine.slots is not None,
    )
    async with open_onnx_llm_engine(
        path,
        workers=setup.workers,
        threads=setup.threads,
        slots=setup.slots,
        context=context,
        precision=manifest.quantisation,
        providers=settings.engine.onnx_providers,
        cards=cards,
    ) as engine:
        yield engine


def onnx_setup(setup: Setup, settings: Settings) -> Setup:
    """One process, unless the settings name more: each has weights of its own."""
    return replace(setup, workers=settings.engine.workers or 1)


def onnx_llm_bytes(manifest: Manifest, setup: Setup, settings: Settings) -> int:
    """What a decoder that was never loaded should take: weights, buffers, keys and values of all slots as they fill.
    `manifest.needs` was reckoned for one slot of 2,048 tokens, or of the context if that is shorter."""
    held = _held_bytes(manifest)
    one_slot = max(0, manifest.needs.min_ram_bytes - held - BUFFERS_BYTES)
    slots = onnx_setup(setup, settings).slots
    return (settings.engine.workers or 1) * (held + _BASE_BYTES + slots * one_slot)


def _context(manifest: Manifest, settings: Settings) -> int:
    return min(settings.engine.context, manifest.context or settings.engine.context)


def _held_bytes(manifest: Manifest) -> int:
    """Weights, in the graph and beside it."""
    return sum({f.cid: f.size_bytes for f in manifest.files if f.role in (Role.WEIGHTS, Role.EXTRA)}.values())
