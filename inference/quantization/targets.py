"""What a model can be made into: the words, by its format, and about how large the result is.

Lives here: names and arithmetic, pure. Must not know: files, processes, who asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from inference.models.manifest import Format
from market.errors import RequestInvalid
from market.values import value


@value
class Target:
    """`bits` for each weight, scales included; `fallback_bits` where a row of weights is not a multiple of 256, which
    the K formats are made for (llama.cpp then takes a format with blocks of 32)."""

    word: str
    bits: float
    fallback_bits: float


def _targets(*rows: tuple[str, float, float]) -> Mapping[str, Target]:
    return {word: Target(word=word, bits=bits, fallback_bits=wide) for word, bits, wide in rows}


TARGETS: Final[Mapping[Format, Mapping[str, Target]]] = {
    Format.GGUF: _targets(
        ("F16", 16, 16),
        ("BF16", 16, 16),
        ("Q8_0", 8.5, 8.5),
        ("Q6_K", 6.5625, 8.5),
        ("Q5_K_M", 5.7, 6.5),
        ("Q5_1", 6, 6),
        ("Q5_0", 5.5, 5.5),
        ("Q4_K_M", 4.85, 6.2),
        ("Q4_K_S", 4.6, 5.8),
        ("Q4_1", 5, 5),
        ("Q4_0", 4.55, 4.55),
        ("IQ4_NL", 4.6, 4.6),
        ("IQ4_XS", 4.35, 4.9),
        ("Q3_K_M", 3.95, 5.2),
        ("Q2_K", 3.35, 5.0),
    ),
    Format.ONNX: _targets(("INT8", 8.1, 8.1), ("INT4", 4.5, 4.5)),
    Format.SAFETENSORS: _targets(("F16", 16, 16), ("BF16", 16, 16), ("FP8", 8, 8)),
}
"""Largest first. K mixes are averages over whole models; what small models have beside them is reckoned apart."""

WHOLE: Final = frozenset(("F32", "F16", "BF16", "F64"))
"""Weights as they were trained, or rounded once: what quantising again would only damage further is not in here."""
_ALIASES: Final = {"FP16": "F16", "FP32": "F32", "F8_E4M3": "FP8", "F8": "FP8", "I8": "INT8", "I4": "INT4"}


def parse_target(word: str, format: Format) -> Target:
    """Raises RequestInvalid, which names what can be made."""
    targets = TARGETS.get(format, {})
    plain = word.strip().upper()
    found = targets.get(_ALIASES.get(plain, plain))
    if found is None:
        choice = f"Choose one of {', '.join(targets)}." if targets else "It can be made of gguf, onnx and safetensors."
        raise RequestInvalid(f"a {format} model cannot be made into {word[:32]!r}.", next_step=choice, param="to")
    return found


def is_quantised(word: str) -> bool:
    """Whether a manifest's word for its quantisation says that weights were rounded to few bits already."""
    return _ALIASES.get(word.upper(), word.upper()) not in WHOLE | {"UNKNOWN"}


def warning_of(word: str, to: str) -> str:
    """Why quantising once more is worse than it looks; empty for weights that are whole."""
    if not is_quantised(word):
        return ""
    return (
        f"the source is {word} already: what it lost stays lost, and {to} rounds the rest again. Start from the"
        " F16 or BF16 model if you can get it."
    )
