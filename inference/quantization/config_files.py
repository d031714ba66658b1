"""What the JSON files beside safetensors must say once the weights are in another format.

Lives here: `config.json` and the index of shards, pure. Must not know: files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.models.transformers_config import quantisation_of
from market.errors import RequestInvalid

_TYPES = {"F16": "float16", "BF16": "bfloat16"}
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
"""One scale for each matrix, activations scaled as they come: vLLM's name for what `convert` writes."""


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Raises RequestInvalid for weights that are packed already: converting them number by number would be noise."""
    if method := quantisation_of(config):
        raise RequestInvalid(
            f"{name} is quantised already ({method[:32]}).", next_step="Start from the model that it was made from."
        )


def converted_config(config: Mapping[str, Any], to: str) -> dict[str, Any]:
    """`config.json` for weights in `to`; what it did not say before is not made up."""
    changed = dict(config)
    for key in ("torch_dtype", "dtype"):
        if key in config and to in _TYPES:
            changed[key] = _TYPES[to]
        elif config.get(key) in ("float32", "float64"):
            changed[key] = "bfloat16"
    part = config.get("text_config")
    if isinstance(part, dict):
        changed["text_config"] = converted_config(part, to)
        changed["text_config"].pop("quantization_config", None)
    if to == "FP8":
        changed["quantization_config"] = dict(_FP8)
    return changed


def converted_index(index: Mapping[str, Any], total_bytes: int, scales: Mapping[str, str]) -> dict[str, Any]:
    """The index of shards; `scales` names the shard of each scale that is new."""
    changed = dict(index)
    metadata, shards = index.get("metadata"), index.get("weight_map")
    changed["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": total_bytes}
    changed["weight_map"] = {**(shards if isinstance(shards, dict) else {}), **scales}
    return changed
