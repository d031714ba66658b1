"""The five messages between agents, exactly the seed's, and what each may carry.

    NEGOTIATE      cfp -> propose | refuse -> counter -> accept | reject     (FIPA contract net)
    TASK_REQUEST   the task itself, after accept
    STATUS_UPDATE  input, tokens, pieces, progress, receipts, vouchers, queue position, heartbeat, cancel; and, by
                   itself, forget -> forgotten
    TASK_RESPONSE  the final receipt and why the answer ended
    ERROR          whose fault, a stable code, whether to retry

Knows no bytes and no sockets: `p2p.wire` frames these, `market.negotiation` says which may follow which.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from market.caching import CacheKey, Original
from market.identity import SignedBinding
from market.money import Amount
from market.quote import SignedQuote
from market.receipt import SignedReceipt
from market.task import ChatTask, Mode, Privacy
from market.values import Word, value
from market.voucher import Opening, VoucherFrame
from market.work import BLOB_LIMIT_BYTES, PIECE_LIMIT_BYTES, UNITS_LIMIT, Work, WorkTask

Digest = Annotated[bytes, Field(min_length=32, max_length=32)]
ShortText = Annotated[str, Field(max_length=500)]
Code = Annotated[str, Field(max_length=64)]
TOKENS_PER_FRAME_LIMIT = 512
PART_LIMIT_BYTES = 512 * 1024
"""Of a blob or a piece in one frame: half of what a frame may hold."""


class MessageType(Word):
    TASK_REQUEST = "TASK_REQUEST"
    TASK_RESPONSE = "TASK_RESPONSE"
    STATUS_UPDATE = "STATUS_UPDATE"
    ERROR = "ERROR"
    NEGOTIATE = "NEGOTIATE"


@value
class CallForProposals:
    """ "Who would run this, at what price?" The prompt itself is not in it. `cache`: an answer given before would do,
    and this one may be kept."""

    kind: Literal["cfp"] = "cfp"
    binding: SignedBinding
    work: Work = Work.CHAT
    model: Annotated[str, Field(max_length=128)]
    tokens_in: Annotated[int, Field(ge=1, lt=2**31)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)]
    prompt: Digest
    sampling: Digest
    mode: Mode
    privacy: Privacy
    rail: Annotated[str, Field(max_length=128)]
    channel: Digest | None = None
    cache: CacheKey | None = None


@value
class Propose:
    """`taken` is how many leaves of the named channel the seller holds: after a broken connection the
    buyer sends again what is missing. `original` comes with a quote that cites one."""

    kind: Literal["propose"] = "propose"
    quote: SignedQuote
    binding: SignedBinding
    taken: Annotated[int, Field(ge=0, lt=2**53)] = 0
    original: Original | None = None


@value
class Refuse:
    kind: Literal["refuse"] = "refuse"
    code: Code
    reason: ShortText


@value
class Counter:
    """The buyer's other price; the seller answers with propose (maybe its last) or refuse."""

    kind: Literal["counter"] = "counter"
    price_in: Amount
    price_out: Amount


@value
class Accept:
    """Takes the quote. The voucher pays for the input; `opening` comes with the first task on a channel."""

    kind: Literal["accept"] = "accept"
    quote: Digest
    opening: Opening | None = None
    voucher: VoucherFrame


@value
class Reject:
    kind: Literal["reject"] = "reject"
    reason: ShortText
    is_final: bool


@value
class TaskRequest:
    kind: Literal["task"] = "task"
    task: ChatTask | WorkTask


@value
class Input:
    """A part of the task's blob, in order."""

    kind: Literal["input"] = "input"
    start: Annotated[int, Field(ge=0, lt=BLOB_LIMIT_BYTES)]
    data: Annotated[bytes, Field(min_length=1, max_length=PART_LIMIT_BYTES)]


@value
class Likely:
    """A token that could have been drawn, and its log probability in millionths."""

    token: Annotated[int, Field(ge=0, lt=2**31)]
    micro: Annotated[int, Field(ge=-(2**40), le=0)]


@value
class Logprobs:
    """Of one token: its own log probability in millionths, and the likeliest ones, best first."""

    own_micro: Annotated[int, Field(ge=-(2**40), le=0)]
    top: Annotated[tuple[Likely, ...], Field(max_length=20)] = ()


