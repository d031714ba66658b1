"""Who may come in: the right Host and Origin, and a key. Runs before any handler and before any body is read.

A page on the web can make a browser send requests to 127.0.0.1, and by DNS rebinding read the answers under
its own name: so Host must be a name of ours, and Origin, if there is one, the same as Host.
"""

from __future__ import annotations

import ipaddress
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from node.api.errors import refusal, too_many
from node.api.limits import ApiLimits
from node.api_keys import OWNER, caller_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CALLER = web.RequestKey("caller", str)
"""Where a request says who sent it, once the guard let it in: `node.api_keys.caller_of`."""
OPEN_ROUTES = frozenset({"/healthz"})
OWNER_ROUTES = frozenset(
    {
        "/api/v1/stake",
        "/api/v1/channels/{id}/close",
        "/api/v1/settle",
        "/api/v1/wallet/faucet",
        "/api/v1/answers/forget",
    }
)
OWNER_PREFIX = "/api/v1/models/"
"""What moves the owner's money, fills the owner's disk or clears it, unless it is a GET: API keys are handed to
programs, which buy and no more."""
_OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[^\s:/@\[\]]{1,253})(?::\d{1,5})?")

log = structlog.get_logger()


class KeyChecks(Protocol):
    def check_api_key(self, presented: str) -> bool: ...

    def check_cli_token(self, presented: str) -> bool: ...


class Guard:
    """`clock` gives seconds that only grow. A name in `allowed_hosts` is allowed with any port."""

    def __init__(
        self, keys: KeyChecks, *, limits: ApiLimits, allowed_hosts: Sequence[str], clock: Callable[[], float]
    ) -> None:
        self._keys = keys
        self._names = frozenset(_plain_host(name) for name in (*_OWN_NAMES, *allowed_hosts))
        self._failures = Failures(limits, clock)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = self._check_host(request) or self._check_origin(request)
        if refused is None and request.path not in OPEN_ROUTES:
            refused = self._check_key(request)
        return refused or await handler(request)

    def _check_host(self, request: web.Request) -> web.Response | None:
        hosts = request.headers.getall("Host", [])
        found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if found is not None:
            name = _plain_host(found[1])
            if name in self._names or name == _arrived_at(request):
                return None
        return refusal(
            403, "host_not_allowed", "the Host header is not a name of this node.", next_step="Use 127.0.0.1."
        )

    def _check_origin(self, request: web.Request) -> web.Response | None:
        origins = request.headers.getall("Origin", [])
        if not origins:
            return None
        if len(origins) == 1 and _authority(origins[0]) == request.headers["Host"].lower():
            return None
        return refusal(403, "origin_not_allowed", "a page of another origin may not use this node.")

    def _check_key(self, request: web.Request) -> web.Response | None:
        scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
        presented = presented.strip()
        if scheme.lower() == "bearer" and presented:
            if self._keys.check_cli_token(presented):
                request[CALLER] = OWNER
                return None
            if self._keys.check_api_key(presented):
                request[CALLER] = caller_of(presented)
                return _check_owner(request)
            message = "the API key is not one of this node's."
        else:
            message = "no API key came with the request."
        if not self._failures.note(request.remote or ""):
            return too_many("too many requests without a valid API key.")
        log.info("key_refused", address=request.remote, presented_any=bool(presented))
        return refusal(
            401,
            "invalid_api_key",
            message,
            next_step="Send the header `Authorization: Bearer <key>` with the key that the node showed at its first"
            " start.",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _check_owner(request: web.Request) -> web.Response | None:
    resource = request.match_info.route.resource
    if request.method in ("GET", "HEAD") or resource is None:
        return None
    if resource.canonical not in OWNER_ROUTES and not resource.canonical.startswith(OWNER_PREFIX):
        return None
    return refusal(
        403,
        "cli_token_required",
        "an API key may not move this node's money or change its models.",
        next_step="Use `octo-node` as the node's own user, or the token that lies in its data folder.",
    )


class Failures:
    """A token bucket of failures for each address; the oldest addresses are forgotten first.

    It bounds what failures cost us in log lines. A valid key passes always: keys have 256 random bits, so there is
    nothing to guess, and a program that knocks with a wrong key must not lock out its neighbours on 127.0.0.1.
    """

    def __init__(self, limits: ApiLimits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def note(self, address: str) -> bool:
        """Whether one more failure of this address is within limits."""
        now, limits = self._clock(), self._limits
        left, then = self._left.pop(address, (float(limits.bad_keys), now))
        left = min(float(limits.bad_keys), left + (now - then) * limits.bad_keys_per_s)
        self._left[address] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > limits.addresses:
            self._left.popitem(last=False)
        return left >= 1


def _arrived_at(request: web.Request) -> str | None:
    """The address of ours that the connection reached: no rebinding, since rebinding needs a name."""
    transport = request.transport
    socket_name = transport.get_extra_info("sockname") if transport is not None else None
    return _plain_host(str(socket_name[0])) if isinstance(socket_name, tuple) else None


def _plain_host(name: str) -> str:
    """One spelling for each name or address: lower case, no brackets, IPv4 in IPv6 unwrapped."""
    bare = name.strip("[]").lower()
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return bare
    mapped = address.ipv4_mapped if address.version == 6 else None
    return str(mapped or address)


def _authority(origin: str) -> str | None:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None
