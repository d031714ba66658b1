"""Which engine runs a model here, opened and ready to be offered; and how work with a model is counted.

Lives here: the choice by manifest and hardware, and each engine's settings. Engines know no settings and no store.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from inference.devices import CardAccess
from inference.engines.diffusion import open_diffusion_engine
from inference.engines.llama_cpp import open_llama_engine
from inference.engines.llama_text import is_llama_text, llama_text_kind, llama_text_meter, open_llama_text_engine
from inference.engines.onnx import onnx_kind, onnx_meter, onnx_models, open_onnx_engine
from inference.engines.onnx_llm import is_onnx_llm
from inference.engines.openai_http import open_openai_engine
from inference.engines.speech import open_speaking_engine, open_transcription_engine
from inference.engines.texts import text_context
from inference.hardware import Hardware, available_ram, detect_hardware
from inference.models.compatibility import HERE, MODALITIES, EngineKind, Fit, compatibility, is_meant_for, machine_of
from inference.models.inspection import UNKNOWN
from inference.models.library import model_folder, model_of, models_in, open_tokenizer, publish_described, weights_path
from inference.models.manifest import Format, Manifest, Role
from inference.models.plain_tokenizer import PlainTokenizer
from inference.models.store import Store
from inference.speed import Speed, measure_speed
from inference.work.engine import SupervisedEngine
from inference.work.image_meter import ImageMeter
from inference.work.speech_meters import SpeakMeter, TranscribeMeter
from inference.work.voice import read_voice_config
from market.errors import NodeMisconfigured
from market.identity import WalletSigner
from market.offer import ModelOffer
from market.parts import Served, ServedWork, Serving
from market.ports import Engine, EngineInfo, Meter, Tokenizer
from market.task import ChatMessage, Mode
from market.work import Work
from node.measurements import SLOTS_A_THREAD, known_speed, remembered, setup_for
from node.serving_onnx import open_onnx_llm
from node.serving_vllm import open_vllm, vllm_fits
from node.settings import EngineSettings, Settings, Share
from node.shaping import Shape, cards_of, context_of, shape_of, usable, would_fit

ENGINES = (EngineKind.LLAMA_CPP, EngineKind.ONNX, EngineKind.SPEECH, EngineKind.DIFFUSION)
"""In the order in which they are tried; vLLM, which the settings must name, comes after them."""


@asynccontextmanager
async def open_serving(
    model: str,
    manifest: Manifest,
    *,
    store: Store,
    settings: Settings,
    engine: Engine | None = None,
    reader: Reader | None = None,
    speed: Speed | None = None,
    shape: Shape | None = None,
) -> AsyncIterator[Serving]:
    """Load a model that is in the store and yield it once it answers. `engine` stands in for the one it would get,
    `reader` and `speed` are what is known of it already, `shape` how its engine is cut, if that was decided.

    The files are held while it runs. Raises NodeMisconfigured with what would fit, EngineFailed, ContentError.
    """
    hardware = await asyncio.to_thread(detect_hardware)
    able = await usable(settings.engine, manifest, hardware)
    kind = EngineKind.LLAMA_CPP
    if engine is None:
        kind = choose_engine(manifest, settings, able, await models_in(store))
    async with AsyncExitStack() as stack:
        for file in manifest.files:
            stack.enter_context(store.using(file.cid))
        by_kind = kind in (EngineKind.LLAMA_CPP, EngineKind.VLLM) and not is_llama_text(manifest)
        writes = by_kind or is_onnx_llm(manifest)
        if engine is None and not writes:
            meter = reader.meter if reader is not None and reader.meter else await _meter(store, manifest)
            worker = await stack.enter_async_context(
                _open_worker(
                    kind,
                    await model_folder(store, manifest),
                    manifest,
                    meter,
                    settings=settings.engine,
                    cards=await cards_of(able),
                )
            )
            offer = make_offer(
                model,
                manifest,
                settings,
                engine=worker.info,
                works=tuple(sorted(worker.works)),
            )
            yield ServedWork(offer, worker, meter)
            return
        known = reader.tokenizer if reader is not None else None
        tokenizer = known or await open_tokenizer(store, manifest)
        if kind is EngineKind.VLLM:
            engine = await stack.enter_async_context(open_vllm(manifest, store=store, settings=settings))
        elif kind is EngineKind.ONNX:
            engine = await stack.enter_async_context(
                open_onnx_llm(manifest, store=store, settings=settings, hardware=hardware, cards=await cards_of(able))
            )
        elif engine is None:
            measured = await asyncio.to_thread(remembered, settings.data_dir, hardware=hardware, model=model)
            path = await weights_path(store, manifest)
            if shape is None:
                setup = setup_for(settings.engine, measured, model=model, cores=hardware.cores)
                shape = await shape_of(setup, settings.engine, able, manifest, weights=path, ram_bytes=available_ram())
            setup = shape.setup
            speed = known_speed(setup, measured) if speed is None else speed
            engine = await stack.enter_async_context(
                open_llama_engine(
                    path,
                    workers=setup.workers,
                    threads=setup.threads,
                    slots=setup.slots,
                    context=context_of(settings.engine, manifest),
                    gpu_layers=shape.gpu_layers,
                    vram_bytes=shape.vram_bytes,
                )
            )
        speed = speed if speed is not None else await measure_speed(engine)
        offer = make_offer(model, manifest, settings, engine=engine.info, speed=speed)
        yield Served(offer, engine, tokenizer)


def choose_engine(
    manifest: Manifest, settings: Settings, hardware: Hardware, models: Mapping[str, Manifest]
) -> EngineKind:
    """The first that can run it here. Raises NodeMisconfigured with every engine's reason, and what would fit, in
    another format or of the `models` of this store."""
    machine = machine_of(hardware)
    fits = compatibility(manifest, here=machine, engines=ENGINES)
    here = [*(fit for fit in fits if fit.tier == HERE), vllm_fits(manifest, settings.vllm, machine)]
    for fit in here:
        if fit.ok:
            return fit.engine
    if manifest.modality == UNKNOWN:
        raise NodeMisconfigured(
            f"{manifest.name} {manifest.version} cannot run: its files do not say what it is for.",
            next_step=f"Add it again with --modality and one of {', '.join(MODALITIES)}.",
        )
    raise NodeMisconfigured(
        f"{manifest.name} {manifest.version} cannot run here: {_reasons(manifest, here)}.",
        next_step=would_fit(manifest, machine, models, ENGINES)
        or "`octo-node models show` says where it runs; `models search --fits` finds models that fit.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """What a model's answers are counted with: a tokenizer for texts, a meter for other work."""

    tokenizer: Tokenizer | None = None
    meter: Meter | None = None


