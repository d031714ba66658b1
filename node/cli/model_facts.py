"""One model on a screen: what it is, its files, who signed it, where it runs and why not elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from node.cli.show import facts, octo, screen, size, table


def print_model(model: Mapping[str, Any]) -> None:
    rows: list[tuple[str, object]] = [
        ("name", f"{model['name']} {model['version']}"),
        ("manifest", model["model"]),
        ("kind", f"{model['modality']}, {model['format']} {model['quantisation']}, {size(model['size_bytes'])}"),
        ("context", f"{model['context']} tokens"),
        ("licence", model["licence"]),
        ("creator", f"{model['creator']} ({model['creator_is']})"),
    ]
    if model["lookalike_of"]:
        rows.append(("warning", Text(f"the name looks like {model['lookalike_of']}'s", style="yellow")))
    rows += [(name, model[name]) for name in ("parent", "source", "directory") if model[name]]
    rows.append(("state", model["state"] + (", running" if model["running"] else "")))
    if model["price_in"] is not None:
        rows.append(("price", f"from {octo(model['price_in'])} in, {octo(model['price_out'])} out, per million tokens"))
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
        fits = [(fit["engine"], fit["tier"], "yes" if fit["ok"] else "no", fit["reason"]) for fit in model["fits"]]
        out.print(table("ENGINE", "TIER", "RUNS", "WHY NOT", rows=fits))
