"""`octo-node status`: what this node is, serves and sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.exits import NodeAnswered
from node.cli.options import data_dir_option, json_option, settings_of

if TYPE_CHECKING:
    from node.cli.remote import Remote


@click.command(short_help="What this node is, serves and sees.")
@data_dir_option
@json_option
def status(data_dir: Path | None, as_json: bool) -> None:
    """What this node is, serves and sees."""
    from rich.text import Text

    from node.cli.on_chain import LOOK_S, money_rows
    from node.cli.remote import find_node
    from node.cli.served import abilities, price
    from node.cli.show import counted, facts, print_json, screen, size, span

    folder = settings_of(data_dir).data_dir
    node = find_node(folder, timeout_s=LOOK_S)
    said = node.get("/api/v1/status")
    said["stake"] = _stake(node) if said["chain"] else None
    if as_json:
        print_json({**said, "data_dir": str(folder)})
        return
    rows: list[tuple[str, object]] = [
        ("peer", said["peer"]),
        ("up", f"{span(said['uptime_s'])}{'' if said['ready'] else ', still starting'}"),
        ("network", f"{said['network']}: {counted(said['peers'], 'peer')}, {counted(said['offers'], 'offer')}"),
    ]
    for model in said["models"]:
        rows.append(("serves", f"{model['name']} at {price(model)}"))
        rows.append(("", model["model"]))
        rows.append(("", f"{abilities(model)}{'' if model['warm'] else '; not in memory now'}"))
        rows.append(("", model["engine"]))
    if not said["models"]:
        provides = "model_loads" in said["model_cache"]
        rows.append(("serves", "nothing now" if provides else "nothing: this node only buys"))
    if said["engine"]:
        engine = said["engine"]
        load = f"{engine['running']} running, {engine['waiting']} waiting; confined by {engine['isolation']}"
        rows.append(("engine", load))
    if memory := _memory(said["model_cache"]):
        rows.append(("memory", memory))
    gpus = ", ".join(said["gpus"]) or "no GPU"
    rows.append(("tier", f"{said['tier']}: {said['cores']} cores, {size(said['ram_bytes'])} RAM, {gpus}"))
    rows.extend(money_rows(said))
    rows.append(("wallet", said["wallet"]))
    rows.append(("API", f"{said['url'].rstrip('/')}/v1"))
    rows.append(("folder", folder))
    rows.extend(("note", Text(warning, style="yellow")) for warning in said["warnings"])
    out = screen()
    out.print(facts(rows))
    for name in ("addresses", "content"):
        for address in said[name]:  # whole, to be copied: the terminal breaks the line, we do not
            out.print(Text.assemble((f"{'mesh' if name == 'addresses' else name:<9}", "dim"), address), soft_wrap=True)


def _memory(cache: dict[str, int]) -> str:
    """Empty for a node that loads no models."""
    if "model_loads" not in cache:
        return ""
    from node.cli.show import counted, size

    loaded = f"{cache['models_loaded']} of {cache['models_offered']} models loaded, {size(cache['models_bytes'])}"
    asked = cache["model_hits"] + cache["model_misses"]
    found = f"; {cache['model_hits']} of {counted(asked, 'task')} found theirs loaded" if asked else ""
    evicted = f"; {cache['model_evictions']} unloaded for others" if cache["model_evictions"] else ""
    return loaded + found + evicted


def _stake(node: Remote) -> dict[str, Any] | None:
    """None while the chain does not answer: the rest of the status is worth showing without it."""
    try:
        stake: dict[str, Any] = node.get("/api/v1/stake")
    except NodeAnswered:
        return None
    return stake
