"""What would run on a machine that a model is too large for: the same model in fewer bits, or others that are here.

Lives here: the sums, pure. Must not know: stores, how anything is made.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from inference.models.compatibility import Machine
from inference.models.manifest import HardwareNeeds, Manifest
from inference.quantization.targets import TARGETS, Target, is_quantised
from market.values import value

_FULL_BITS = {"F32": 32.0, "FP32": 32.0, "F64": 64.0}
_NAMES_LIMIT = 3


@value
class Fitting:
    """A format in which the model would run here, with about so many bytes of weights."""

    word: str
    weights_bytes: int


def fitting_formats(manifest: Manifest, machine: Machine) -> Sequence[Fitting]:
    """Smaller formats of a model that fit a machine, largest first; empty if none does, or nothing can be told."""
    targets = TARGETS.get(manifest.format, {})
    bits = _bits(manifest.quantisation, targets.values())
    needed = manifest.needs.min_ram_bytes or manifest.needs.min_vram_bytes
    if not bits or not needed or manifest.needs.accelerators:
        return ()
    weights = sum(file.size_bytes for file in manifest.weights)
    room = max(machine.ram_bytes, machine.vram_bytes)
    smaller = sorted((target for target in targets.values() if target.bits < bits), key=lambda target: -target.bits)
    sizes = [Fitting(word=target.word, weights_bytes=int(weights * target.bits / bits)) for target in smaller]
    return [size for size in sizes if needed - weights + size.weights_bytes <= room]


def what_would_fit(manifest: Manifest, machine: Machine, here: Collection[Manifest] = ()) -> str:
    """A sentence for the `next_step` of a refusal; `here` are the models of this machine. Empty if nothing would."""
    parts = []
    if found := fitting_formats(manifest, machine):
        best = found[0]
        again = " --again" if is_quantised(manifest.quantisation) else ""
        parts.append(
            f"As {best.word} it would fit ({best.weights_bytes / 1e9:.1f} GB): on a larger machine, or here with time,"
            f" `octo-node models quantize {manifest.name} --to {best.word}{again}`."
        )
    others = sorted(
        {
            f"{other.name} {other.quantisation}"
            for other in here
            if other.modality == manifest.modality and _fits(other.needs, machine)
        }
    )
    if others:
        parts.append(f"Here already, and small enough: {', '.join(others[:_NAMES_LIMIT])}.")
    return " ".join(parts)


def _fits(needs: HardwareNeeds, machine: Machine) -> bool:
    if needs.accelerators or not needs.min_ram_bytes:
        return False
    return needs.min_ram_bytes <= machine.ram_bytes or 0 < needs.min_vram_bytes <= machine.vram_bytes


def _bits(word: str, targets: Collection[Target]) -> float:
    """Of each weight, by the manifest's word; 0 for a word that says nothing."""
    plain = word.upper()
    if plain in _FULL_BITS:
        return _FULL_BITS[plain]
    return next((target.bits for target in targets if target.word == plain), 0.0)
