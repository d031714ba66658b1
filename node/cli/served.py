"""A model that a node serves, in a person's words: what it does, how fast, at which price."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COUNTED_IN_TOKENS = {"chat", "embed", "rerank"}
_COUNTED_BY_TOKEN_OUT = {"chat"}


def abilities(model: Mapping[str, Any]) -> str:
    """`2048 tokens of context, 214 tokens/s, the first after 95 ms`; of a model that writes no text, what it is for."""
    works = set(model["works"])
    told = [] if works == {"chat"} else [", ".join(sorted(works))]
    if works & _COUNTED_IN_TOKENS:
        told.append(f"{model['context']} tokens of context")
    if works & _COUNTED_BY_TOKEN_OUT and model["tokens_per_s"]:
        told.append(f"{model['tokens_per_s']} tokens/s")
        if model["first_token_ms"]:
            told.append(f"the first after {model['first_token_ms']} ms")
    return ", ".join(told)


def price(model: Mapping[str, Any]) -> str:
    """`0.1 OCTO in, 0.3 OCTO out, per million tokens`: what a unit of other work is, says docs/api.md."""
    unit = "tokens" if set(model["works"]) <= _COUNTED_IN_TOKENS else "units"
    return f"{model['price_in']} in, {model['price_out']} out, per million {unit}"
