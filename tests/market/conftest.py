"""Two parties with real keys, and every signed word of the market made from them. Keys are hashes of names."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import nacl.signing
import pytest

from market.channel import Channel
from market.identity import Binding, PeerId, SignedBinding, peer_of_public_key, sign_binding
from market.money import OCTO
from market.offer import ModelOffer, Offer, SignedOffer, Tier, sign_offer
from market.quote import Quote, SignedQuote, sign_quote
from market.receipt import Receipt
from market.signing import Secp256k1Signer
from market.task import Mode, Privacy
from market.voucher import ChannelTerms, Opening, sign_opening

NETWORK = "octo-test"
RAIL = "ledger:octo-test"
NOW_MS = 1_790_000_000_000


def digest(tag: str) -> bytes:
    return hashlib.sha256(tag.encode()).digest()


class KeyedPeer:
    """A PeerSigner over a key in memory."""

    def __init__(self, name: str) -> None:
        self._key = nacl.signing.SigningKey(digest(f"peer {name}"))
        self.peer: PeerId = peer_of_public_key(bytes(self._key.verify_key))

    def sign(self, data: bytes) -> bytes:
        return bytes(self._key.sign(data).signature)


@dataclass(frozen=True)
class Party:
    keys: KeyedPeer
    receipt_key: Secp256k1Signer
    wallet: Secp256k1Signer
    session: Secp256k1Signer

    @property
    def peer(self) -> PeerId:
        return self.keys.peer


def party(name: str) -> Party:
    receipt_key, wallet, session = (Secp256k1Signer(digest(f"{role} {name}")) for role in ("receipt", "wallet", "pay"))
    return Party(KeyedPeer(name), receipt_key, wallet, session)


class Words:
    """Makes signed words between `seller` and `buyer`; keyword arguments change fields before signing."""

    network, rail, now_ms = NETWORK, RAIL, NOW_MS

    def __init__(self) -> None:
        self.seller, self.buyer, self.stranger = party("seller"), party("buyer"), party("stranger")

    @staticmethod
    def digest(tag: str) -> bytes:
        return digest(tag)

    def party(self, name: str) -> Party:
        return party(name)

    def binding(self, who: Party | None = None, **changes: Any) -> SignedBinding:
        who = who or self.seller
        binding = Binding(
            network=NETWORK,
            peer=who.peer,
            receipt_key=who.receipt_key.address,
            wallet=who.wallet.address,
            not_before_ms=NOW_MS - 10**8,
            not_after_ms=NOW_MS + 10**9,
            nonce=1,
        )
        return sign_binding(replace(binding, **changes), peer=who.keys, receipt_key=who.receipt_key, wallet=who.wallet)

    def model_offer(self, **changes: Any) -> ModelOffer:
        offer = ModelOffer(
            model="bafymodel",
            weights="bafyweights",
            name="smollm2-135m-instruct",
            context=2048,
            price_in=OCTO // 10,
            price_out=OCTO,
            modes=(Mode.REALTIME, Mode.BATCH),
            engine="llama.cpp/test",
            tokens_per_s=100,
        )
        return replace(offer, **changes)

    def offer(self, who: Party | None = None, **changes: Any) -> SignedOffer:
        who = who or self.seller
        offer = Offer(
            network=NETWORK,
            peer=who.peer,
            seq=1,
            issued_ms=NOW_MS - 100,
            expires_ms=NOW_MS + 25_000,
            tier=Tier.CONSUMER,
            slots=4,
            models=(self.model_offer(),),
            privacy=(Privacy.PUBLIC, Privacy.SHARED),
            rails=(RAIL,),
            addresses=("/ip4/127.0.0.1/tcp/4001",),
            content=(),
            isolation="none",
            binding=self.binding(who),
        )
        return sign_offer(replace(offer, **changes), who.keys)

    def quote(self, **changes: Any) -> Quote:
        quote = Quote(
            network=NETWORK,
            task=digest("task"),
            provider=self.seller.peer,
            client=self.buyer.peer,
            model="bafymodel",
            weights="bafyweights",
            engine="llama.cpp/test",
            rail=RAIL,
            prompt=digest("prompt"),
            sampling=digest("sampling"),
            tokens_in=57,
            max_tokens=128,
            price_in=OCTO // 10,
            price_out=OCTO,
            tick_tokens=64,
            expires_ms=NOW_MS + 30_000,
            final=False,
        )
        return replace(quote, **changes)

    def signed_quote(self, **changes: Any) -> SignedQuote:
        return sign_quote(self.quote(**changes), self.seller.receipt_key)

    def receipt(self, **changes: Any) -> Receipt:
        receipt = Receipt(
            network=NETWORK,
            rail=RAIL,
            provider=self.seller.peer,
            client=self.buyer.peer,
            binding=self.binding().cid(),
            channel=digest("channel"),
            task=digest("task"),
            seq=0,
            final=False,
            finish="",
            model="bafymodel",
            weights="bafyweights",
            engine="llama.cpp/test",
            quote=self.signed_quote().digest(),
            prompt=digest("prompt"),
            sampling=digest("sampling"),
            tokens_in=57,
            tokens_out=64,
            chunks=2,
            chain_head=digest("head"),
            transcript_root=digest("root"),
            amount=self.quote().cost_of(64),
            started_ms=NOW_MS,
            ended_ms=NOW_MS + 500,
        )
        return replace(receipt, **changes)

    def terms(self, **changes: Any) -> ChannelTerms:
        terms = ChannelTerms(
            network=NETWORK,
            rail=RAIL,
            payer=self.buyer.wallet.address,
            payee=self.seller.wallet.address,
            session_key=self.buyer.session.address,
            salt=digest("salt"),
        )
        return replace(terms, **changes)

    def opening(self, deposit: int = 5 * OCTO, **changes: Any) -> Opening:
        return sign_opening(self.terms(**changes), deposit, self.buyer.wallet)

    def channels(self, deposit: int = 5 * OCTO) -> tuple[Channel, Channel]:
        """The same fresh channel as the payer and as the payee keep it."""
        opening = self.opening(deposit)
        payer = Channel(role="payer", peer=self.seller.peer, terms=opening.terms, opening=opening, deposit=deposit)
        return payer, replace(payer, role="payee", peer=self.buyer.peer)


@pytest.fixture(scope="session")
def words() -> Words:
    return Words()
