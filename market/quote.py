"""A Quote: the seller's signed, expiring answer to a call for proposals. Its price binds whoever signed it."""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import Field

from market.errors import SignatureInvalid
from market.identity import WalletSigner
from market.money import Amount, cost
from market.rails import parse_rail
from market.signing import TypedStruct, recover_address
from market.task import Mode
from market.values import decode, encode, value

_QUOTE = TypedStruct("Quote(bytes32 body,bytes32 task,uint256 maxAmount,uint64 expiresMs)")
Digest = Annotated[bytes, Field(min_length=32, max_length=32)]
Tokens = Annotated[int, Field(ge=0, lt=2**31)]


@value
class Quote:
    """Prices are 10^-18 OCTO per million tokens, for a task in `mode`. `tick_tokens` is one payment step. `final` = no
    further counter. `cached` is the CID of the receipt whose answer will be told again, at this lower price."""

    network: Annotated[str, Field(max_length=64)]
    task: Digest
    provider: Annotated[str, Field(max_length=64)]
    client: Annotated[str, Field(max_length=64)]
    model: Annotated[str, Field(max_length=128)]
    weights: Annotated[str, Field(max_length=128)]
    engine: Annotated[str, Field(max_length=128)]
    rail: Annotated[str, Field(max_length=128)]
    prompt: Digest
    sampling: Digest
    tokens_in: Tokens
    max_tokens: Tokens
    price_in: Amount
    price_out: Amount
    tick_tokens: Annotated[int, Field(ge=1, le=4096)]
    expires_ms: Annotated[int, Field(ge=0, lt=2**53)]
    final: bool
    mode: Mode = Mode.REALTIME
    cached: Annotated[str, Field(max_length=128)] = ""

    def cost_in(self) -> int:
        return cost(tokens=self.tokens_in, price_per_million=self.price_in)

    def cost_of(self, tokens_out: int) -> int:
        """What the task costs after `tokens_out` generated tokens, input included."""
        return self.cost_in() + cost(tokens=tokens_out, price_per_million=self.price_out)

    def max_cost(self) -> int:
        return self.cost_of(self.max_tokens)


@value
class SignedQuote:
    body: Annotated[bytes, Field(max_length=4096)]
    signature: Annotated[bytes, Field(min_length=65, max_length=65)]

    def digest(self) -> bytes:
        return hashlib.sha256(self.body).digest()

    def read(self) -> Quote:
        """The quote inside, unchecked by signature: only for one's own."""
        return decode(Quote, self.body)


def sign_quote(quote: Quote, signer: WalletSigner) -> SignedQuote:
    body = encode(Quote, quote)
    return SignedQuote(body=body, signature=signer.sign_digest(_digest(quote, body)))


def check_quote(signed: SignedQuote, *, receipt_key: bytes) -> Quote:
    """The Quote inside, once it is canonical and signed by the seller's receipt key."""
    quote = decode(Quote, signed.body)
    if recover_address(_digest(quote, signed.body), signed.signature) != receipt_key:
        raise SignatureInvalid("the quote is not signed by the provider's receipt key.")
    return quote


def _digest(quote: Quote, body: bytes) -> bytes:
    body_hash = hashlib.sha256(body).digest()
    chain_id, _ = parse_rail(quote.rail)
    return _QUOTE.digest(quote.network, chain_id, body_hash, quote.task, quote.max_cost(), quote.expires_ms)
