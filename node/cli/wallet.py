"""`octo-node wallet`: addresses, balances, channels; and play money where there is any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from node.cli.groups import DefaultGroup
from node.cli.on_chain import CHAIN_S, LOOK_S
from node.cli.options import data_dir_option, json_option, settings_of


@click.group(cls=DefaultGroup, default="show", short_help="Balances and payment channels.")
def wallet() -> None:
    """What this node holds and owes.

    `octo-node wallet` alone shows it.
    """


@wallet.command("show")
@data_dir_option
@json_option
def show_wallet(data_dir: Path | None, as_json: bool) -> None:
    """Addresses, balances and payment channels of this node; on a chain, gas and stake too."""
    from node.cli.remote import find_node
    from node.cli.show import bare, facts, octo, print_json, screen, table

    folder = settings_of(data_dir).data_dir
    said = find_node(folder, timeout_s=LOOK_S).get("/api/v1/wallet")
    if as_json:
        print_json(said)
        return
    balances = said["balances"]
    rows: list[tuple[str, object]] = [
        ("wallet", said["wallet"]),
        ("receipt key", said["receipt_key"]),
        ("keystore", folder / "keys" / "wallet.json"),
        ("rail", said["rail"]),
        ("available", octo(balances["available"])),
        ("locked", f"{octo(balances['locked'])} in channels"),
        ("spent", octo(balances["spent"])),
        ("earned", octo(balances["earned"])),
    ]
    rows.extend(_on_chain(said["chain"]) if said["chain"] else [("granted", octo(balances["granted"]))])
    out = screen()
    out.print(facts(rows))
    if said["channels"]:
        out.print()
        lines = [
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
        out.print(table(*columns, rows=lines, right=("DEPOSIT", "PAID", "FOR")))


@wallet.command("faucet")
@data_dir_option
@json_option
def draw(data_dir: Path | None, as_json: bool) -> None:
    """Draw gas, OCTO and OCTO-A from the faucet of a devnet's chain."""
    from node.cli.on_chain import gas, octo_a
    from node.cli.remote import find_node
    from node.cli.show import facts, octo, print_json, screen

    said = find_node(settings_of(data_dir).data_dir).post("/api/v1/wallet/faucet", {}, timeout_s=CHAIN_S)
    if as_json:
        print_json(said)
        return
    screen().print(
        facts([("OCTO", octo(said["octo"])), ("OCTO-A", octo_a(said["octo_a"])), ("gas", gas(said["gas_wei"]))])
    )


def _on_chain(chain: Mapping[str, Any]) -> list[tuple[str, object]]:
    from node.cli.on_chain import gas, octo_a, stake_line

    rows: list[tuple[str, object]] = [("chain", f"{chain['chain_id']} at {chain['host']}: {chain['state']}")]
    if chain["octo_a"] is None:
        return [*rows, ("", "it does not answer: the amounts are those last seen")]
    rows.append(("unstaked", octo_a(chain["octo_a"])))
    rows.append(("gas", gas(chain["gas_wei"])))
    if chain["stake"] is not None and (chain["stake"]["bonded"] or chain["stake"]["unbonding"]):
        rows.append(("stake", stake_line(chain["stake"])))
    return rows
