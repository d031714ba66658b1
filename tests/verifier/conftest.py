"""One small sale, told with real keys: a quote, a streamed answer of 80 tokens in three chunks, a final receipt."""

import hashlib
from dataclasses import replace
from typing import Any

import nacl.signing
import pytest

from market.identity import Binding, PeerId, SignedBinding, check_binding, peer_of_public_key, sign_binding
from market.money import OCTO
from market.ports import Expectation
from market.quote import Quote, SignedQuote, sign_quote
from market.receipt import Receipt, SignedReceipt, sign_receipt
from market.record import Commitment, ReceiptRecord
from market.signing import Secp256k1Signer
from market.task import prompt_digest
from market.values import encode
from verifier.receipts import ReceiptVerifier
from verifier.transcript import StreamTranscript

PIECES = ["The", " octopus", " ", "🐙", " pays", " €", "5", ".\n"]
NETWORK, RAIL = "octo-test", "ledger:octo-test"
STARTED_MS = 1_790_000_000_000


def digest(tag: str) -> bytes:
    return hashlib.sha256(tag.encode()).digest()


class KeyedPeer:
    def __init__(self, name: str) -> None:
        self._key = nacl.signing.SigningKey(digest(f"peer {name}"))
        self.peer: PeerId = peer_of_public_key(bytes(self._key.verify_key))

    def sign(self, data: bytes) -> bytes:
        return bytes(self._key.sign(data).signature)


class Sale:
    """Everything that seller and buyer know at the end of one task. Methods make variations of it."""

    network, rail, started_ms = NETWORK, RAIL, STARTED_MS
    prompt_ids = (1, 4093, 198, 2)
    salt = digest("salt")

    def __init__(self, tokens: int = 80, *, name: str = "seller", pieces: bool = False) -> None:
        self.pieces = pieces
        self.peer, self.client = KeyedPeer(name), KeyedPeer("buyer")
        self.receipt_key, self.wallet = Secp256k1Signer(digest(f"rk {name}")), Secp256k1Signer(digest(f"w {name}"))
        self.signed_binding = self.bind()
        self.binding: Binding = check_binding(self.signed_binding, network=NETWORK, now_ms=None)
        self.signed_quote = self.quote()
        self.transcript = self.stream(tokens)
        self.commitment = self.transcript.close_chunk()
        self.receipt = self.receipt_of(self.commitment)
        self.signed = sign_receipt(self.receipt, self.receipt_key)

    @staticmethod
    def digest(tag: str) -> bytes:
        return digest(tag)

    @staticmethod
    def token(position: int) -> int:
        return position % len(PIECES)

    @staticmethod
    def token_bytes(token: int) -> bytes:
        return PIECES[token].encode()

    @property
    def answer(self) -> str:
        return b"".join(self.token_bytes(token) for token in self.transcript.tokens).decode()

    def bind(self, **changes: Any) -> SignedBinding:
        binding = Binding(
            network=NETWORK,
            peer=self.peer.peer,
            receipt_key=self.receipt_key.address,
            wallet=self.wallet.address,
            not_before_ms=STARTED_MS - 10**8,
            not_after_ms=STARTED_MS + 10**9,
            nonce=1,
        )
        return sign_binding(
            replace(binding, **changes), peer=self.peer, receipt_key=self.receipt_key, wallet=self.wallet
        )

    def quote(self, **changes: Any) -> SignedQuote:
        quote = Quote(
            network=NETWORK,
            task=digest("task"),
            provider=self.peer.peer,
            client=self.client.peer,
            model="bafymodel",
            weights="bafyweights",
            engine="llama.cpp/test",
            rail=RAIL,
            prompt=prompt_digest(self.salt, self.prompt_ids),
            sampling=digest("sampling"),
            tokens_in=len(self.prompt_ids),
            max_tokens=128,
            price_in=OCTO // 10,
            price_out=OCTO,
            tick_tokens=64,
            expires_ms=STARTED_MS + 30_000,
            final=False,
        )
        return sign_quote(replace(quote, **changes), self.receipt_key)

    def stream(self, tokens: int) -> StreamTranscript:
        """A transcript of so many tokens, the last chunk still open."""
        transcript = ReceiptVerifier().open_transcript(
            task=digest("task"),
            quote=self.signed_quote.digest(),
            prompt=prompt_digest(self.salt, self.prompt_ids),
            sampling=digest("sampling"),
            pieces=self.pieces,
        )
        for position in range(tokens):
            transcript.add(self.token(position), self.token_bytes(self.token(position)))
        return transcript

    def receipt_of(self, commitment: Commitment, **changes: Any) -> Receipt:
        quote = self.signed_quote.read()
        receipt = Receipt(
            network=NETWORK,
            rail=RAIL,
            provider=self.peer.peer,
            client=self.client.peer,
            binding=self.signed_binding.cid(),
            channel=digest("channel"),
            task=digest("task"),
            seq=0,
            final=True,
            finish="stop",
            model=quote.model,
            weights=quote.weights,
            engine=quote.engine,
            quote=self.signed_quote.digest(),
            prompt=quote.prompt,
            sampling=quote.sampling,
            tokens_in=quote.tokens_in,
            tokens_out=commitment.tokens,
            chunks=commitment.chunks,
            chain_head=commitment.head,
            transcript_root=commitment.root,
            amount=quote.cost_of(commitment.tokens),
            started_ms=STARTED_MS,
            ended_ms=STARTED_MS + 900,
        )
        return replace(receipt, **changes)

    def claim(self, **changes: Any) -> SignedReceipt:
        """The receipt with fields changed, signed by the provider: a lie, not damage."""
        return sign_receipt(replace(self.receipt, **changes), self.receipt_key)

    def expectation(self, **changes: Any) -> Expectation:
        expected = Expectation(
            network=NETWORK,
            rail=RAIL,
            client=self.client.peer,
            provider=self.binding,
            provider_binding_cid=self.signed_binding.cid(),
            channel=digest("channel"),
            task=self.receipt.task,  # type: ignore[arg-type]
            quote=self.signed_quote,
            prompt=self.receipt.prompt,
            sampling=digest("sampling"),
            tokens_in=len(self.prompt_ids),
            commitment=self.commitment,
            previous=None,
        )
        return replace(expected, **changes)

    def record(self, **changes: Any) -> ReceiptRecord:
        record = ReceiptRecord(
            role="client",
            receipt=self.signed,
            quote=self.signed_quote,
            binding=encode(SignedBinding, self.signed_binding),
            tokens=tuple(self.transcript.tokens),
            chunk_sizes=tuple(self.transcript.chunk_sizes),
            text_sizes=tuple(self.transcript.text_sizes),
            text_digests=tuple(self.transcript.text_digests),
            salt=self.salt,
            pieces=self.pieces,
        )
        return replace(record, **changes)


@pytest.fixture(scope="session")
def sale() -> Sale:
    return Sale()


@pytest.fixture(scope="session")
def short_sale() -> Sale:
    """An answer of five tokens in one chunk: a file small enough to flip each of its bits."""
    return Sale(5)