async def open_reader(store: Store, manifest: Manifest) -> Reader:
    """The weights are not needed.

    Raises ContentUnavailable, BlockInvalid, ModelFileInvalid.
    """
    counted = manifest.format in (Format.ONNX, Format.VOICE, Format.CTRANSLATE2) or manifest.modality == "image"
    if (counted and not is_onnx_llm(manifest)) or is_llama_text(manifest):
        return Reader(meter=await _meter(store, manifest))
    if manifest.format == Format.REMOTE:
        return Reader(tokenizer=PlainTokenizer())
    return Reader(tokenizer=await open_tokenizer(store, manifest))


@asynccontextmanager
async def open_shared(share: Share, *, store: Store, settings: Settings, wallet: WalletSigner) -> AsyncIterator[Served]:
    """A model that a server behind `share.url` runs, offered as our own.

    Its manifest names no weights: nobody here can say what they are, and receipts say so. Raises NodeMisconfigured,
    EngineFailed.
    """
    key = share.key
    async with open_openai_engine(
        str(share.url),
        model=share.model,
        key=key.get_secret_value if key is not None else None,
        slots=settings.engine.slots or SLOTS_A_THREAD,
        forwards=share.forwards,
    ) as engine:
        model, manifest = await _publish_remote(store, share.model, engine.info, wallet)
        speed = await measure_speed(
            engine, PlainTokenizer().render((ChatMessage(role="user", content="Count to 20."),))
        )
        offer = make_offer(model, manifest, settings, engine=engine.info, speed=speed)
        yield Served(offer, engine, PlainTokenizer())


