"""Which engine runs a model on which machine, and why another does not.

Lives here: the matrix, pure: engines by format and modality, machines by memory and accelerators. Whether an engine
is installed comes in as a value; nothing is tried. A "yes" is what the manifest promises: loading is the proof.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from inference.hardware import ENTERPRISE_VRAM_BYTES, PROSUMER_VRAM_BYTES, Hardware
from inference.models.inspection import UNKNOWN
from inference.models.manifest import Format, Manifest
from market.offer import Tier
from market.values import Word, value

MODALITIES = (
    "text", "vision", "embedding", "rerank", "detection", "classification", "ocr", "transcription", "speech", "image",
)  # fmt: skip
"""What a model can be for, as manifests write it; `reranking` is read, too."""

HERE = "here"
_GB = 10**9


class EngineKind(Word):
    LLAMA_CPP = "llama_cpp"
    ONNX = "onnx"
    DIFFUSION = "diffusion"
    SPEECH = "speech"
    VLLM = "vllm"
    OPENAI_HTTP = "openai_http"


@value
class Machine:
    """`accelerators` are the kinds of card that it has; `vram_bytes` the memory of all of them together."""

    ram_bytes: int
    vram_bytes: int
    accelerators: frozenset[str]


@value
class Fit:
    """`tier` is a tier's name, or `here` for a machine that was looked at. `reason` says why not; with `ok` it is
    empty, or a condition: only the larger machines of the tier."""

    engine: EngineKind
    tier: str
    ok: bool
    reason: str


@value
class _Skill:
    formats: frozenset[Format]
    modalities: frozenset[str]
    note: str


_SKILLS: Mapping[EngineKind, _Skill] = {
    EngineKind.LLAMA_CPP: _Skill(
        formats=frozenset((Format.GGUF,)),
        modalities=frozenset(("text", "vision", "embedding", "rerank", "reranking")),
        note="Convert the model to GGUF.",
    ),
    EngineKind.ONNX: _Skill(
        formats=frozenset((Format.ONNX,)),
        modalities=frozenset(
            ("text", "embedding", "rerank", "reranking", "detection", "classification", "vision", "ocr")
        ),
        note="Export the model to ONNX.",
    ),
    EngineKind.DIFFUSION: _Skill(
        formats=frozenset((Format.SAFETENSORS,)),
        modalities=frozenset(("image",)),
        note="Convert the model to safetensors.",
    ),
    EngineKind.SPEECH: _Skill(
        formats=frozenset((Format.CTRANSLATE2, Format.VOICE)),
        modalities=frozenset(("transcription", "speech")),
        note="Convert the model to CTranslate2.",
    ),
    EngineKind.VLLM: _Skill(
        formats=frozenset((Format.SAFETENSORS,)),
        modalities=frozenset(("text",)),
        note="Convert the model to safetensors.",
    ),
    EngineKind.OPENAI_HTTP: _Skill(
        formats=frozenset((Format.SAFETENSORS, Format.GGUF, Format.TENSORRT)),
        modalities=frozenset(("text", "vision", "embedding")),
        note="Convert the model to safetensors or GGUF.",
    ),
}

_TIERS: Mapping[Tier, tuple[Machine, Machine]] = {
    Tier.CONSUMER: (
        Machine(ram_bytes=8 * _GB, vram_bytes=0, accelerators=frozenset()),
        Machine(ram_bytes=64 * _GB, vram_bytes=16 * _GB, accelerators=frozenset(("cuda",))),
    ),
    Tier.PROSUMER: (
        Machine(ram_bytes=32 * _GB, vram_bytes=PROSUMER_VRAM_BYTES, accelerators=frozenset(("cuda",))),
        Machine(ram_bytes=256 * _GB, vram_bytes=48 * _GB, accelerators=frozenset(("cuda",))),
    ),
    Tier.ENTERPRISE: (
        Machine(ram_bytes=128 * _GB, vram_bytes=ENTERPRISE_VRAM_BYTES, accelerators=frozenset(("cuda",))),
        Machine(ram_bytes=2048 * _GB, vram_bytes=8 * 141 * _GB, accelerators=frozenset(("cuda",))),
    ),
}
"""The least and the most that is usual in a tier; the cards are DESIGN section 3's, the memory what goes with them."""


