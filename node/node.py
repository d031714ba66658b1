"""A running node, as the API and the CLI see it. `node.wiring.open_node` builds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from market.buyer import Buyer
from market.identity import Binding, PeerId, SignedBinding
from market.offer import CheckedOffer
from market.ports import Balances, Meter, Rail, Tokenizer
from market.record import ReceiptRecord
from market.work import Work

if TYPE_CHECKING:
    from node.batches.desk import BatchDesk
    from node.chain import ChainSide
    from node.kept_answers import KeptAnswers
    from node.models.desk import ModelDesk


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOnOffer:
    """A model that somebody serves now. Prices are 10^-18 OCTO per million tokens, of the cheapest provider."""

    model: str
    """Manifest CID."""
    name: str
    weights: str
    context: int
    price_in: int
    price_out: int
    providers: tuple[str, ...]
    works: tuple[Work, ...] = (Work.CHAT,)
    """What any of its providers does with it."""


class Catalog(Protocol):
    """Which models are on offer, under which names."""

    def on_offer(self) -> Sequence[ModelOnOffer]: ...

    def resolve(self, name: str) -> str:
        """The manifest CID of a name, a CID or `default`; raises ModelUnknown saying what is on offer."""

    async def tokenizer(self, model: str) -> Tokenizer:
        """Of a manifest CID; raises ModelUnknown or ContentUnavailable."""

    async def meter(self, model: str, work: Work) -> Meter:
        """How work with a model is counted; raises ModelUnknown or ContentUnavailable."""


class Receipts(Protocol):
    async def receipt_by_cid(self, cid: str) -> ReceiptRecord | None: ...

    async def latest_receipts(self, limit: int) -> Sequence[ReceiptRecord]: ...


class Node(Protocol):
    """`network` is p2p.network's face; `status` is plain data for people and JSON."""

    @property
    def peer(self) -> PeerId: ...

    @property
    def binding(self) -> Binding: ...

    @property
    def signed_binding(self) -> SignedBinding: ...

    @property
    def buyer(self) -> Buyer: ...

    @property
    def catalog(self) -> Catalog: ...

    @property
    def desk(self) -> ModelDesk: ...

    @property
    def batches(self) -> BatchDesk: ...

    @property
    def receipts(self) -> Receipts: ...

    @property
    def rail(self) -> Rail: ...

    @property
    def rail_name(self) -> str: ...

    @property
    def chain(self) -> ChainSide | None:
        """The chain we settle on; None on the local ledger."""

    @property
    def answers(self) -> KeptAnswers:
        """What is told again, by us and to us."""

    def addresses(self) -> Sequence[str]:
        """Multiaddrs, peer id included, that another node can join."""

    def offers(self) -> Sequence[CheckedOffer]:
        """Every live offer, our own too."""

    def refused_offers(self) -> Sequence[Mapping[str, Any]]:
        """`{peer, reason, at_ms}` of offers that did not check."""

    def peers(self) -> Sequence[Mapping[str, Any]]:
        """`{peer, address, rtt_ms, since_ms, direction}` of connected peers."""

    async def balances(self) -> Balances: ...

    async def channels(self) -> Sequence[Mapping[str, Any]]:
        """`{id, role, peer, deposit, paid, leaves, state}`."""

    def counts(self) -> Mapping[str, int]:
        """What caches did since the start, and what they hold, by the names in `node.api.metrics`."""

    def status(self) -> Mapping[str, Any]:
        """Peer, addresses, tier, isolation, model served, rail, engine load, ports, uptime, warnings."""

    def check_api_key(self, presented: str) -> bool: ...

    def check_cli_token(self, presented: str) -> bool: ...
