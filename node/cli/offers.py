"""`octo-node offers` and `octo-node peers`: who is there, what they serve, at which price."""

from __future__ import annotations

import time
from pathlib import Path

import click

from node.cli.options import data_dir_option, json_option, settings_of


@click.command(short_help="Who offers what, and which offers were refused.")
@data_dir_option
@json_option
def offers(data_dir: Path | None, as_json: bool) -> None:
    """Live offers on the mesh, and offers that were refused, with the reason.

    Prices are OCTO per million tokens. What each says of itself: tokens per second, milliseconds to the first token,
    and the memory that the model takes there.
    """
    from node.cli.remote import find_node
    from node.cli.show import bare, moment, print_json, screen, size, span, table

    said = find_node(settings_of(data_dir).data_dir).get("/api/v1/offers")
    if as_json:
        print_json(said)
        return
    out = screen()
    rows = [
        (
            offer["peer"][-8:],
            offer["tier"],
            model["name"],
            bare(model["price_in"]),
            bare(model["price_out"]),
            model["context"],
            model["tokens_per_s"],
            model["first_token_ms"] or "",
            size(model["memory_bytes"]) if model["memory_bytes"] else "",
            offer["slots"],
            span(max(0.0, offer["expires_ms"] / 1000 - time.time())),
        )
        for offer in said["offers"]
        for model in offer["models"]
    ]
    if rows:
        columns = ("PEER", "TIER", "MODEL", "IN", "OUT", "CONTEXT", "TOK/S", "FIRST MS", "MEMORY", "SLOTS", "FOR")
        right = ("IN", "OUT", "CONTEXT", "TOK/S", "FIRST MS", "MEMORY", "SLOTS")
        out.print(table(*columns, rows=rows, right=right))
    else:
        out.print("Nobody offers anything. `octo-node peers` shows whom this node is connected to.")
    if said["refused"]:
        out.print()
        refused = [(moment(entry["at_ms"]), entry["peer"][-8:], entry["reason"]) for entry in said["refused"]]
        out.print(table("REFUSED", "PEER", "WHY", rows=refused))


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
