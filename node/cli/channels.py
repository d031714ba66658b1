"""`octo-node channels` and `octo-node settle`: who owes whom on the chain, and having it paid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.groups import DefaultGroup
from node.cli.on_chain import CHAIN_S, LOOK_S
from node.cli.options import data_dir_option, json_option, settings_of

if TYPE_CHECKING:
    from rich.table import Table

_ID_DIGITS = 64


@click.group(cls=DefaultGroup, default="list", short_help="Payment channels, as we and the chain have them.")
def channels() -> None:
    """Payment channels of this node, as payer and as payee.

    `octo-node channels` alone lists them.
    """


@channels.command("list")
@data_dir_option
@json_option
def list_channels(data_dir: Path | None, as_json: bool) -> None:
    """Every channel: what was promised in vouchers, and what the chain has paid of it."""
    from node.cli.remote import find_node
    from node.cli.show import print_json, screen

    found = find_node(settings_of(data_dir).data_dir, timeout_s=LOOK_S).get("/api/v1/channels")["channels"]
    if as_json:
        print_json({"channels": found})
    elif found:
        screen().print(_table(found))
    else:
        screen().print("No channels yet: the first is opened with the first task that is paid.")


@channels.command("close")
@click.argument("channel")
@data_dir_option
@json_option
def close_channel(channel: str, data_dir: Path | None, as_json: bool) -> None:
    """Close CHANNEL, named by its id or the beginning of it.

    As payee: redeem the last voucher, give the rest back. As payer: ask for the close; the payee then has a day or
    so to redeem, after which the rest comes back by itself.
    """
    from node.cli.remote import find_node
    from node.cli.show import print_json, screen

    node = find_node(settings_of(data_dir).data_dir, timeout_s=LOOK_S)
    whole = channel if len(channel) == _ID_DIGITS else _only(channel, node.get("/api/v1/channels")["channels"])
    said = node.post(f"/api/v1/channels/{whole}/close", {}, timeout_s=CHAIN_S)
    if as_json:
        print_json(said)
        return
    out = screen()
    out.print(_table([said["channel"]]))
    if said["transactions"]:
        out.print()
        out.print(_settlements(said["transactions"]))


@click.command(short_help="Redeem all that is due, now.")
@data_dir_option
@json_option
def settle(data_dir: Path | None, as_json: bool) -> None:
    """Turn vouchers into money on the chain, without waiting for the policy (chain.settle_at, chain.settle_after_s)."""
    from node.cli.remote import find_node
    from node.cli.show import octo, print_json, screen

    said = find_node(settings_of(data_dir).data_dir).post("/api/v1/settle", {}, timeout_s=CHAIN_S)
    if as_json:
        print_json(said)
        return
    out = screen()
    if said["transactions"]:
        out.print(_settlements(said["transactions"]))
        out.print(f"{octo(said['amount'])} redeemed.")
    else:
        out.print("Nothing is due.")
    if said["left"]:
        out.print(f"{octo(said['left'])} are not redeemed: `octo-node channels` shows where.")


def _only(beginning: str, found: Sequence[Mapping[str, Any]]) -> str:
    """The id of the one channel that begins so."""
    from market.errors import RequestInvalid

    ids = [str(channel["id"]) for channel in found if channel["id"].startswith(beginning.lower())]
    if not beginning or len(ids) != 1:
        raise RequestInvalid(
            f"{len(ids) if beginning else 'no'} channels begin with {beginning[:_ID_DIGITS]!r}.",
            next_step="`octo-node channels list --json` shows whole ids.",
        )
    return ids[0]


def _table(found: Sequence[Mapping[str, Any]]) -> Table:
    from node.cli.show import bare, table

    rows = [
        (
            channel["id"][:12],
            "pays" if channel["role"] == "payer" else "is paid by",
            channel["peer"][-8:],
            bare(channel["deposit"]),
            bare(channel["paid"]),
            bare(channel["on_chain"]["redeemed"]) if channel["on_chain"] else "?",
            _state(channel),
        )
        for channel in found
    ]
    columns = ("CHANNEL", "", "PEER", "DEPOSIT", "PAID", "REDEEMED", "STATE")
    return table(*columns, rows=rows, right=("DEPOSIT", "PAID", "REDEEMED"))


def _state(channel: Mapping[str, Any]) -> str:
    from node.cli.show import moment

    seen = channel["on_chain"]
    if seen is None:
        return str(channel["state"])
    until = f" until {moment(seen['closes_at_s'] * 1000)}" if seen["closes_at_s"] else ""
    return f"{seen['state']}{until}"


def _settlements(transactions: Sequence[Mapping[str, Any]]) -> Table:
    from node.cli.show import bare, table

    rows = [(one["hash"], len(one["channels"]), bare(one["amount"]), f"{one['gas']:,}") for one in transactions]
    return table("TRANSACTION", "CHANNELS", "OCTO", "GAS", rows=rows, right=("CHANNELS", "OCTO", "GAS"))