def machine_of(hardware: Hardware) -> Machine:
    """`Hardware` knows NVIDIA's cards only."""
    return Machine(
        ram_bytes=hardware.ram_bytes,
        vram_bytes=sum(gpu.vram_bytes for gpu in hardware.gpus),
        accelerators=frozenset(("cuda",) if hardware.gpus else ()),
    )


def compatibility(
    manifest: Manifest,
    *,
    here: Machine | None = None,
    missing: Mapping[EngineKind, str] | None = None,
    engines: Collection[EngineKind] = tuple(EngineKind),
) -> Sequence[Fit]:
    """Each engine on each tier; with `here` also on that machine, where `missing` says which engines it lacks and
    how to get them."""
    fits = []
    for engine in engines:
        refusal = _refusal(manifest, _SKILLS[engine])
        for tier, (least, most) in _TIERS.items():
            fits.append(_fit(engine, tier, refusal or _on_tier(manifest, least, most)))
        if here is not None:
            lacks = (missing or {}).get(engine, "")
            fits.append(_fit(engine, HERE, refusal or (False, lacks) if lacks or refusal else _on(manifest, here)))
    return fits


def is_meant_for(manifest: Manifest, engine: EngineKind) -> bool:
    """Whether the engine reads the model's format and does its kind of work, on whatever machine."""
    skill = _SKILLS[engine]
    return manifest.modality in skill.modalities and manifest.format in skill.formats


def _fit(engine: EngineKind, tier: str, answer: tuple[bool, str]) -> Fit:
    ok, reason = answer
    return Fit(engine=engine, tier=str(tier), ok=ok, reason=reason)


def _refusal(manifest: Manifest, skill: _Skill) -> tuple[bool, str] | None:
    """Why this engine runs the model nowhere."""
    if manifest.modality == UNKNOWN:
        return False, "nothing says what the model is for"
    if manifest.modality not in skill.modalities:
        return False, f"it does {_list(skill.modalities)}; the model is for {manifest.modality}"
    if manifest.format == Format.PYTORCH:
        return False, "pickled PyTorch files are not loaded: they can run code. Convert the model to safetensors."
    if manifest.format not in skill.formats:
        return False, f"it reads {_list(skill.formats)}, the model is {manifest.format}. {skill.note}"
    return None


def _on_tier(manifest: Manifest, least: Machine, most: Machine) -> tuple[bool, str]:
    always, _ = _on(manifest, least)
    sometimes, reason = _on(manifest, most)
    if always or not sometimes:
        return always, reason
    return True, f"only the larger ones: it needs {_words(manifest)}"


def _on(manifest: Manifest, machine: Machine) -> tuple[bool, str]:
    needs = manifest.needs
    kinds = {kind.split("-")[0] for kind in needs.accelerators}
    if kinds and not kinds & machine.accelerators:
        return False, f"it runs on {_list(kinds)} only, and there is no such card"
    if _vram(manifest) <= machine.vram_bytes or (not kinds and _ram(manifest) <= machine.ram_bytes):
        return True, ""
    has = f"{_gb(machine.ram_bytes)} of memory and {_gb(machine.vram_bytes)} on graphics cards"
    return False, f"it needs {_words(manifest)}; there is at most {has}"


def _ram(manifest: Manifest) -> int:
    return manifest.needs.min_ram_bytes or manifest.size_bytes


def _vram(manifest: Manifest) -> int:
    return manifest.needs.min_vram_bytes or manifest.needs.min_ram_bytes or manifest.size_bytes


def _words(manifest: Manifest) -> str:
    on_card = f"{_gb(_vram(manifest))} on graphics cards"
    return on_card if manifest.needs.accelerators else f"{_gb(_ram(manifest))} of memory, or {on_card}"


def _gb(size: int) -> str:
    return f"{size / _GB:.1f} GB"


def _list(words: Collection[str]) -> str:
    return ", ".join(sorted(words))
