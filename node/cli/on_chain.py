"""Amounts, stakes and transactions of a chain, as the commands take and show them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from market.errors import OctoError

if TYPE_CHECKING:
    from rich.table import Table

CHAIN_S = 300.0
"""How long a command waits for transactions: blocks may be slow, and the node tends them anyway."""
LOOK_S = 30.0
_WEI = 10**18


class OctoAmount(click.ParamType[int]):
    """`1.25`, as an integer of 10^-18."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from market.money import parse_octo

        if isinstance(value, int):
            return value
        try:
            amount = parse_octo(str(value))
        except OctoError as error:
            self.fail(str(error), param, ctx)
        if amount == 0:
            self.fail("an amount above 0 is wanted.", param, ctx)
        return amount


def octo_a(amount: int) -> str:
    from market.money import format_octo

    return format_octo(amount).replace("OCTO", "OCTO-A")


def gas(wei: int) -> str:
    """Of the chain's own coin, rounded: what matters is whether it will do."""
    return f"{wei / _WEI:.6f} of the chain's coin"


def money_rows(status: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Where a node settles: a status, with the `stake` of a node on a chain."""
    chain = status.get("chain")
    if not chain:
        return [("money", f"{status['rail']}: {status['rail_note']}")]
    rows: list[tuple[str, object]] = [("money", f"on chain {chain['chain_id']} at {chain['host']}: {chain['state']}")]
    rows.extend(("", f"{name:<16} {address}") for name, address in chain["contracts"].items())
    stake = status.get("stake")
    if stake is None:
        rows.append(("stake", "not known: the chain does not answer"))
    elif status["models"] or stake["bonded"]:
        rows.append(("stake", stake_line(stake)))
    return rows


def stake_line(stake: Mapping[str, Any]) -> str:
    """`1000 OCTO-A for the consumer tier`, and what is wrong with it."""
    bonded = f"{octo_a(stake['bonded'])} for the {stake['tier']} tier" if stake["bonded"] else "none"
    if stake["active"]:
        return bonded
    wanted = f"the {stake['offered_tier']} tier takes {octo_a(stake['minimum'])} and this node's receipt key"
    return f"{bonded}; not active: {wanted}. `octo-node stake add` sees to both"


def unbonding_line(stake: Mapping[str, Any]) -> str:
    from node.cli.show import moment, span

    left_s = stake["release_at_s"] - time.time()
    leaves = f"in {span(left_s)}, on {moment(stake['release_at_s'] * 1000)}" if left_s > 0 else "now"
    return f"{octo_a(stake['unbonding'])}, to be withdrawn {leaves}"


def transactions_table(transactions: Iterable[Mapping[str, Any]]) -> Table:
    from node.cli.show import table

    rows = [(one["hash"], one["block"], f"{one['gas']:,}") for one in transactions]
    return table("TRANSACTION", "BLOCK", "GAS", rows=rows, right=("BLOCK", "GAS"))
