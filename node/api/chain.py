"""The node's money on its chain, for its owner: stake, channels, settlement, play money.

Looking takes an API key like everything else; what moves money wants the token of the data folder (see `guard`).
Amounts are integers of 10^-18. Knows HTTP and words; what is done is `node.staker`'s and `node.cashier`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from aiohttp import web
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from market.errors import RequestInvalid
from market.money import AMOUNT_LIMIT
from market.offer import Tier
from node.api.bodies import Shape, parse_body
from node.api.errors import refusal
from node.api.limits import ApiLimits, read_body
from node.faults import NoChain
from node.node import Node

if TYPE_CHECKING:
    from contracts.chain import TxReceipt
    from contracts.channels import OnChain
    from contracts.collector import Settled
    from node.chain import ChainSide

_ID_DIGITS = 64


class StakeChange(Shape):
    """What to do with the stake. Without `amount`: add what the tier takes, unstake all of it."""

    action: Literal["add", "unstake", "withdraw", "bind"]
    amount: Annotated[int, Field(gt=0, le=AMOUNT_LIMIT)] | None = None
    tier: Literal["consumer", "prosumer", "enterprise"] | None = None

    @model_validator(mode="after")
    def _means_what_it_says(self) -> Self:
        """A number that would be ignored was meant for something."""
        if self.amount is not None and self.action not in ("add", "unstake"):
            raise PydanticCustomError("amount", "only add and unstake take one", {"param": "amount"})
        if self.tier is not None and self.action != "add":
            raise PydanticCustomError("tier", "only add takes one", {"param": "tier"})
        return self


class ChainApi:
    def __init__(self, node: Node, *, limits: ApiLimits) -> None:
        self._node = node
        self._limits = limits

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v1/stake", self.stake),
            web.post("/api/v1/stake", self.change_stake),
            web.get("/api/v1/channels", self.channels),
            web.post("/api/v1/channels/{id}/close", self.close_channel),
            web.post("/api/v1/settle", self.settle),
            web.post("/api/v1/wallet/faucet", self.faucet),
        ]

    async def stake(self, _request: web.Request) -> web.Response:
        return _json(await self._chain().staker.facts())

    async def change_stake(self, request: web.Request) -> web.Response:
        """The stake as it is then, with the transactions that it took."""
        staker = self._chain().staker
        change = parse_body(StakeChange, await read_body(request, self._limits))
        match change.action:
            case "add":
                done = await staker.add(change.amount, Tier(change.tier) if change.tier else None)
            case "unstake":
                done = [await staker.unstake(change.amount)]
            case "withdraw":
                done = [await staker.withdraw()]
            case "bind":
                done = await staker.bind()
        return _json({**await staker.facts(), "transactions": [_transaction(receipt) for receipt in done]})

    async def channels(self, _request: web.Request) -> web.Response:
        """Those of the local ledger, too, and of a chain that we settled on before: `on_chain` is null for them."""
        return _json({"channels": await self._rows()})

    async def close_channel(self, request: web.Request) -> web.Response:
        """The channel as it is then, with what was redeemed on the way."""
        chain, channel_id = self._chain(), _channel_id(request.match_info["id"])
        settled = await chain.cashier.close(channel_id)
        if settled is None:
            return refusal(
                404,
                "channel_not_found",
                f"this node has no channel {channel_id.hex()}.",
                next_step="GET /api/v1/channels lists them.",
            )
        (row,) = [row for row in await self._rows() if row["id"] == channel_id.hex()]
        return _json({"channel": row, **_settlement(settled)})

    async def settle(self, _request: web.Request) -> web.Response:
        chain = self._chain()
        settled = await chain.cashier.settle()
        return _json({**_settlement(settled), "left": await chain.parts.collector.unsettled()})

    async def faucet(self, _request: web.Request) -> web.Response:
        return _json(asdict(await self._chain().cashier.draw()))

    def _chain(self) -> ChainSide:
        if self._node.chain is None:
            raise NoChain
        return self._node.chain

    async def _rows(self) -> list[dict[str, Any]]:
        chain = self._node.chain
        seen = await chain.cashier.seen() if chain is not None else {}
        return [
            {**channel, "on_chain": _on_chain(seen.get(bytes.fromhex(channel["id"])))}
            for channel in await self._node.channels()
        ]


def _channel_id(text: str) -> bytes:
    try:
        if len(text) != _ID_DIGITS:
            raise ValueError
        return bytes.fromhex(text)
    except ValueError:
        raise RequestInvalid("a channel's id has 64 hexadecimal digits.", param="id") from None


def _on_chain(state: OnChain | None) -> dict[str, Any] | None:
    if state is None:
        return None
    word = "closed" if state.closed else "closing" if state.closing else "open" if state.opened else "missing"
    return {
        "state": word,
        "deposit": state.deposit,
        "redeemed": state.redeemed,
        "closes_at_s": state.closes_at if state.closing else None,
    }


def _transaction(receipt: TxReceipt) -> dict[str, Any]:
    return {"hash": f"0x{receipt.transaction.hex()}", "block": receipt.block, "gas": receipt.gas_used}


def _settlement(settled: Sequence[Settled]) -> dict[str, Any]:
    return {
        "transactions": [
            {
                "hash": f"0x{one.transaction.hex()}",
                "channels": [channel.hex() for channel in one.channels],
                "amount": one.amount,
                "gas": one.gas,
            }
            for one in settled
        ],
        "amount": sum(one.amount for one in settled),
    }


def _json(content: Mapping[str, Any]) -> web.Response:
    return web.json_response(text=json.dumps(content))
