"""An Offer: what a provider advertises on the mesh, signed with its peer key, new `seq` and expiry each time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from market.errors import EncodingInvalid
from market.identity import Binding, PeerSigner, SignedBinding, check_binding, check_peer_signature
from market.money import Amount
from market.task import Mode, Privacy
from market.values import Word, decode, encode, value
from market.work import Work

OFFER_LIMIT_BYTES = 16 * 1024
OFFER_TTL_LIMIT_MS = 10 * 60_000
CLOCK_SKEW_MS = 30_000
_SIGNING_CONTEXT = b"octo/offer/1\0"

Cid = Annotated[str, Field(max_length=128)]
Multiaddr = Annotated[str, Field(max_length=256)]
Feature = Annotated[str, Field(min_length=1, max_length=32)]


class Tier(Word):
    CONSUMER = "consumer"
    PROSUMER = "prosumer"
    ENTERPRISE = "enterprise"


@value
class ModelOffer:
    """One model of an offer. Prices are 10^-18 OCTO per million tokens (or units, see `market.work`); `context` is
    tokens per slot; `works` what it can be asked for. Measured at start: `tokens_per_s` of one stream,
    `first_token_ms` from a request of 64 tokens to its first token, `memory_bytes` that the model takes; 0: not known.

    `mode_percent` is the share of the price that each of `modes` costs, in their order; 100 where it says nothing.
    `cached_percent` is the share of that which an answer from the provider's cache costs; 100: it keeps none.
    `features` is what the engine heeds of a task beyond the plain: `market.ports.EngineInfo.features`.
    `warm`: it is in memory now; another one is loaded by the first task that asks for it.
    """

    model: Cid
    weights: Cid
    name: Annotated[str, Field(max_length=128)]
    context: Annotated[int, Field(ge=1, lt=2**31)]
    price_in: Amount
    price_out: Amount
    modes: Annotated[tuple[Mode, ...], Field(max_length=8)]
    engine: Annotated[str, Field(max_length=128)]
    tokens_per_s: Annotated[int, Field(ge=0, lt=2**31)]
    first_token_ms: Annotated[int, Field(ge=0, lt=2**31)] = 0
    memory_bytes: Annotated[int, Field(ge=0, lt=2**53)] = 0
    works: Annotated[tuple[Work, ...], Field(min_length=1, max_length=8)] = (Work.CHAT,)
    mode_percent: Annotated[tuple[Annotated[int, Field(ge=0, le=1000)], ...], Field(max_length=8)] = ()
    cached_percent: Annotated[int, Field(ge=0, le=100)] = 100
    features: Annotated[tuple[Feature, ...], Field(max_length=16)] = ()
    warm: bool = True

    @property
    def keeps_answers(self) -> bool:
        return self.cached_percent < 100

    def prices(self, mode: Mode, *, cached: bool = False) -> tuple[int, int]:
        """Per million tokens in and out, in this mode; of an answer from the cache."""
        percent = next((share for own, share in zip(self.modes, self.mode_percent, strict=False) if own == mode), 100)
        share = percent * (self.cached_percent if cached else 100)
        return self.price_in * share // 10_000, self.price_out * share // 10_000


@value
class Offer:
    """`models` are run here. `stores` are the manifest CIDs of models that are kept and served as files, run or not.
    `content` are HTTP multiaddrs of the public content listener (`/ip4/…/tcp/…/http`)."""

    network: Annotated[str, Field(max_length=64)]
    peer: Annotated[str, Field(max_length=64)]
    seq: Annotated[int, Field(ge=0, lt=2**53)]
    issued_ms: Annotated[int, Field(ge=0, lt=2**53)]
    expires_ms: Annotated[int, Field(ge=0, lt=2**53)]
    tier: Tier
    slots: Annotated[int, Field(ge=0, le=4096)]
    models: Annotated[tuple[ModelOffer, ...], Field(max_length=32)]
    stores: Annotated[tuple[Cid, ...], Field(max_length=64)] = ()
    privacy: Annotated[tuple[Privacy, ...], Field(max_length=4)]
    rails: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=8)]
    addresses: Annotated[tuple[Multiaddr, ...], Field(max_length=8)]
    content: Annotated[tuple[Multiaddr, ...], Field(max_length=8)]
    isolation: Annotated[str, Field(max_length=64)]
    binding: SignedBinding


@value
class SignedOffer:
    body: Annotated[bytes, Field(max_length=OFFER_LIMIT_BYTES)]
    signature: Annotated[bytes, Field(min_length=64, max_length=64)]


@value
class CheckedOffer:
    """An offer that was checked: the only kind that routing may see."""

    offer: Offer
    binding: Binding


def sign_offer(offer: Offer, peer: PeerSigner) -> SignedOffer:
    body = encode(Offer, offer)
    return SignedOffer(body=body, signature=peer.sign(_SIGNING_CONTEXT + body))


def check_offer(signed: SignedOffer, *, network: str, now_ms: int) -> CheckedOffer:
    """The Offer inside, once signature, binding, network and times hold; raises EncodingInvalid with the reason."""
    offer = decode(Offer, signed.body, limit_bytes=OFFER_LIMIT_BYTES)
    if offer.network != network:
        raise EncodingInvalid(f"the offer is for network {offer.network!r}, not {network!r}.")
    if not offer.issued_ms - CLOCK_SKEW_MS <= now_ms < offer.expires_ms:
        raise EncodingInvalid("the offer has expired or lies in the future.")
    if offer.expires_ms - offer.issued_ms > OFFER_TTL_LIMIT_MS:
        raise EncodingInvalid(f"the offer wants to live longer than {OFFER_TTL_LIMIT_MS // 1000} s.")
    check_peer_signature(offer.peer, _SIGNING_CONTEXT + signed.body, signed.signature)
    binding = check_binding(offer.binding, network=network, now_ms=now_ms)
    if binding.peer != offer.peer:
        raise EncodingInvalid("the offer carries another peer's binding.")
    return CheckedOffer(offer=offer, binding=binding)
