"""`octo-node stake`: the OCTO-A behind this node's offers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from node.cli.groups import DefaultGroup
from node.cli.on_chain import CHAIN_S, LOOK_S, OctoAmount
from node.cli.options import data_dir_option, json_option, settings_of


@click.group(cls=DefaultGroup, default="show", short_help="The stake behind this node's offers.")
def stake() -> None:
    """What a provider bonds for its tier: without it, nobody sends it shared prompts.

    `octo-node stake` alone shows it.
    """


@stake.command("show")
@data_dir_option
@json_option
def show_stake(data_dir: Path | None, as_json: bool) -> None:
    """What is bonded, for which tier, what unbonds, and what the wallet has besides."""
    from node.cli.remote import find_node

    _show(find_node(settings_of(data_dir).data_dir, timeout_s=LOOK_S).get("/api/v1/stake"), as_json=as_json)


@stake.command("add")
@click.argument("amount", type=OctoAmount(), required=False)
@click.option("--tier", type=click.Choice(["consumer", "prosumer", "enterprise"]),
              help="The tier to stake for (default: the one that this machine offers).")  # fmt: skip
@data_dir_option
@json_option
def add_stake(amount: int | None, tier: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Bond AMOUNT of OCTO-A, or what the tier still takes, and have this node's receipt key answer for it."""
    _change({"action": "add", "amount": amount, "tier": tier}, data_dir, as_json=as_json)


@stake.command("unstake")
@click.argument("amount", type=OctoAmount(), required=False)
@click.option("--all", "everything", is_flag=True, help="All that is bonded.")
@data_dir_option
@json_option
def unstake(amount: int | None, everything: bool, data_dir: Path | None, as_json: bool) -> None:
    """Start to unbond AMOUNT of OCTO-A, or --all of it. It leaves 7 days later.

    What stays must be enough for the tier. If something unbonds already, all of it waits 7 days from now.
    """
    if (amount is None) != everything:
        raise click.UsageError("Name an amount, or --all.")
    _change({"action": "unstake", "amount": amount}, data_dir, as_json=as_json)


@stake.command("withdraw")
@data_dir_option
@json_option
def withdraw(data_dir: Path | None, as_json: bool) -> None:
    """Take out what has unbonded."""
    _change({"action": "withdraw"}, data_dir, as_json=as_json)


def _change(change: Mapping[str, Any], data_dir: Path | None, *, as_json: bool) -> None:
    from node.cli.remote import find_node

    node = find_node(settings_of(data_dir).data_dir)
    _show(node.post("/api/v1/stake", change, timeout_s=CHAIN_S), as_json=as_json)


def _show(said: Mapping[str, Any], *, as_json: bool) -> None:
    from node.cli.on_chain import gas, octo_a, stake_line, transactions_table, unbonding_line
    from node.cli.show import facts, print_json, screen

    if as_json:
        print_json(said)
        return
    rows: list[tuple[str, object]] = [("wallet", said["wallet"]), ("stake", stake_line(said))]
    if said["unbonding"]:
        rows.append(("unbonding", unbonding_line(said)))
    rows.append(("receipt key", said["receipt_key"] or "none is bound"))
    rows.append(("unstaked", octo_a(said["octo_a"])))
    rows.append(("gas", gas(said["gas_wei"])))
    out = screen()
    out.print(facts(rows))
    if said.get("transactions"):
        out.print()
        out.print(transactions_table(said["transactions"]))
