"""Where what went wrong becomes HTTP: status, OpenAI's error shape, and what to do next. Here and nowhere else.

    {"error": {"message", "type", "param", "code", "octo": {"fault", "retry", "next_step", …}}}

`octo` stands inside `error`, because that is the part which OpenAI's SDKs hand to the caller.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import web

from market.errors import Fault, ModelUnknown, NoProvider, OctoError, PeerError, PeerFailed, RequestInvalid
from market.identity import short

_TYPE_BY_FAULT: Mapping[Fault, str] = {
    "client": "invalid_request_error",
    "provider": "provider_error",
    "network": "network_error",
    "node": "server_error",
}
_HTTP_CODES: Mapping[int, str] = {
    404: "route_not_found",
    405: "method_not_allowed",
    408: "request_timed_out",
    413: "request_too_large",
}
_RETRY_AFTER_S = "1"
_REASONS_TOLD = 5


def error_body(error: OctoError, *, on_offer: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON body of an error. `on_offer` are names of models, told to who asked for one that nobody has."""
    octo: dict[str, Any] = {"fault": error.fault, "retry": error.retry, "next_step": error.next_step}
    param = error.param if isinstance(error, RequestInvalid) else None
    if isinstance(error, ModelUnknown):
        octo["on_offer"], param = list(dict.fromkeys(on_offer)), "model"
    message = str(error)
    if isinstance(error, NoProvider):
        octo["reasons"] = error.reasons
        message = " ".join(filter(None, (error.message, _reasons_text(error.reasons), error.next_step)))
    if isinstance(error, PeerError):
        octo["peer"] = error.peer
    if isinstance(error, PeerFailed):
        octo["remote_code"], octo["remote_fault"] = error.remote_code, error.remote_fault
    return _shape(message, kind=_TYPE_BY_FAULT[error.fault], code=error.code, param=param, octo=octo)


def error_response(error: OctoError, *, on_offer: Sequence[str] = ()) -> web.Response:
    headers = {}
    if error.retry:
        headers["Retry-After"] = _RETRY_AFTER_S
    else:
        # OpenAI's SDKs send every 5xx again, twice; where that cannot help it would only be paid again.
        headers["X-Should-Retry"] = "false"
    return web.json_response(error_body(error, on_offer=on_offer), status=error.http_status, headers=headers)


def error_event(error: OctoError) -> bytes:
    """An error as a server-sent event, for an answer that had begun. OpenAI's SDKs raise it; no [DONE] follows."""
    return b"data: " + json.dumps(error_body(error), separators=(",", ":")).encode() + b"\n\n"


def unknown_error() -> OctoError:
    """For an exception that is a bug of ours: it tells nothing about what was inside."""
    return OctoError("this node made a mistake.", next_step="Its log says more.")


def refusal(
    status: int, code: str, message: str, *, next_step: str = "", headers: Mapping[str, str] | None = None
) -> web.Response:
    """A refusal of HTTP's own (who may come in, how often, how much): no OctoError below this edge knows it."""
    retry = status == HTTPStatus.TOO_MANY_REQUESTS
    body = _shape(
        f"{message} {next_step}".strip(),
        kind="rate_limit_error" if retry else "invalid_request_error",
        code=code,
        param=None,
        octo={"fault": "client", "retry": retry, "next_step": next_step},
    )
    return web.json_response(body, status=status, headers=headers)


def too_many(message: str) -> web.Response:
    headers = {"Retry-After": _RETRY_AFTER_S}
    return refusal(429, "rate_limit_exceeded", message, next_step="Try again in a moment.", headers=headers)


def http_refusal(error: web.HTTPException, *, body_bytes: int) -> web.Response:
    """aiohttp's own refusals in our shape."""
    message, next_step = f"{error.reason}.", ""
    if error.status == HTTPStatus.NOT_FOUND:
        message, next_step = "there is no such route.", "docs/api.md lists them all."
    elif error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"this route takes {error.headers.get('Allow', 'another method').replace(',', ', ')}."
    elif error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        message, next_step = f"the body is larger than {body_bytes} bytes.", "limits.body_bytes sets how much is taken."
    elif error.status == HTTPStatus.REQUEST_TIMEOUT:
        message = "the body did not arrive in time."
    headers = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
    return refusal(
        error.status, _HTTP_CODES.get(error.status, "invalid_request"), message, next_step=next_step, headers=headers
    )


def _reasons_text(reasons: Mapping[str, str]) -> str:
    """The first few, in the message too: OpenAI's clients print nothing else."""
    told = [f"{short(peer)}: {reason.rstrip('.')}." for peer, reason in list(reasons.items())[:_REASONS_TOLD]]
    more = len(reasons) - len(told)
    return " ".join(told + ([f"And {more} more."] if more else []))


def _shape(message: str, *, kind: str, code: str, param: str | None, octo: Mapping[str, Any]) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code, "octo": octo}}
