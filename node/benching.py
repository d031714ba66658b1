"""`octo-node bench hardware`, as a story: which machine, which model, tune it if asked, measure it, remember it.

Lives here: the order, and how a model of the store becomes an engine. What is measured and tried are
`inference.measuring`'s and `inference.tuning`'s; where it is kept, `node.measurements`'.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from inference.engines.batched import BatchedEngine
from inference.engines.llama_cpp import open_llama_engine
from inference.hardware import Hardware, available_ram, detect_hardware
from inference.measuring import measure_engine
from inference.models.library import model_of, models_in, weights_path
from inference.models.manifest import Format, Manifest
from inference.models.store import Store
from inference.tuning import Setup, Tuning, tune
from market.errors import RequestInvalid
from node.measurements import Entry, engine_version, hardware_words, key_of, remembered, save_entry, setup_for
from node.settings import Settings
from node.shaping import Shape, context_of, shape_of, usable

log = structlog.get_logger()

Told = Callable[[str, float], None]
"""What goes on now, and which share of it is done."""


def unheard(_what: str, _share: float) -> None:
    """For callers that show nothing."""


async def bench_hardware(
    settings: Settings, store: Store, model: str, *, tune_s: float | None = None, told: Told = unheard
) -> tuple[Entry, Tuning | None]:
    """Measure the model (a manifest's CID, whole in the store) and keep what came out. `tune_s`: seconds to look for
    better settings first; what they are is used here already, and by every start that names none.

    Raises RequestInvalid for a model that no engine here generates text with, ContentUnavailable, EngineFailed,
    NodeMisconfigured, DiskFull.
    """
    hardware = await asyncio.to_thread(detect_hardware)
    manifest = await model_of(store, model)
    _check(manifest)
    known = await asyncio.to_thread(remembered, settings.data_dir, hardware=hardware, model=model)
    shape = await shape_of(
        setup_for(settings.engine, None, model=model, cores=hardware.cores),
        settings.engine,
        await usable(settings.engine, manifest, hardware),
        manifest,
        weights=await weights_path(store, manifest),
        ram_bytes=available_ram(),
    )
    setup = shape.setup
    best = known.tuned if known is not None else None
    tuning = None
    if tune_s is not None:
        tuning = await _tuned(settings, store, shape, hardware=hardware, budget_s=tune_s, told=told)
        best = replace(tuning.best, model=model)  # another format is a suggestion: it is another model to its buyers
    named = settings.engine.model_fields_set & {"workers", "threads", "slots"}
    used = setup if best is None or named else best
    async with _opened(settings, store, used, shape) as opened:

        def step(done: int, total: int) -> None:
            told("measuring", done / total)

        measured = await measure_engine(opened, pids=opened.worker_pids, step=step)
        name = opened.info.name
    words = hardware_words(hardware)
    entry = Entry(
        key=key_of(words, model, engine_version()),
        model=model,
        hardware=words,
        engine=name,
        measured_ms=time.time_ns() // 1_000_000,
        setup=used,
        measured=measured,
        tuned=best,
    )
    await asyncio.to_thread(save_entry, settings.data_dir, entry)
    log.info("hardware_measured", model=model, engine=name, tokens_per_s=measured.tokens_per_s)
    return entry, tuning


async def _tuned(
    settings: Settings, store: Store, shape: Shape, *, hardware: Hardware, budget_s: float, told: Told
) -> Tuning:
    def heard(tried: Setup, share: float) -> None:
        told(f"trying {tried.workers} x {tried.threads} threads, {tried.slots} slots", share)

    return await tune(
        shape.setup,
        lambda tried: _opened(settings, store, tried, shape),
        cores=hardware.cores,
        clock=time.monotonic,
        models=formats_of(shape.setup.model, await models_in(store)),
        budget_s=budget_s,
        heard=heard,
    )


def formats_of(model: str, here: Mapping[str, Manifest]) -> list[str]:
    """Other formats of a model among those that are here: its parent, its children, and its parent's."""
    own = here[model]
    family = {model, own.parent} - {""}
    return [
        cid
        for cid, manifest in here.items()
        if cid != model
        and (cid in family or manifest.parent in family)
        and (manifest.format, manifest.modality) == (own.format, own.modality)
    ]


@asynccontextmanager
async def _opened(settings: Settings, store: Store, setup: Setup, shape: Shape) -> AsyncIterator[BatchedEngine]:
    """As `setup` says; where its layers lie is `shape`'s to say."""
    manifest = await model_of(store, setup.model)
    path = await weights_path(store, manifest)
    with store.using(manifest.weights[0].cid):
        async with open_llama_engine(
            path,
            workers=setup.workers,
            threads=setup.threads,
            slots=setup.slots,
            context=context_of(settings.engine, manifest),
            gpu_layers=shape.gpu_layers,
            vram_bytes=shape.vram_bytes,
        ) as engine:
            yield engine


def _check(manifest: Manifest) -> None:
    if manifest.format != Format.GGUF or manifest.modality != "text":
        raise RequestInvalid(
            f"{manifest.name} is {manifest.format} for {manifest.modality}: only GGUF models that write text are"
            " measured.",
            next_step="Name another with --model.",
        )
