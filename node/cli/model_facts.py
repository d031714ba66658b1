"""One model on a screen: what it is, its files, who signed it, where it runs and why not elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from node.cli.show import facts, octo, screen, size, table

_COUNTED_IN_TOKENS = {"text", "embedding", "rerank", "reranking"}
"""What a unit of other work is, says docs/api.md."""


def print_model(model: Mapping[str, Any]) -> None:
    rows: list[tuple[str, object]] = [
        ("name", f"{model['name']} {model['version']}"),
        ("manifest", model["model"]),
        ("kind", f"{model['modality']}, {kind_of(model)}, {size(model['size_bytes'])}"),
        *([("context", f"{model['context']} tokens")] if model["context"] else []),
        ("licence", model["licence"]),
        ("creator", f"{model['creator']} ({model['creator_is']})"),
    ]
    if model["lookalike_of"]:
        rows.append(("warning", Text(f"the name looks like {model['lookalike_of']}'s", style="yellow")))
    rows += [(name, model[name]) for name in ("parent", "source", "directory") if model[name]]
    rows.append(("state", model["state"] + (", running" if model["running"] else "")))
    if model["price_in"] is not None:
        unit = "tokens" if model["modality"] in _COUNTED_IN_TOKENS else "units"
        rows.append(("price", f"from {octo(model['price_in'])} in, {octo(model['price_out'])} out, per million {unit}"))
    rows.extend(("providers" if i == 0 else "", peer) for i, peer in enumerate(model["providers"]))
    out = screen()
    out.print(facts(rows))
    out.print()
    files = [
        (f["role"], f["name"], size(f["size_bytes"]), "here" if f["here"] else "", f["cid"]) for f in model["files"]
    ]
    out.print(table("ROLE", "FILE", "SIZE", "", "CID", rows=files, right=("SIZE",)))
    if model["fits"]:
        out.print()
        _print_fits(model["fits"])


def kind_of(model: Mapping[str, Any]) -> str:
    """`gguf Q4_0`; of what knows no quantisation, like a voice, the format alone."""
    return f"{model['format']} {model['quantisation']}".removesuffix(" unknown")


def _print_fits(fits: Sequence[Mapping[str, Any]]) -> None:
    """One row an engine, one column a tier and this machine; each reason once."""
    tiers = list(dict.fromkeys(fit["tier"] for fit in fits))
    engines = dict.fromkeys(fit["engine"] for fit in fits)
    rows = []
    for engine in engines:
        own = {fit["tier"]: fit for fit in fits if fit["engine"] == engine}
        reasons = dict.fromkeys(fit["reason"] for fit in own.values() if fit["reason"])
        rows.append((engine, *("yes" if own[tier]["ok"] else "no" for tier in tiers), "; ".join(reasons)))
    screen().print(table("RUNS ON", *(tier.upper() for tier in tiers), "WHY NOT", rows=rows))
