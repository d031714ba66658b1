"""Every pluggable thing, two or three methods each. What plugs in is decided in `node.wiring` alone.

Beside each port stands its check kit in `market.testing`; built-ins and plugins run the same one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol

from market.channel import Channel
from market.identity import Binding, PeerId
from market.kept import Kept
from market.message import Body, Message
from market.offer import CheckedOffer, SignedOffer
from market.quote import SignedQuote
from market.receipt import Receipt, SignedReceipt
from market.record import Commitment, ReceiptRecord, Transcript
from market.task import ChatMessage, Sampling, TaskId
from market.tools import CallForm, Tool
from market.values import value
from market.voucher import ChannelTerms, Opening
from market.work import Work, WorkRequest


class Clock(Protocol):
    def now_ms(self) -> int:
        """Unix time in milliseconds."""


Random = Callable[[int], bytes]
"""So many cryptographically random bytes."""


# ---- engines -------------------------------------------------------------------------------------


@value
class Job:
    """`prompt` token ids to continue. Generation ends at any of `end_tokens` (not emitted) or after
    `max_tokens`. A lower `priority` number is admitted first, and takes a place from a higher one; its own
    tokens do not change if that happens to it.

    `client` is who asks: within a priority, clients take turns, each by what it asked for divided by `weight`.
    `deadline_s` is how long it may wait to be admitted, 0 for ever. Jobs of one `scope` may reuse one another's
    prefilled prompt; with "" a job reuses nothing and leaves nothing. `logprobs` asks for so many (0 to 20)
    alternatives beside each token. `grammar` is GBNF, or a JSON schema if it starts with "{": the text must match.
    """

    task: TaskId
    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    end_tokens: frozenset[int]
    priority: int = 0
    client: str = ""
    weight: int = 1
    deadline_s: float = 0.0
    scope: str = ""
    logprobs: int | None = None
    grammar: str = ""


@value
class TokenLogprobs:
    """Natural log probabilities under the model's own distribution, before bias, penalties, grammar and temperature:
    of the token drawn, and of the most likely ones (token, logprob), best first, equals by lowest id."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@value
class Generated:
    """Tokens since the last one; `finish` is set on the last item only. `logprobs` is one for each token if the job
    asked. `cached`, on the first item, is how many prompt tokens were taken from an earlier job's work."""

    tokens: tuple[int, ...]
    finish: Literal["", "stop", "length"] = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    cached: int = 0


@value
class EngineInfo:
    """`name` is the engine class that a replay needs, like `llama.cpp/0.3.36/cpu-avx512/q4_0`.
    `context` is tokens per slot. `features` says what of a Job it heeds beyond the plain: "prefix", "logprobs",
    "grammar", "bias" (of tokens), "preempt"; one that lacks a feature refuses jobs that cannot do without it."""

    name: str
    context: int
    slots: int
    features: frozenset[str] = frozenset()


@value
class EngineLoad:
    running: int
    waiting: int


class Engine(Protocol):
    info: EngineInfo

    def generate(self, job: Job) -> AsyncGenerator[Generated]:
        """Stream a job's tokens. Closing the generator cancels the job within one decode step.

        A slow reader is waited for: at most a bounded number of tokens is generated ahead.
        Raises EngineFailed if the worker dies or hangs; RequestInvalid if the job can never fit.
        """

    def load(self) -> EngineLoad: ...


@value
class WorkJob:
    """`blob` is audio or an image, as it came: a stranger's bytes. See `Job` for the rest."""

    task: TaskId
    request: WorkRequest
    blob: bytes
    max_units: int
    priority: int = 0
    client: str = ""
    weight: int = 1
    deadline_s: float = 0.0


@value
class Made:
    """Pieces since the last one, and how far the whole is, in percent; `finish` is set on the last item only."""

    pieces: tuple[bytes, ...] = ()
    progress: int = 0
    finish: Literal["", "stop", "length"] = ""


