"""What buyers and sellers work with, handed in by whoever makes them: keys, books, ports, terms.

Lives apart from the two stories, so that each story's halves need not know one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from market.identity import PeerId, SignedBinding, WalletSigner
from market.offer import ModelOffer
from market.ports import Books, Clock, Engine, Meter, Random, Standing, Tokenizer, Verifier, WorkEngine
from market.prepaid import PrepaidCap
from market.purse import Purse
from market.till import Till
from market.values import value


@value
class DealTerms:
    """Seconds to wait: for a proposal, between two messages of a running task, and for the last receipt
    after cancelling."""

    propose_timeout_s: float = 5.0
    token_timeout_s: float = 15.0
    settle_timeout_s: float = 5.0


class DealParts:
    """What every deal of a buyer shares."""

    def __init__(
        self,
        *,
        network: str,
        peer: PeerId,
        rail: str,
        binding: SignedBinding,
        purse: Purse,
        verifier: Verifier,
        standing: Standing,
        clock: Clock,
        random: Random,
        prepaid: PrepaidCap,
        terms: DealTerms,
    ) -> None:
        self.network = network
        self.peer = peer
        self.rail = rail
        self.binding = binding
        self.purse = purse
        self.verifier = verifier
        self.standing = standing
        self.clock = clock
        self.random = random
        self.prepaid = prepaid
        self.terms = terms


@value
class SellerTerms:
    """`floor_percent`: a counter at or above this share of our price is accepted. Times in seconds."""

    tick_tokens: int = 64
    tick_s: float = 2.0
    quote_ttl_s: float = 30.0
    waiting_limit: int = 64
    floor_percent: int = 100
    step_timeout_s: float = 15.0
    payment_timeout_s: float = 10.0


class Served:
    """A model this node serves now: what it offers, what runs it, what reads and writes its tokens."""

    def __init__(self, model: ModelOffer, engine: Engine, tokenizer: Tokenizer) -> None:
        self.model = model
        self.engine = engine
        self.tokenizer = tokenizer


class ServedWork:
    """A model for other work than text: what it offers, what does it, how it is counted."""

    def __init__(self, model: ModelOffer, engine: WorkEngine, meter: Meter) -> None:
        self.model = model
        self.engine = engine
        self.meter = meter


Serving = Served | ServedWork


class SellerParts:
    """What every sale of a seller shares."""

    def __init__(
        self,
        *,
        network: str,
        peer: PeerId,
        binding: SignedBinding,
        receipt_key: WalletSigner,
        rail: str,
        served: Callable[[], Mapping[str, Serving]],
        till: Till,
        books: Books,
        verifier: Verifier,
        clock: Clock,
        terms: SellerTerms,
    ) -> None:
        self.network = network
        self.peer = peer
        self.binding = binding
        self.receipt_key = receipt_key
        self.rail = rail
        self.served = served
        self.till = till
        self.books = books
        self.verifier = verifier
        self.clock = clock
        self.terms = terms
