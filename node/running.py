"""A running node, for the API and the CLI: implements `node.node.Node` over the parts that wiring made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference.hardware import Hardware
from market.buyer import Buyer
from market.identity import Binding, PeerId, SignedBinding
from market.money import format_octo
from market.offer import CheckedOffer
from market.ports import Balances, Clock, Rail
from market.signing import address_text
from node.api_keys import ApiKeys
from node.batches.desk import BatchDesk
from node.catalog import MeshCatalog
from node.kept_answers import KeptAnswers
from node.models.desk import ModelDesk
from node.offered import Providing
from node.own_network import OwnNetwork
from node.settings import Settings
from node.store import Store
from p2p.network import OctoNetwork

if TYPE_CHECKING:
    from node.chain import ChainSide

_LEDGER_NOTE = "local ledger, no chain: balances are play money, and stakes are not checked"


@dataclass(slots=True, kw_only=True)
class RunningNode:
    """`first_api_key` is set until one was shown: whoever shows it calls `keys.keep()`; its text is kept nowhere."""

    settings: Settings
    peer: PeerId
    binding: Binding
    signed_binding: SignedBinding
    hardware: Hardware
    network: OwnNetwork
    mesh: OctoNetwork | None
    buyer: Buyer
    catalog: MeshCatalog
    desk: ModelDesk
    batches: BatchDesk
    receipts: Store
    rail: Rail
    rail_name: str
    providing: Providing
    answers: KeptAnswers
    keys: ApiKeys
    first_api_key: str | None
    clock: Clock
    started_ms: int
    url: str = ""
    content_addresses: Sequence[str] = ()
    ready: bool = False
    chain: ChainSide | None = None
    warnings: Callable[[], Sequence[str]] = tuple

    def addresses(self) -> Sequence[str]:
        return self.mesh.addresses() if self.mesh else ()

    def offers(self) -> Sequence[CheckedOffer]:
        return self.network.offers()

    def refused_offers(self) -> Sequence[Mapping[str, Any]]:
        refused = self.mesh.refused_offers() if self.mesh else ()
        return [{"peer": entry.peer, "reason": entry.reason, "at_ms": entry.at_ms} for entry in refused]

    def peers(self) -> Sequence[Mapping[str, Any]]:
        return [
            {
                "peer": peer.peer,
                "address": peer.address,
                "rtt_ms": peer.rtt_ms,
                "since_ms": peer.connected_since_ms,
                "direction": peer.direction,
            }
            for peer in (self.mesh.peers() if self.mesh else ())
        ]

    async def balances(self) -> Balances:
        return await self.rail.balances()

    async def channels(self) -> Sequence[Mapping[str, Any]]:
        return [
            {
                "id": channel.id.hex(),
                "role": channel.role,
                "peer": channel.peer,
                "deposit": channel.deposit,
                "paid": channel.paid,
                "leaves": channel.receipts.size,
                "state": str(channel.state),
            }
            for channel in await self.receipts.channels()
        ]

    def counts(self) -> Mapping[str, int]:
        return {
            **self.providing.counts(),
            **self.providing.gauges(),
            **self.answers.counts(self.buyer),
        }

    def status(self) -> Mapping[str, Any]:
        load = self.providing.load()
        return {
            "peer": self.peer,
            "ready": self.ready,
            "network": self.settings.network,
            "addresses": list(self.addresses()),
            "url": self.url,
            "content": list(self.content_addresses),
            "wallet": address_text(self.binding.wallet),
            "receipt_key": address_text(self.binding.receipt_key),
            "tier": str(self.hardware.tier),
            "cores": self.hardware.cores,
            "ram_bytes": self.hardware.ram_bytes,
            "gpus": [gpu.name for gpu in self.hardware.gpus],
            "rail": self.rail_name,
            "rail_note": _LEDGER_NOTE if self.chain is None else "",
            "chain": self.chain.facts() if self.chain is not None else None,
            "peers": len(self.peers()),
            "offers": len(self.offers()),
            "models": [
                {
                    "model": offered.model,
                    "name": offered.name,
                    "context": offered.context,
                    "price_in": format_octo(offered.price_in),
                    "price_out": format_octo(offered.price_out),
                    "tokens_per_s": offered.tokens_per_s,
                    "first_token_ms": offered.first_token_ms,
                    "memory_bytes": offered.memory_bytes,
                    "engine": offered.engine,
                    "warm": offered.warm,
                    "works": [str(work) for work in offered.works],
                }
                for offered in self.providing.offers()
            ],
            "engine": {"running": load.running, "waiting": load.waiting, "isolation": self.providing.isolation()}
            if self.providing.offers()
            else None,
            "model_cache": {**self.providing.cache_counts(), **self.providing.gauges()},
            "started_ms": self.started_ms,
            "uptime_s": (self.clock.now_ms() - self.started_ms) // 1000,
            "warnings": list(self.warnings()),
        }

    def check_api_key(self, presented: str) -> bool:
        return self.keys.check(presented)

    def check_cli_token(self, presented: str) -> bool:
        return self.keys.is_token(presented)