class WorkEngine(Protocol):
    """`info.context` is the longest input in units, `info.slots` how many jobs run at once."""

    info: EngineInfo
    works: frozenset[Work]

    def make(self, job: WorkJob) -> AsyncGenerator[Made]:
        """Stream a job's pieces, in order. Closing the generator cancels the job.

        Raises EngineFailed if the worker dies or hangs; RequestInvalid for what it cannot do, or an input that is not
        what it says it is."""

    def load(self) -> EngineLoad: ...


class Meter(Protocol):
    """What a piece of work counts for: the same on both sides, without the weights."""

    def units_in(self, request: WorkRequest, blob: bytes) -> int:
        """At least 1. Raises RequestInvalid for an input that is malformed or too large."""

    def units_out_limit(self, request: WorkRequest, blob: bytes) -> int:
        """The most units that can come back, at least 1: what the buyer agrees to pay for."""

    def units_of(self, request: WorkRequest, piece: bytes) -> int:
        """What one piece counts for. Raises EncodingInvalid for a piece that is none."""


class Meters(Protocol):
    async def meter(self, model: str, work: Work) -> Meter:
        """The meter of a manifest CID, its files fetched and verified if need be.

        Raises ModelUnknown or ContentUnavailable."""


class Tokenizer(Protocol):
    """A model's tokenizer and chat template, from its manifest: the weights are not needed."""

    end_tokens: frozenset[int]
    call_form: CallForm
    """How the template has calls of tools written. PLAIN: it takes no tools, nor messages that hold calls."""

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """Token ids of the rendered chat, generation prompt included; raises RequestInvalid if the template refuses."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, special tokens of the model included as its tokenizer file says."""

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for (maybe part of a character); empty for control tokens."""

    def may_precede(self, token: int) -> bool:
        """Whether an answer may go on after this token. False where one text could be cut into more tokens than it
        needs, and be billed for them."""


class Tokenizers(Protocol):
    async def tokenizer(self, model: str) -> Tokenizer:
        """The tokenizer of a manifest CID, fetched and verified if need be.

        Raises ModelUnknown or ContentUnavailable."""


# ---- network -------------------------------------------------------------------------------------


class Conversation(Protocol):
    """One task's messages between two peers, in order, both ways."""

    peer: PeerId
    task: TaskId

    async def send(self, body: Body) -> None:
        """Raises PeerGone."""

    async def receive(self, timeout_s: float) -> Message:
        """The next message. Raises PeerGone, PeerTimedOut, or PeerBrokeProtocol for a frame that does not parse."""

    async def aclose(self) -> None:
        """We are done with it. The other side need not hear of it: say so in a message first."""


class Network(Protocol):
    peer: PeerId

    async def open_conversation(self, peer: PeerId, task: TaskId) -> Conversation:
        """Reuses the long-lived stream to `peer`. Raises PeerGone or PeerTimedOut."""

    async def announce(self, offer: SignedOffer) -> None:
        """Publish our offer to everyone, now and to peers that connect later, until it expires."""

    def offers(self) -> Sequence[CheckedOffer]:
        """Live offers of other peers, checked; one per peer, the newest."""


# ---- verification --------------------------------------------------------------------------------


@value
class Expectation:
    """What the buyer knows for itself when a receipt arrives."""

    network: str
    rail: str
    client: PeerId
    provider: Binding
    provider_binding_cid: str
    channel: bytes
    task: TaskId
    quote: SignedQuote
    prompt: bytes
    sampling: bytes
    tokens_in: int
    commitment: Commitment
    previous: Receipt | None


class Verifier(Protocol):
    def open_transcript(
        self, *, task: TaskId, quote: bytes, prompt: bytes, sampling: bytes, pieces: bool = False
    ) -> Transcript: ...

    def check_receipt(self, signed: SignedReceipt, expected: Expectation) -> Receipt:
        """The receipt inside, once all that the buyer can know holds; raises PeerBrokeProtocol naming what does not."""


