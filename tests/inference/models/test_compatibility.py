"""The matrix says which engine runs a model where, and has a reason for every no."""

from __future__ import annotations

from typing import Any

import pytest

from inference.hardware import Gpu, Hardware
from inference.models.compatibility import (
    _SKILLS,
    HERE,
    MODALITIES,
    EngineKind,
    Fit,
    Machine,
    compatibility,
    is_meant_for,
    machine_of,
)
from inference.models.manifest import Format, HardwareNeeds, Manifest
from market.offer import Tier
from tests.inference.models.model_kit import a_manifest

GB = 10**9


def model(ram: int = 1, *, vram: int | None = None, on: tuple[str, ...] = (), **changes: Any) -> Manifest:
    """Needs so many GB of memory or, if given, so many of graphics memory."""
    needs = HardwareNeeds(min_ram_bytes=ram * GB, min_vram_bytes=(ram if vram is None else vram) * GB, accelerators=on)
    return a_manifest(needs=needs, **changes)


def fit(manifest: Manifest, engine: EngineKind, tier: str, **options: Any) -> Fit:
    return next(f for f in compatibility(manifest, **options) if (f.engine, f.tier) == (engine, tier))


def test_every_engine_and_tier_has_an_answer_and_every_no_a_reason() -> None:
    here = Machine(ram_bytes=GB, vram_bytes=0, accelerators=frozenset())
    for format in Format:
        for modality in ("text", "vision", "embedding", "image", "transcription", "speech", "smell"):
            fits = compatibility(model(20, format=format, modality=modality), here=here)
            assert {(f.engine, f.tier) for f in fits} == {(e, t) for e in EngineKind for t in (*Tier, HERE)}
            assert all(f.reason for f in fits if not f.ok)


@pytest.mark.parametrize(
    ("format", "modality", "engines"),
    [
        (Format.GGUF, "text", {"llama_cpp", "openai_http"}),
        (Format.GGUF, "image", set()),
        (Format.ONNX, "embedding", {"onnx"}),
        (Format.VOICE, "speech", {"speech"}),
        (Format.CTRANSLATE2, "transcription", {"speech"}),
        (Format.CTRANSLATE2, "transcription", {"speech"}),
        (Format.SAFETENSORS, "image", {"diffusion"}),
        (Format.SAFETENSORS, "text", {"openai_http", "vllm"}),
        (Format.TENSORRT, "text", {"openai_http"}),
        (Format.PYTORCH, "text", set()),
    ],
)
def test_an_engine_runs_its_formats_for_its_modalities(format: Format, modality: str, engines: set[str]) -> None:
    fits = compatibility(model(format=format, modality=modality))
    assert {str(f.engine) for f in fits if f.ok} == engines


def test_the_reason_names_the_format_the_modality_or_the_pickle() -> None:
    assert "reads onnx, the model is gguf" in fit(model(modality="embedding"), EngineKind.ONNX, "consumer").reason
    assert "the model is for image" in fit(model(modality="image"), EngineKind.LLAMA_CPP, "consumer").reason
    assert "pickled" in fit(model(format=Format.PYTORCH), EngineKind.OPENAI_HTTP, "enterprise").reason


def test_memory_decides_by_tier_and_a_yes_for_the_larger_ones_says_so() -> None:
    def answers(manifest: Manifest) -> list[tuple[bool, str]]:
        return [(f.ok, f.reason) for f in (fit(manifest, EngineKind.LLAMA_CPP, tier) for tier in Tier)]

    assert answers(model(1)) == [(True, "")] * 3
    larger = "only the larger ones: it needs 40.0 GB of memory, or 40.0 GB on graphics cards"
    assert answers(model(40)) == [(True, larger), (True, larger), (True, "")]
    consumer, prosumer, enterprise = answers(model(400))
    assert not consumer[0]
    assert "needs 400.0 GB of memory" in consumer[1]
    assert "at most 64.0 GB of memory and 16.0 GB on graphics cards" in consumer[1]
    assert (prosumer[0], enterprise[0]) == (False, True)


def test_a_model_for_cards_only_needs_one_that_is_large_enough() -> None:
    plan = model(0, vram=40, on=("cuda-sm90",), format=Format.TENSORRT)
    assert not fit(plan, EngineKind.OPENAI_HTTP, "consumer").ok
    assert fit(plan, EngineKind.OPENAI_HTTP, "prosumer").reason.startswith("only the larger ones: it needs 40.0 GB on")
    assert fit(plan, EngineKind.OPENAI_HTTP, "enterprise") == Fit(
        engine=EngineKind.OPENAI_HTTP, tier="enterprise", ok=True, reason=""
    )
    plain = Machine(ram_bytes=999 * GB, vram_bytes=0, accelerators=frozenset())
    assert "runs on cuda only" in fit(plan, EngineKind.OPENAI_HTTP, HERE, here=plain).reason


def test_this_very_machine_is_looked_at_with_its_engines() -> None:
    laptop = machine_of(Hardware(tier=Tier.CONSUMER, gpus=(), cores=2, ram_bytes=8 * GB, isa="avx2"))
    assert fit(model(8), EngineKind.LLAMA_CPP, HERE, here=laptop).ok
    assert "there is at most 8.0 GB" in fit(model(9), EngineKind.LLAMA_CPP, HERE, here=laptop).reason
    card = Gpu(name="card", vram_bytes=24 * GB)
    tower = machine_of(Hardware(tier=Tier.ENTERPRISE, gpus=(card,) * 4, cores=9, ram_bytes=8 * GB, isa="avx2"))
    assert fit(model(90), EngineKind.LLAMA_CPP, HERE, here=tower).ok
    images = model(format=Format.SAFETENSORS, modality="image")
    lacking = {EngineKind.DIFFUSION: "install the extra [diffusers]"}
    assert fit(images, EngineKind.DIFFUSION, HERE, here=tower, missing=lacking).reason == lacking[EngineKind.DIFFUSION]
    assert fit(images, EngineKind.DIFFUSION, "enterprise", here=tower, missing=lacking).ok


def test_a_model_that_does_not_say_what_it_needs_counts_as_its_size() -> None:
    silent = a_manifest(needs=HardwareNeeds())
    tiny = Machine(ram_bytes=silent.size_bytes, vram_bytes=0, accelerators=frozenset())
    tinier = Machine(ram_bytes=silent.size_bytes - 1, vram_bytes=0, accelerators=frozenset())
    assert fit(silent, EngineKind.LLAMA_CPP, HERE, here=tiny).ok
    assert not fit(silent, EngineKind.LLAMA_CPP, HERE, here=tinier).ok


def test_a_model_of_which_nothing_says_what_it_is_for_runs_nowhere() -> None:
    unknown = model(modality="unknown")
    assert fit(unknown, EngineKind.LLAMA_CPP, "enterprise").reason == "nothing says what the model is for"
    assert [is_meant_for(model(), kind) for kind in (EngineKind.LLAMA_CPP, EngineKind.ONNX)] == [True, False]
    assert not any(is_meant_for(unknown, kind) for kind in EngineKind)
    assert set(MODALITIES) | {"reranking"} == {word for skill in _SKILLS.values() for word in skill.modalities}
