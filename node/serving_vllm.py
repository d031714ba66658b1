"""A text model in safetensors, run by vLLM in an environment of its own: what the settings make of it.

Lives here: whether vLLM may run a model here, and its set-up out of the settings. How it is started and asked is
`inference.engines.vllm`'s to know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inference.engines.openai_http import OpenAiEngine
from inference.engines.vllm import open_vllm_engine
from inference.engines.vllm_command import VllmSetup
from inference.hardware import NO_LIMIT
from inference.models.compatibility import HERE, EngineKind, Fit, Machine, compatibility
from inference.models.library import WITHOUT_WEIGHTS, model_folder
from inference.models.manifest import Manifest
from inference.models.store import Store
from market.errors import NodeMisconfigured
from node.settings import Settings, VllmSettings

NO_VLLM = "set vllm.python to the Python of an environment that has vLLM (docs/models.md)"


def vllm_fits(manifest: Manifest, settings: VllmSettings, machine: Machine) -> Fit:
    """Over Ray a model may be larger than this machine: how much there is, only the cluster knows."""
    if settings.ray:
        machine = Machine(ram_bytes=NO_LIMIT, vram_bytes=NO_LIMIT, accelerators=machine.accelerators)
    missing = {} if settings.python is not None else {EngineKind.VLLM: NO_VLLM}
    fits = compatibility(manifest, here=machine, missing=missing, engines=(EngineKind.VLLM,))
    return next(fit for fit in fits if fit.tier == HERE)


@asynccontextmanager
async def open_vllm(manifest: Manifest, *, store: Store, settings: Settings) -> AsyncIterator[OpenAiEngine]:
    """The model's files must be in the store and held there. Raises NodeMisconfigured, ModelFileInvalid,
    ContentError, EngineFailed."""
    named = {file.role for file in manifest.files}
    if lacking := sorted(WITHOUT_WEIGHTS - named):
        raise NodeMisconfigured(
            f"{manifest.name} has no {' and no '.join(lacking)}: nobody could render its prompts or count its tokens.",
            next_step="Add the model again from a folder with its tokenizer.json, and its chat_template.jinja or a"
            " tokenizer_config.json that holds the template.",
        )
    if not manifest.tokens.end:
        raise NodeMisconfigured(
            f"{manifest.name} does not say which token ends an answer: none would end before its limit.",
            next_step="Add the model again from a folder whose generation_config.json names eos_token_id.",
        )
    vllm = settings.vllm
    wanted = vllm.max_model_len or settings.engine.context
    setup = VllmSetup(
        slots=vllm.slots,
        context=min(wanted, manifest.context or wanted),
        dtype=vllm.dtype,
        kv_cache_bytes=vllm.memory or 0,
        tensor_parallel=vllm.tensor_parallel,
        pipeline_parallel=vllm.pipeline_parallel,
        ray=vllm.ray,
        devices=vllm.devices,
        arguments=vllm.arguments,
    )
    async with open_vllm_engine(
        await model_folder(store, manifest),
        log=settings.data_dir / f"vllm-{manifest.name}.log",
        python=vllm.python,
        setup=setup,
        start_s=vllm.start_s,
    ) as engine:
        yield engine
