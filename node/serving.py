"""Which engine runs a model here, opened and ready to be offered; and how work with a model is counted.

Lives here: the choice by manifest and hardware, and each engine's settings. Engines know no settings and no store.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from inference.engines.llama_cpp import open_llama_engine
from inference.engines.onnx import onnx_context, onnx_kind, onnx_meter, onnx_models, open_onnx_engine
from inference.engines.openai_http import open_openai_engine
from inference.hardware import detect_hardware
from inference.models.compatibility import HERE, EngineKind, Fit, compatibility, machine_of
from inference.models.library import model_folder, open_tokenizer, publish_model, weights_path
from inference.models.manifest import Format, Manifest, ModelFile, Role, sign_manifest
from inference.models.plain_tokenizer import PlainTokenizer
from inference.models.store import Store
from inference.speed import measure_speed
from market.errors import NodeMisconfigured
from market.identity import WalletSigner
from market.offer import ModelOffer
from market.parts import Served, ServedWork, Serving
from market.ports import Engine, EngineInfo, Meter, Tokenizer
from market.task import ChatMessage, Mode
from market.work import Work
from node.settings import Settings, Share

ENGINES = (EngineKind.LLAMA_CPP, EngineKind.ONNX)
"""In the order in which they are tried."""


@asynccontextmanager
async def open_serving(
    model: str, manifest: Manifest, *, store: Store, settings: Settings, engine: Engine | None = None
) -> AsyncIterator[Serving]:
    """Load a model that is in the store and yield it once it answers. `engine` stands in for the one it would get.

    The files are held while it runs. Raises NodeMisconfigured with what would fit, EngineFailed, ContentError.
    """
    kind = EngineKind.LLAMA_CPP if engine is not None else choose_engine(manifest)
    async with AsyncExitStack() as stack:
        for file in manifest.files:
            stack.enter_context(store.using(file.cid))
        if kind is EngineKind.ONNX:
            yield await _open_onnx(stack, model, manifest, store=store, settings=settings)
            return
        tokenizer = await open_tokenizer(store, manifest)
        if engine is None:
            engine = await stack.enter_async_context(
                open_llama_engine(
                    await weights_path(store, manifest),
                    workers=settings.engine.workers or len(os.sched_getaffinity(0)),
                    threads=settings.engine.threads,
                    slots=settings.engine.slots,
                    context=min(settings.engine.context, manifest.context or settings.engine.context),
                )
            )
        speed = await measure_speed(engine)
        offer = _offer(model, manifest, settings, engine=engine.info.name, context=engine.info.context, speed=speed)
        yield Served(offer, engine, tokenizer)


def choose_engine(manifest: Manifest) -> EngineKind:
    """The first that can run it here. Raises NodeMisconfigured with every engine's reason."""
    fits = compatibility(manifest, here=machine_of(detect_hardware()), engines=ENGINES)
    here = [fit for fit in fits if fit.tier == HERE]
    for fit in here:
        if fit.ok:
            return fit.engine
    raise NodeMisconfigured(
        f"{manifest.name} {manifest.version} cannot run here: {_reasons(here)}.",
        next_step="`octo-node models show` says where it runs; `models search --fits` finds models that fit.",
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
    if manifest.format == Format.ONNX:
        return Reader(meter=await _meter(store, manifest))
    if manifest.format == Format.REMOTE:
        return Reader(tokenizer=PlainTokenizer())
    return Reader(tokenizer=await open_tokenizer(store, manifest))


@asynccontextmanager
async def open_shared(
    share: Share, *, store: Store, settings: Settings, wallet: WalletSigner
) -> AsyncIterator[tuple[Served, bool]]:
    """A model that a server behind `share.url` runs, offered as our own; and whether its prompts leave this host.

    Its manifest names no weights: nobody here can say what they are, and receipts say so. Raises NodeMisconfigured,
    EngineFailed.
    """
    key = share.key
    async with open_openai_engine(
        str(share.url),
        model=share.model,
        key=key.get_secret_value if key is not None else None,
        slots=settings.engine.slots,
        forwards=share.forwards,
    ) as engine:
        model, manifest = await _publish_remote(store, share.model, engine.info, wallet)
        speed = await measure_speed(
            engine, PlainTokenizer().render((ChatMessage(role="user", content="Count to 20."),))
        )
        offer = _offer(model, manifest, settings, engine=engine.info.name, context=engine.info.context, speed=speed)
        yield Served(offer, engine, PlainTokenizer()), engine.leaves_host


async def _publish_remote(store: Store, name: str, info: EngineInfo, wallet: WalletSigner) -> tuple[str, Manifest]:
    """The same server and model give the same manifest."""
    said = json.dumps({"kind": "octo/remote/1", "model": name, "server": info.name}, sort_keys=True).encode()
    path = store.parts / f"add-{hashlib.sha256(said).hexdigest()[:32]}"
    await store.in_thread(path.write_bytes, said)
    root = await store.add(path, move=True, public=True)
    manifest = Manifest(
        name=re.sub(r"[^A-Za-z0-9._+-]+|\.\.+", "-", name).strip("-._+")[:128] or "model",
        version="0.0.0",
        files=(ModelFile(role=Role.CONFIG, name="remote.json", cid=root, size_bytes=len(said)),),
        format=Format.REMOTE,
        quantisation="unknown",
        licence="unknown",
        modality="text",
        context=info.context,
        creator=wallet.address,
    )
    return await publish_model(store, sign_manifest(manifest, wallet)), manifest


async def _open_onnx(
    stack: AsyncExitStack, model: str, manifest: Manifest, *, store: Store, settings: Settings
) -> ServedWork:
    meter = await _meter(store, manifest)
    engine = await stack.enter_async_context(
        open_onnx_engine(
            await model_folder(store, manifest),
            kind=onnx_kind(manifest),
            models=onnx_models(manifest),
            meter=meter,
            context=onnx_context(manifest),
            precision=manifest.quantisation,
            workers=1,
            threads=settings.engine.threads,
        )
    )
    offer = _offer(
        model,
        manifest,
        settings,
        engine=engine.info.name,
        context=engine.info.context,
        works=tuple(sorted(engine.works)),
    )
    return ServedWork(offer, engine, meter)


async def _meter(store: Store, manifest: Manifest) -> Meter:
    paths: Mapping[Role, Path] = {
        file.role: await store.checked_path(file.cid) for file in manifest.files if file.role is Role.TOKENIZER
    }
    return await store.in_thread(onnx_meter, manifest, paths)


def _offer(
    model: str,
    manifest: Manifest,
    settings: Settings,
    *,
    engine: str,
    context: int,
    speed: float = 0.0,
    works: tuple[Work, ...] = (Work.CHAT,),
) -> ModelOffer:
    return ModelOffer(
        model=model,
        weights=manifest.cited.cid,
        name=manifest.name,
        context=context,
        price_in=settings.prices.input,
        price_out=settings.prices.output,
        modes=(Mode.REALTIME, Mode.BATCH, Mode.ASYNC),
        mode_percent=(100, settings.prices.batch_percent, settings.prices.async_percent),
        cached_percent=settings.prices.cached_percent if settings.engine.response_cache else 100,
        engine=engine,
        tokens_per_s=int(speed),
        works=works,
    )


def reader_of(serving: Serving) -> Reader:
    """Of a model that is loaded."""
    if isinstance(serving, Served):
        return Reader(tokenizer=serving.tokenizer)
    return Reader(meter=serving.meter)


def _reasons(fits: list[Fit]) -> str:
    return "; ".join(f"{fit.engine}: {fit.reason.rstrip('.')}" for fit in fits)