@value
class Tokens:
    """Generated tokens from absolute output position `start`. With `head`, the open chunk closes after
    them and `head` is the transcript's chain head then. `logprobs` is one for each token, if they were asked for."""

    kind: Literal["tokens"] = "tokens"
    start: Annotated[int, Field(ge=0, lt=2**31)]
    tokens: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=TOKENS_PER_FRAME_LIMIT)
    ]
    head: Digest | None = None
    logprobs: Annotated[tuple[Logprobs, ...], Field(max_length=TOKENS_PER_FRAME_LIMIT)] = ()


@value
class Piece:
    """A part of piece number `index`, which has `size` bytes and counts for `units`. `head` as in Tokens, on the
    last part only: a piece is a chunk of its own."""

    kind: Literal["piece"] = "piece"
    index: Annotated[int, Field(ge=0, lt=2**31)]
    units: Annotated[int, Field(ge=0, le=UNITS_LIMIT)]
    size: Annotated[int, Field(ge=1, le=PIECE_LIMIT_BYTES)]
    start: Annotated[int, Field(ge=0, lt=PIECE_LIMIT_BYTES)]
    data: Annotated[bytes, Field(min_length=1, max_length=PART_LIMIT_BYTES)]
    head: Digest | None = None


@value
class Progress:
    """How far the whole is, in percent; also a sign of life."""

    kind: Literal["progress"] = "progress"
    percent: Annotated[int, Field(ge=0, le=100)]


@value
class TickReceipt:
    kind: Literal["receipt"] = "receipt"
    receipt: SignedReceipt


@value
class Payment:
    kind: Literal["payment"] = "payment"
    voucher: VoucherFrame


@value
class Forget:
    """Throw away every answer that you keep because this peer asked for it."""

    kind: Literal["forget"] = "forget"


@value
class Forgotten:
    kind: Literal["forgotten"] = "forgotten"
    answers: Annotated[int, Field(ge=0, lt=2**31)]


@value
class Queued:
    kind: Literal["queued"] = "queued"
    position: Annotated[int, Field(ge=0, lt=2**31)]


@value
class Cancel:
    """The buyer stops; what was delivered is settled, nothing more is generated."""

    kind: Literal["cancel"] = "cancel"
    reason: ShortText


@value
class TaskResponse:
    kind: Literal["response"] = "response"
    receipt: SignedReceipt
    finish: Literal["stop", "length", "cancelled", "error"]


@value
class TaskError:
    kind: Literal["error"] = "error"
    fault: Literal["client", "provider", "node", "network"]
    code: Code
    message: ShortText
    retry: bool


Body = Annotated[
    CallForProposals | Propose | Refuse | Counter | Accept | Reject
    | TaskRequest
    | Input | Tokens | Piece | Progress | TickReceipt | Payment | Queued | Cancel | Forget | Forgotten
    | TaskResponse
    | TaskError,
    Field(discriminator="kind"),
]  # fmt: skip

TYPE_OF: dict[type, MessageType] = {
    CallForProposals: MessageType.NEGOTIATE,
    Propose: MessageType.NEGOTIATE,
    Refuse: MessageType.NEGOTIATE,
    Counter: MessageType.NEGOTIATE,
    Accept: MessageType.NEGOTIATE,
    Reject: MessageType.NEGOTIATE,
    TaskRequest: MessageType.TASK_REQUEST,
    Input: MessageType.STATUS_UPDATE,
    Tokens: MessageType.STATUS_UPDATE,
    Piece: MessageType.STATUS_UPDATE,
    Progress: MessageType.STATUS_UPDATE,
    TickReceipt: MessageType.STATUS_UPDATE,
    Payment: MessageType.STATUS_UPDATE,
    Queued: MessageType.STATUS_UPDATE,
    Cancel: MessageType.STATUS_UPDATE,
    Forget: MessageType.STATUS_UPDATE,
    Forgotten: MessageType.STATUS_UPDATE,
    TaskResponse: MessageType.TASK_RESPONSE,
    TaskError: MessageType.ERROR,
}


@value
class Message:
    """One frame's worth. `seq` counts each side's messages within a task; `parent` is the hiring task, if any."""

    type: MessageType
    task: Digest
    seq: Annotated[int, Field(ge=0, lt=2**31)]
    sent_ms: Annotated[int, Field(ge=0, lt=2**53)]
    parent: Digest | None = None
    body: Body
