"""`octo-node wallet`: addresses, balances, channels."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.options import data_dir_option, json_option, settings_of


@click.command(short_help="Balances and payment channels.")
@data_dir_option
@json_option
def wallet(data_dir: Path | None, as_json: bool) -> None:
    """Addresses, balances and payment channels of this node."""
    from node.cli.remote import find_node
    from node.cli.show import bare, facts, octo, print_json, screen, table

    folder = settings_of(data_dir).data_dir
    node = find_node(folder)
    said = node.get("/api/v1/wallet")
    if as_json:
        print_json(said)
        return
    balances = said["balances"]
    out = screen()
    out.print(
        facts(
            [
                ("wallet", said["wallet"]),
                ("receipt key", said["receipt_key"]),
                ("keystore", folder / "keys" / "wallet.json"),
                ("rail", said["rail"]),
                ("available", octo(balances["available"])),
                ("locked", f"{octo(balances['locked'])} in channels"),
                ("spent", octo(balances["spent"])),
                ("earned", octo(balances["earned"])),
                ("granted", octo(balances["granted"])),
            ]
        )
    )
    if said["channels"]:
        out.print()
        rows = [
            (
                channel["id"][:12],
                "pays" if channel["role"] == "payer" else "is paid by",
                channel["peer"][-8:],
                bare(channel["deposit"]),
                bare(channel["paid"]),
                channel["leaves"],
                channel["state"],
            )
            for channel in said["channels"]
        ]
        columns = ("CHANNEL", "", "PEER", "DEPOSIT", "PAID", "FOR", "STATE")
        out.print(table(*columns, rows=rows, right=("DEPOSIT", "PAID", "FOR")))
