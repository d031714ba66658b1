"""What buyers and sellers work with, handed in by whoever makes them: keys, books, ports, terms.

Lives apart from the two stories, so that each story's halves need not know one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field

from market.identity import PeerId, SignedBinding, WalletSigner
from market.modes import PATIENCE_S, WAIT_TERMS, Line, WaitTerms
from market.offer import ModelOffer
from market.ports import (
    Books,
    Clock,
    Engine,
    Meter,
    Random,
    ResponseCache,
    Standing,
    Tokenizer,
    Verifier,
    WorkEngine,
)
from market.prepaid import PrepaidCap
from market.purse import Purse
from market.task import Mode
from market.till import Till
from market.values import value


@value
class DealTerms:
    """Seconds to wait: for a proposal; between two messages of a running task, in realtime and in the patient modes;
    for the last receipt after cancelling; and, by mode, for more of the answer while signs of life come."""

    propose_timeout_s: float = 5.0
    token_timeout_s: float = 15.0
    patient_timeout_s: float = 60.0
    settle_timeout_s: float = 5.0
    patience_s: Mapping[Mode, float] = field(default_factory=lambda: PATIENCE_S)

    def message_timeout_s(self, mode: Mode) -> float:
        return self.token_timeout_s if mode is Mode.REALTIME else self.patient_timeout_s


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
    """`floor_percent`: a counter at or above this share of our price is accepted. `waits`: how tasks of each mode
    wait. Times in seconds."""

    tick_tokens: int = 64
    tick_s: float = 2.0
    quote_ttl_s: float = 30.0
    waits: Mapping[Mode, WaitTerms] = field(default_factory=lambda: WAIT_TERMS)
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
    """What every sale of a seller shares. Without a `cache` nothing is told twice."""

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
        cache: ResponseCache | None = None,
    ) -> None:
        self.network = network
        self.peer = peer
        self.binding = binding
        self.receipt_key = receipt_key
        self.rail = rail
        self.served = served
        self.till = till
        self.books = books
        self.line = Line()
        self.verifier = verifier
        self.clock = clock
        self.terms = terms
        self.cache = cache
