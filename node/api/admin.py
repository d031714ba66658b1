"""The node about itself: status, offers, peers, wallet, receipts, metrics; `/healthz` for whoever watches it.

Plain JSON of plain facts. Amounts and prices are integers of 10^-18 OCTO and may exceed 2^53.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import structlog
from aiohttp import web

from market.errors import OctoError, RequestInvalid
from market.offer import CheckedOffer, ModelOffer
from market.record import ReceiptRecord, unit_of
from market.signing import address_text
from market.values import cid_digest
from node.api.errors import refusal
from node.api.metrics import CONTENT_TYPE, Metrics
from node.node import Node
from verifier.receipt_file import encode, from_record

RECEIPTS_LIMIT = 500
CHAIN_S = 5.0
"""How long the wallet's page waits for the chain."""
_RECEIPT_TYPE = "application/vnd.ipld.dag-cbor"

log = structlog.get_logger()


class Admin:
    def __init__(self, node: Node, *, metrics: Metrics) -> None:
        self._node = node
        self._metrics = metrics

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self.health),
            web.get("/metrics", self.metrics),
            web.get("/api/v1/status", self.status),
            web.get("/api/v1/models", self.models),
            web.get("/api/v1/offers", self.offers),
            web.get("/api/v1/peers", self.peers),
            web.get("/api/v1/wallet", self.wallet),
            web.get("/api/v1/receipts", self.receipts),
            web.get("/api/v1/receipts/{cid}", self.receipt),
        ]

    async def health(self, _request: web.Request) -> web.Response:
        """The only route without a key, so it says nothing else. `ready` is what the node's status says, else true."""
        return _json({"status": "ok", "ready": bool(self._node.status().get("ready", True))})

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def status(self, _request: web.Request) -> web.Response:
        return _json(dict(self._node.status()))

    async def models(self, _request: web.Request) -> web.Response:
        return _json({"models": [asdict(model) for model in self._node.catalog.on_offer()]})

    async def offers(self, _request: web.Request) -> web.Response:
        """Who offers what, and whose offer was refused, why."""
        chain, live = self._node.chain, self._node.offers()
        unvetted = [chain.stakes.vet(checked) if chain is not None else None for checked in live]
        return _json(
            {
                "offers": [{**_offer(checked), "unvetted": why} for checked, why in zip(live, unvetted, strict=True)],
                "refused": [dict(refused) for refused in self._node.refused_offers()],
            }
        )

    async def peers(self, _request: web.Request) -> web.Response:
        return _json({"peers": [dict(peer) for peer in self._node.peers()]})

    async def wallet(self, _request: web.Request) -> web.Response:
        """`chain` is null on the local ledger; what it holds is null while the chain does not answer."""
        node = self._node
        chain, balances = await asyncio.gather(self._wallet_on_chain(), node.balances())
        return _json(
            {
                "rail": node.rail_name,
                "peer": node.peer,
                "wallet": address_text(node.binding.wallet),
                "receipt_key": address_text(node.binding.receipt_key),
                "balances": asdict(balances),
                "chain": chain,
                "channels": [dict(channel) for channel in await node.channels()],
            }
        )

    async def _wallet_on_chain(self) -> dict[str, Any] | None:
        chain = self._node.chain
        if chain is None:
            return None
        held: dict[str, Any] = {"octo": None, "octo_a": None, "gas_wei": None}
        stake: dict[str, Any] | None = None
        try:
            async with asyncio.timeout(CHAIN_S):
                held = asdict(await chain.cashier.funds())
                stake = await chain.staker.facts()
        except (OctoError, TimeoutError) as error:
            log.info("wallet_not_seen", why=str(error) or "the chain is too slow")
        return {**chain.facts(), **held, "stake": stake}

    async def receipts(self, request: web.Request) -> web.Response:
        """The latest first; `?limit=` up to RECEIPTS_LIMIT."""
        text = request.query.get("limit", "20")
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
        if not 1 <= limit <= RECEIPTS_LIMIT:
            raise RequestInvalid(f"limit should be a number from 1 to {RECEIPTS_LIMIT}.", param="limit")
        return _json({"receipts": [_receipt(r) for r in await self._node.receipts.latest_receipts(limit)]})

    async def receipt(self, request: web.Request) -> web.Response:
        """The signed file that `octo-node receipts verify` reads."""
        cid = request.match_info["cid"]
        cid_digest(cid)  # raises for what is no CID, so that what goes into the file's name is one
        record = await self._node.receipts.receipt_by_cid(cid)
        if record is None:
            return refusal(
                404,
                "receipt_not_found",
                f"this node holds no receipt {cid}.",
                next_step="GET /api/v1/receipts lists the latest.",
            )
        # In a thread: the longest answer has 131,072 tokens, and encoding takes about a microsecond for each.
        data = await asyncio.to_thread(lambda: encode(from_record(record)))
        headers = {"Content-Type": _RECEIPT_TYPE, "Content-Disposition": f'attachment; filename="{cid}.receipt"'}
        return web.Response(body=data, headers=headers)


def _json(content: Mapping[str, Any]) -> web.Response:
    return web.json_response(text=json.dumps(content, default=_plain))


def _plain(odd: object) -> object:
    if isinstance(odd, bytes):
        return odd.hex()
    if isinstance(odd, (set, frozenset)):
        return sorted(map(str, odd))
    return dict(odd) if isinstance(odd, Mapping) else str(odd)


def _offer(checked: CheckedOffer) -> dict[str, Any]:
    offer = checked.offer
    return {
        "peer": offer.peer,
        "wallet": address_text(checked.binding.wallet),
        "tier": offer.tier,
        "slots": offer.slots,
        "models": [_model(model) for model in offer.models],
        "privacy": offer.privacy,
        "rails": offer.rails,
        "addresses": offer.addresses,
        "content": offer.content,
        "isolation": offer.isolation,
        "seq": offer.seq,
        "issued_ms": offer.issued_ms,
        "expires_ms": offer.expires_ms,
    }


def _model(model: ModelOffer) -> dict[str, Any]:
    return asdict(model)


def _receipt(record: ReceiptRecord) -> dict[str, Any]:
    receipt, quote = record.receipt.read(), record.quote.read()
    return {
        "receipt": record.receipt.cid(),
        "role": record.role,
        "provider": receipt.provider,
        "client": receipt.client,
        "task": receipt.task.hex(),
        "seq": receipt.seq,
        "final": receipt.final,
        "finish": receipt.finish,
        "model": receipt.model,
        "weights": receipt.weights,
        "engine": receipt.engine,
        "rail": receipt.rail,
        "channel": receipt.channel.hex(),
        "tokens_in": receipt.tokens_in,
        "tokens_out": receipt.tokens_out,
        "unit": unit_of(record.pieces),
        "price_in": quote.price_in,
        "price_out": quote.price_out,
        "amount": receipt.amount,
        "started_ms": receipt.started_ms,
        "ended_ms": receipt.ended_ms,
    }
