"""One tree of errors: what happened, whose fault it was, what to do next, and the HTTP status it becomes.

OctoError
├── RequestInvalid            400  the caller sent something we cannot run
│   ├── PromptTooLong         400
│   └── WorkImpossible        400  an engine that took it as quoted found that it cannot do it
├── ModelUnknown              404
├── ModelUntrusted            403  nobody here has said that this creator may be believed
├── NoProvider                503  nobody could be chosen; `reasons` says why, peer by peer
├── InsufficientFunds         402
├── EncodingInvalid           400  bytes that are not what they claim to be
│   └── SignatureInvalid      400
├── PeerError                 502  the other side of the wire
│   ├── PeerGone              502
│   ├── PeerTimedOut          504
│   ├── PeerRefused           503
│   ├── PeerFailed            502
│   └── PeerBrokeProtocol     502
├── PaymentRefused            402  a voucher, channel or opening that does not hold
├── StepNotAllowed            500  a transition that is not in the table
├── EngineFailed              500
│   └── ModelFileInvalid      500
├── ContentError              502
│   ├── BlockInvalid          502
│   ├── ContentUnavailable    503
│   └── DiskFull              507
└── NodeMisconfigured         500  settings, folders, ports of this machine
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

Fault = Literal["client", "provider", "node", "network"]


class OctoError(Exception):
    """Base of every error that a user may see.

    `message` names the cause, `next_step` what the reader can do about it. Neither may carry
    prompt text or secrets: both end up in logs and in HTTP bodies.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    fault: ClassVar[Fault] = "node"
    retry: ClassVar[bool] = False

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".strip()


class RequestInvalid(OctoError):
    code, http_status, fault = "invalid_request", 400, "client"

    def __init__(self, message: str, *, next_step: str = "", param: str | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.param = param


class PromptTooLong(RequestInvalid):
    code = "context_length_exceeded"


class WorkImpossible(RequestInvalid):
    """From the engine itself, at work on what was agreed: another try at the same place would end the same way."""

    code = "work_impossible"


class ModelUnknown(OctoError):
    code, http_status, fault = "model_not_found", 404, "client"


class ModelUntrusted(OctoError):
    """A model that is unsigned, or signed by a creator whom the owner of this node has not trusted."""

    code, http_status, fault = "model_untrusted", 403, "client"


class NoProvider(OctoError):
    """Nobody could serve the task. `reasons` maps each known peer to why it was not chosen."""

    code, http_status, fault, retry = "no_provider", 503, "network", True

    def __init__(self, message: str, *, reasons: Mapping[str, str], next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.reasons = dict(reasons)


class InsufficientFunds(OctoError):
    code, http_status, fault = "insufficient_funds", 402, "client"


class EncodingInvalid(OctoError):
    code, http_status, fault = "invalid_encoding", 400, "client"


class SignatureInvalid(EncodingInvalid):
    code = "invalid_signature"


class PeerError(OctoError):
    """Something went wrong at, or on the way to, another peer."""

    code, http_status, retry = "peer_error", 502, True
    fault: ClassVar[Fault] = "provider"

    def __init__(self, message: str, *, peer: str, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.peer = peer


class PeerGone(PeerError):
    code = "peer_gone"
    fault: ClassVar[Fault] = "network"


class PeerTimedOut(PeerError):
    code, http_status = "peer_timed_out", 504


class PeerRefused(PeerError):
    """The peer answered, politely, that it will not. `reason_code` is its stable code."""

    code, http_status = "peer_refused", 503

    def __init__(self, message: str, *, peer: str, reason_code: str = "refused", next_step: str = "") -> None:
        super().__init__(message, peer=peer, next_step=next_step)
        self.reason_code = reason_code


class PeerFailed(PeerError):
    """The peer sent ERROR for the task. `remote_code` and `remote_fault` are what it said."""

    code = "peer_failed"

    def __init__(self, message: str, *, peer: str, remote_code: str = "", remote_fault: str = "provider") -> None:
        super().__init__(message, peer=peer)
        self.remote_code = remote_code
        self.remote_fault = remote_fault


class PeerBrokeProtocol(PeerError):
    code = "peer_broke_protocol"


class PaymentRefused(OctoError):
    code, http_status, fault = "payment_refused", 402, "client"


class StepNotAllowed(OctoError):
    code = "step_not_allowed"


class EngineFailed(OctoError):
    code, http_status, fault, retry = "engine_failed", 500, "provider", True


class ModelFileInvalid(EngineFailed):
    code, retry = "model_file_invalid", False


class ContentError(OctoError):
    code, http_status, retry = "content_error", 502, True
    fault: ClassVar[Fault] = "network"


class BlockInvalid(ContentError):
    """Bytes that do not hash to their CID, or a DAG that breaks its own rules."""

    code = "block_invalid"


class ContentUnavailable(ContentError):
    code, http_status = "content_unavailable", 503


class DiskFull(ContentError):
    code, http_status, fault = "disk_full", 507, "node"


class NodeMisconfigured(OctoError):
    code = "node_misconfigured"
