"""What the owner decides about models: `models trust`, `models pin`, `models catalog`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from node.cli.options import data_dir_option, json_option, open_node_to_ask


@click.command("trust", short_help="Whom to believe.")
@click.argument("creator", required=False)
@click.option("--remove", is_flag=True, help="Trust it no longer.")
@data_dir_option
@json_option
def trust(creator: str | None, remove: bool, data_dir: Path | None, as_json: bool) -> None:
    """Believe a creator: a wallet (0x…), hf:OWNER, pypi:NAME or https:HOST. Without one: who is believed."""
    _choose("trust", creator, remove=remove, data_dir=data_dir, as_json=as_json, empty="Nobody but this node itself.")


@click.command("pin", short_help="What to keep and serve.")
@click.argument("model", required=False)
@click.option("--remove", is_flag=True, help="Keep it no longer; the files stay until their room is needed.")
@data_dir_option
@json_option
def pin(model: str | None, remove: bool, data_dir: Path | None, as_json: bool) -> None:
    """Keep a model and serve its files, run or not. Without one: what is pinned."""
    _choose("pins", model, remove=remove, data_dir=data_dir, as_json=as_json, empty="Nothing is pinned.")


@click.group("catalog", short_help="Signed lists of models: follow others', publish your own.")
def catalog() -> None:
    """Signed lists of models under a name."""


@catalog.command("list")
@data_dir_option
@json_option
def list_catalogs(data_dir: Path | None, as_json: bool) -> None:
    """The catalogs that this node follows or publishes."""
    _choose("catalogs", None, remove=False, data_dir=data_dir, as_json=as_json, empty="No catalog is followed.")


@catalog.command("follow")
@click.argument("catalog_name", metavar="0x…/NAME")
@click.option("--remove", is_flag=True, help="Follow it no longer.")
@data_dir_option
@json_option
def follow_catalog(catalog_name: str, remove: bool, data_dir: Path | None, as_json: bool) -> None:
    """Follow a creator's catalog: its models are found by `models search` and pulled by name."""
    _choose("catalogs", catalog_name, remove=remove, data_dir=data_dir, as_json=as_json, empty="")


@catalog.command("publish")
@click.argument("name")
@click.argument("models", nargs=-1, required=True)
@data_dir_option
@json_option
def publish_catalog(name: str, models: tuple[str, ...], data_dir: Path | None, as_json: bool) -> None:
    """Sign a list of MODELS that are here and serve it under NAME. Publishing again replaces it."""
    from node.cli.show import print_json, screen

    with open_node_to_ask(data_dir) as node:
        done = node.post("/api/v1/models/publish", {"name": name, "models": list(models)}, timeout_s=60.0)
    if as_json:
        print_json(done)
        return
    screen().print(f"{done['catalog']}: {done['models']} models, number {done['seq']}. Others follow it with")
    screen().print(f"  octo-node models catalog follow {done['catalog']}", style="green")


def _choose(kind: str, entry: str | None, *, remove: bool, data_dir: Path | None, as_json: bool, empty: str) -> None:
    from node.cli.show import print_json, screen

    if remove and entry is None:
        raise click.UsageError("--remove wants to know what.")
    with open_node_to_ask(data_dir) as node:
        path = f"/api/v1/models/{kind}"
        if entry is None:
            said = node.get(path)
        else:
            said = node.post(path, {"action": "remove" if remove else "add", "entry": entry}, timeout_s=60.0)
    if as_json:
        print_json(said)
        return
    if entry is not None:
        done = "removed" if remove else "added"
        screen().print(f"{entry}: {done if said['changed'] else 'nothing to change'}.")
        return
    _print(said[kind], empty)


def _print(entries: Sequence[dict[str, Any]], empty: str) -> None:
    from node.cli.show import screen, table

    if not entries:
        screen().print(empty)
        return
    screen().print(table("ENTRY", "NOTE", rows=[(entry["entry"], entry["note"]) for entry in entries]))