# ---- money ---------------------------------------------------------------------------------------


@value
class Balances:
    """All in 10^-18 OCTO. available + locked + spent = granted + (nothing else); `earned` comes from others."""

    granted: int
    available: int
    locked: int
    spent: int
    earned: int


class Rail(Protocol):
    """How channels come to hold money, and how vouchers become money."""

    name: str

    async def open_channel(self, terms: ChannelTerms, deposit: int) -> Opening:
        """Lock `deposit` for the payee. Raises InsufficientFunds."""

    async def check_channel(self, opening: Opening) -> int:
        """The deposit that really stands behind a channel someone opened to us; raises PaymentRefused."""

    async def check_serving(self) -> None:
        """Raises PaymentRefused while vouchers cannot become money and too much waits already."""

    async def balances(self) -> Balances: ...


class Books(Protocol):
    """Where money and receipts are written down before they count."""

    async def save(self, channel: Channel | None, *, receipts: Iterable[ReceiptRecord] = ()) -> None:
        """Write all of it or nothing, durably, before returning. A channel never replaces a higher state."""

    async def channels(self) -> Sequence[Channel]: ...

    async def receipts(self, *, task: TaskId) -> Sequence[ReceiptRecord]: ...


class ResponseCache(Protocol):
    """The answers that a seller keeps, for a while and up to some size (`market.caching`)."""

    async def find(self, place: bytes) -> Kept | None:
        """What is kept at `Kept.place()`, if it is whole and not too old. Not believed: the seller compares it with
        the receipt that it was signed for, and says `wrong` if they differ."""

    async def keep(self, kept: Kept) -> None:
        """Keep it, in place of what was there. A cache that cannot is no error."""

    async def wrong(self, place: bytes) -> None:
        """What was found there is not what was signed for."""

    async def forget(self, owner: str) -> int:
        """Throw away all that this peer asked for first; how many answers that were."""


class Standing(Protocol):
    """What this node remembers of each provider: how fast, how reliable, who took a prepayment and stayed silent."""

    def of(self, peer: PeerId) -> Mapping[str, float]: ...

    def note(self, peer: PeerId, **facts: float) -> None: ...


# ---- content -------------------------------------------------------------------------------------


class ContentSource(Protocol):
    """Somebody who may have bytes under a CID. Never trusted: whoever asks hashes what it gets.

    `name` says in logs and errors who it was; it holds no secret.
    """

    name: str

    async def block(self, cid: str) -> bytes:
        """One block, at most 2 MiB, unverified. Raises ContentUnavailable; BlockInvalid if it cannot be that block."""

    def read_range(self, root: str, start: int, length: int) -> AsyncGenerator[bytes | memoryview]:
        """`length` bytes of a file from `start`, unverified, in pieces; fewer if the source ends early.

        A memoryview is good until the next piece is asked for: the source reads into the same buffer again.
        Raises ContentUnavailable, also if this source has blocks only. Closing the generator ends the request.
        """


class ContentShelf(Protocol):
    """What a node lets one peer read over the mesh. `peer` is authenticated; the answers depend on it.

    Everything raises ContentUnavailable for what is not here or not for that peer, in the same words.
    """

    async def block(self, peer: PeerId, cid: str) -> bytes: ...

    def read_range(self, peer: PeerId, root: str, start: int, length: int) -> AsyncGenerator[bytes]:
        """As `ContentSource.read_range`, of a root that `peer` may read."""

    async def ticket(self, peer: PeerId) -> str:
        """What opens the content listener's roots that are not public to `peer`, for some minutes; a secret."""

    async def catalog(self, creator: bytes, name: str) -> bytes:
        """The newest signed catalog that we know under a creator's wallet (20 bytes) and a name."""

    async def pin(self, peer: PeerId, manifest: str) -> None:
        """`peer` asks us to keep and serve a model; returns once we have agreed, long before we have it."""
