"""`octo-node models`: what can be asked for, by whom it is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli.exits import NodeAnswered
from node.cli.options import data_dir_option, json_option, settings_of


@click.group(short_help="Models on offer.")
def models() -> None:
    """Models that somebody on the mesh serves now."""


@models.command("list")
@data_dir_option
@json_option
def list_models(data_dir: Path | None, as_json: bool) -> None:
    """All models on offer, with the lowest prices in OCTO per million tokens."""
    from node.cli.show import bare, print_json, screen, table

    found = _models(data_dir)
    if as_json:
        print_json({"models": found})
        return
    rows = [
        (m["name"], m["context"], bare(m["price_in"]), bare(m["price_out"]), len(m["providers"]), m["model"])
        for m in found
    ]
    if rows:
        columns = ("NAME", "CONTEXT", "IN", "OUT", "PROVIDERS", "MANIFEST")
        screen().print(table(*columns, rows=rows, right=("CONTEXT", "IN", "OUT", "PROVIDERS")))
    else:
        screen().print("No model is on offer. `octo-node peers` shows whom this node is connected to.")


@models.command("show")
@click.argument("name")
@data_dir_option
@json_option
def show_model(name: str, data_dir: Path | None, as_json: bool) -> None:
    """One model, by name or manifest CID."""
    from node.cli.show import facts, octo, print_json, screen

    found = _models(data_dir)
    names = {word: m for m in reversed(found) for word in (m["model"], m["weights"], m["name"].lower())}
    model = names.get(name) or names.get(name.lower()) or (found[0] if found and name == "default" else None)
    if model is None:
        told = ", ".join(m["name"] for m in found) or "nothing"
        raise NodeAnswered(f"{name!r} is not on offer; on offer: {told}.", status=404, remote_code="model_not_found")
    if as_json:
        print_json(model)
        return
    rows: list[tuple[str, object]] = [
        ("name", model["name"]),
        ("manifest", model["model"]),
        ("weights", model["weights"]),
        ("context", f"{model['context']} tokens"),
        ("price", f"from {octo(model['price_in'])} in, {octo(model['price_out'])} out, per million tokens"),
    ]
    rows.extend(("providers" if i == 0 else "", peer) for i, peer in enumerate(model["providers"]))
    screen().print(facts(rows))


def _models(data_dir: Path | None) -> list[dict[str, Any]]:
    from node.cli.remote import find_node

    found: list[dict[str, Any]] = find_node(settings_of(data_dir).data_dir).get("/api/v1/models")["models"]
    return found
