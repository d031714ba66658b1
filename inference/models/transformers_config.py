"""What the JSON files beside a model's weights say, the way the transformers library writes them.

Lives here: reading one with a limit, and the few keys that a manifest wants. A stranger's file: whatever is not of the
right kind counts as not said. Knows no weights and no manifest's rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.models.manifest import ROLE_LIMIT_BYTES, Role, SpecialTokens
from market.errors import ModelFileInvalid

KV_VALUE_BYTES = 2
"""Keys and values are kept as f16."""
_CONTEXT_LIMIT = 1 << 24
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")


def read_config(path: Path, role: Role = Role.CONFIG) -> dict[str, Any]:
    """A JSON object; empty if it is something else. Blocking. Raises ModelFileInvalid, OSError."""
    if path.stat().st_size > ROLE_LIMIT_BYTES[role]:
        raise ModelFileInvalid(f"{path.name} is over {ROLE_LIMIT_BYTES[role] >> 20} MiB.")
    try:
        parsed = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ModelFileInvalid(f"{path.name} is not JSON.", next_step="Get the file again.") from None
    return parsed if isinstance(parsed, dict) else {}


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model that sees or hears too, the part of `config.json` that describes the language model."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def context_of(config: Mapping[str, Any]) -> int:
    """In tokens; 0 if it is not said."""
    return next((n for key in _CONTEXT_KEYS if 0 < (n := _count(config, key)) <= _CONTEXT_LIMIT), 0)


def kv_token_bytes(config: Mapping[str, Any]) -> int:
    """What one token's keys and values take in all layers; 0 if it is not said."""
    heads = _count(config, "num_attention_heads")
    width = _count(config, "head_dim") or (_count(config, "hidden_size") // heads if heads else 0)
    per_layer = (_count(config, "num_key_value_heads") or heads) * width * 2 * KV_VALUE_BYTES
    return per_layer * _count(config, "num_hidden_layers")


def quantisation_of(config: Mapping[str, Any]) -> str:
    """`awq`, `gptq`, `fp8`, …; empty if it is not said."""
    said = config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, dict) else None
    return method if isinstance(method, str) else ""


def modality_of(config: Mapping[str, Any]) -> str:
    """Empty if it is not said."""
    if "vision_config" in config:
        return "vision"
    classes = config.get("architectures")
    name = str(classes[0]) if isinstance(classes, list) and classes else ""
    if name.startswith("Whisper"):
        return "transcription"
    if name.endswith("ForCausalLM"):
        return "text"
    return "embedding" if name.endswith("Model") else ""


def special_tokens(
    said: Mapping[str, Any],
    *,
    generation: Mapping[str, Any],
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
) -> SpecialTokens:
    """From `tokenizer_config.json` (`said`), `generation_config.json`, `config.json` and `tokenizer.json`.

    An answer ends where the generation config says, or else the model's; and at the tokenizer's own end, which is that
    of a turn in models for chat, whatever the other two kept from the model that these were made of."""
    eos = _token_text(said.get("eos_token"))
    end = _token_ids(generation.get("eos_token_id")) or _token_ids(config.get("eos_token_id"))
    named = tokenizer.get("added_tokens")
    for item in named if isinstance(named, list) else ():
        if isinstance(item, dict) and eos and item.get("content") == eos:
            end |= _token_ids(item.get("id"))
    return SpecialTokens(
        bos=_token_text(said.get("bos_token")),
        eos=eos,
        add_bos=said.get("add_bos_token") is True,
        end=tuple(sorted(end))[:64],
    )


def _token_ids(said: object) -> set[int]:
    """One id or a list of them."""
    return {n for n in (said if isinstance(said, list) else [said]) if type(n) is int and 0 <= n < 2**31}


def _token_text(token: object) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and len(text) <= 256 else ""


def _count(config: Mapping[str, Any], key: str) -> int:
    found = config.get(key)
    return found if type(found) is int and 0 <= found < 1 << 32 else 0