async def _publish_remote(store: Store, name: str, info: EngineInfo, wallet: WalletSigner) -> tuple[str, Manifest]:
    """The same server and model give the same manifest."""
    said = json.dumps({"kind": "octo/remote/1", "model": name, "server": info.name}, sort_keys=True).encode()
    cid = await publish_described(
        store, name, ("remote.json", said), wallet, format=Format.REMOTE, modality="text", context=info.context
    )
    return cid, await model_of(store, cid)


def _open_worker(
    kind: EngineKind, folder: Path, manifest: Manifest, meter: Meter, *, settings: EngineSettings, cards: CardAccess
) -> AbstractAsyncContextManager[SupervisedEngine]:
    threads = settings.threads or 1
    if kind is EngineKind.DIFFUSION:
        return open_diffusion_engine(folder, packages=settings.packages, threads=threads, cards=cards)
    if manifest.format == Format.VOICE:
        return open_speaking_engine(folder)
    if kind is EngineKind.SPEECH:
        return open_transcription_engine(folder, packages=settings.packages, threads=threads, cards=cards)
    if is_llama_text(manifest):
        return open_llama_text_engine(
            folder,
            kind=llama_text_kind(manifest),
            model=manifest.weights[0].name,
            tokenizer=manifest.file(Role.TOKENIZER).name,
            meter=meter,
            context=text_context(manifest),
            workers=settings.workers or 1,
            threads=threads,
        )
    return open_onnx_engine(
        folder,
        kind=onnx_kind(manifest),
        models=onnx_models(manifest),
        meter=meter,
        context=text_context(manifest),
        precision=manifest.quantisation,
        providers=settings.onnx_providers,
        cards=cards,
        threads=threads,
    )


async def _meter(store: Store, manifest: Manifest) -> Meter:
    """Raises ContentUnavailable, BlockInvalid, ModelFileInvalid."""
    if manifest.format == Format.SAFETENSORS:
        return ImageMeter()
    if manifest.format == Format.CTRANSLATE2:
        return TranscribeMeter()
    paths: Mapping[Role, Path] = {
        file.role: await store.checked_path(file.cid)
        for file in manifest.files
        if file.role in (Role.TOKENIZER, Role.CONFIG)
    }
    if manifest.format == Format.VOICE:
        return SpeakMeter(
            await store.in_thread(read_voice_config, await store.in_thread(paths[Role.CONFIG].read_bytes))
        )
    counted_by = llama_text_meter if is_llama_text(manifest) else onnx_meter
    return await store.in_thread(counted_by, manifest, paths)


def make_offer(
    model: str,
    manifest: Manifest,
    settings: Settings,
    *,
    engine: EngineInfo,
    speed: Speed | None = None,
    memory_bytes: int = 0,
    works: tuple[Work, ...] = (Work.CHAT,),
) -> ModelOffer:
    """Of a model that is loaded, or was."""
    return ModelOffer(
        model=model,
        weights=manifest.cited.cid,
        name=manifest.name,
        context=engine.context,
        price_in=settings.prices.input,
        price_out=settings.prices.output,
        modes=(Mode.REALTIME, Mode.BATCH, Mode.ASYNC),
        mode_percent=(100, settings.prices.batch_percent, settings.prices.async_percent),
        cached_percent=settings.prices.cached_percent if settings.engine.response_cache else 100,
        engine=engine.name,
        tokens_per_s=int(speed.tokens_per_s) if speed else 0,
        first_token_ms=math.ceil(speed.first_token_ms) if speed else 0,
        memory_bytes=memory_bytes,
        works=works,
        features=tuple(sorted(engine.features)),
    )


def reader_of(serving: Serving) -> Reader:
    """Of a model that is loaded."""
    if isinstance(serving, Served):
        return Reader(tokenizer=serving.tokenizer)
    return Reader(meter=serving.meter)


def _reasons(manifest: Manifest, fits: list[Fit]) -> str:
    """Of the engines that are meant for such a model; of all, if none is."""
    told = [fit for fit in fits if is_meant_for(manifest, fit.engine)] or fits
    return "; ".join(f"{fit.engine}: {fit.reason.rstrip('.')}" for fit in told)
