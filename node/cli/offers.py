"""`octo-node offers` and `octo-node peers`: who is there, what they serve, at which price."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.options import data_dir_option, json_option, settings_of

if TYPE_CHECKING:
    from rich.console import Console

_TABLE_WIDTH = 105
"""Columns that the table takes with a model's name of 20 characters."""


@click.command(short_help="Who offers what, and which offers were refused.")
@data_dir_option
@json_option
def offers(data_dir: Path | None, as_json: bool) -> None:
    """Live offers on the mesh, and offers that were refused, with the reason.

    Prices are OCTO per million tokens. What each says of itself: tokens per second, milliseconds to the first token,
    and the memory that the model takes there.
    """
    from node.cli.remote import find_node
    from node.cli.show import moment, print_json, screen, table

    said = find_node(settings_of(data_dir).data_dir).get("/api/v1/offers")
    if as_json:
        print_json(said)
        return
    out = screen()
    if not said["offers"]:
        out.print("Nobody offers anything. `octo-node peers` shows whom this node is connected to.")
    elif out.width < _TABLE_WIDTH:
        for offer in said["offers"]:
            _print_narrow(out, offer)
    else:
        columns = ("PEER", "TIER", "MODEL", "IN", "OUT", "CONTEXT", "TOK/S", "FIRST MS", "MEMORY", "SLOTS", "FOR")
        right = ("IN", "OUT", "CONTEXT", "TOK/S", "FIRST MS", "MEMORY", "SLOTS")
        out.print(table(*columns, rows=_rows(said["offers"]), right=right))
    if said["refused"]:
        out.print()
        refused = [(moment(entry["at_ms"]), entry["peer"][-8:], entry["reason"]) for entry in said["refused"]]
        out.print(table("REFUSED", "PEER", "WHY", rows=refused))


def _rows(offers: Iterable[Mapping[str, Any]]) -> list[tuple[object, ...]]:
    from node.cli.show import bare, size, span

    return [
        (
            offer["peer"][-8:],
            offer["tier"],
            model["name"],
            bare(model["price_in"]),
            bare(model["price_out"]),
            model["context"],
            model["tokens_per_s"] or "",
            model["first_token_ms"] or "",
            size(model["memory_bytes"]) if model["memory_bytes"] else "",
            offer["slots"],
            span(max(0.0, offer["expires_ms"] / 1000 - time.time())),
        )
        for offer in offers
        for model in offer["models"]
    ]


def _print_narrow(out: Console, offer: Mapping[str, Any]) -> None:
    """The same where a table would break each name in three."""
    from rich.padding import Padding
    from rich.text import Text

    from node.cli.served import abilities, price
    from node.cli.show import counted, octo, printable, size, span

    left = span(max(0.0, offer["expires_ms"] / 1000 - time.time()))
    head = f"{offer['peer'][-8:]}  {offer['tier']}, {counted(offer['slots'], 'slot')}, for {left}"
    out.print(Text(printable(head), style="dim"))
    for model in offer["models"]:
        out.print(Text(f"  {printable(model['name'])}"))
        priced = {**model, "price_in": octo(model["price_in"]), "price_out": octo(model["price_out"])}
        memory = f", {size(model['memory_bytes'])} of memory" if model["memory_bytes"] else ""
        out.print(Padding(Text(printable(f"{price(priced)}; {abilities(model)}{memory}")), (0, 0, 0, 4)))


@click.command(short_help="Whom this node is connected to.")
@data_dir_option
@json_option
def peers(data_dir: Path | None, as_json: bool) -> None:
    """Peers that this node is connected to."""
    from node.cli.remote import find_node
    from node.cli.show import print_json, screen, span, table

    said = find_node(settings_of(data_dir).data_dir).get("/api/v1/peers")
    if as_json:
        print_json(said)
        return
    rows = [
        (
            peer["peer"],
            peer["address"],
            peer["direction"],
            "" if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.0f} ms",
            span(max(0.0, time.time() - peer["since_ms"] / 1000)),
        )
        for peer in said["peers"]
    ]
    if rows:
        screen().print(table("PEER", "ADDRESS", "WAY", "PING", "SINCE", rows=rows, right=("PING",)))
    else:
        screen().print("Connected to nobody. `octo-node start --join MULTIADDR` joins a peer.")
