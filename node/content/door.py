"""How much one address may ask for.

Lives here: a token bucket, and counts of streams and connections, for each address. Pure bookkeeping: knows no request
and no store. Nobody is exempt, neither loopback nor our own peers: a proxy in front needs higher limits, not none.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from market.values import value

_LEARNING = 0.2
"""How much the last stream's duration weighs in the mean; a handful of streams is remembered."""
_RETRY_MOST_S = 60
_ROUNDING = 1e-6
"""Of a token: floats that were added up must not refuse somebody who waited exactly as long as told."""


@value
class ContentLimits:
    """Per address (an IPv6 /64 counts as one), except the two totals. Requests beyond them get 429.

    `addresses` is how many are remembered. A connection over the limits is closed before it is heard.
    """

    requests_per_s: float = 200.0
    burst: int = 400
    streams: int = 16
    streams_total: int = 256
    connections: int = 64
    connections_total: int = 512
    addresses: int = 10_000


class TooMany(Exception):
    """`retry_s` whole seconds from now the same request may pass."""

    def __init__(self, retry_s: int) -> None:
        super().__init__(f"too many requests; try again in {retry_s} s")
        self.retry_s = retry_s


class Door:
    """Asked for every request, stream and connection. `clock` counts seconds from anywhere."""

    def __init__(self, limits: ContentLimits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._streams: Counter[str] = Counter()
        self._connections: Counter[str] = Counter()
        self._stream_s = 1.0

    def knock(self, visitor: str) -> None:
        """Take one request from the visitor's bucket. Raises TooMany. The longest silent address is forgotten first."""
        now, limits = self._clock(), self._limits
        tokens, then = self._buckets.pop(visitor, (float(limits.burst), now))
        tokens = min(float(limits.burst), tokens + (now - then) * limits.requests_per_s)
        passes = tokens >= 1 - _ROUNDING
        self._buckets[visitor] = (tokens - 1 if passes else tokens, now)
        if len(self._buckets) > limits.addresses:
            self._buckets.popitem(last=False)
        if not passes:
            raise TooMany(max(1, math.ceil((1 - tokens) / limits.requests_per_s)))

    @contextmanager
    def stream(self, visitor: str) -> Iterator[None]:
        """Count one answer while it goes out. Raises TooMany; then `retry_s` is when the next stream should end,
        going by how long the last ones took."""
        running, total = self._streams[visitor], self._streams.total()
        if running >= self._limits.streams or total >= self._limits.streams_total:
            ahead = running if running >= self._limits.streams else total
            raise TooMany(min(_RETRY_MOST_S, max(1, math.ceil(self._stream_s / max(1, ahead)))))
        self._streams[visitor] += 1
        began = self._clock()
        try:
            yield
        finally:
            self._stream_s += _LEARNING * (self._clock() - began - self._stream_s)
            _leave(self._streams, visitor)

    def enter(self, visitor: str) -> bool:
        """Count a connection; False if there is no room for it (then it is not counted)."""
        limits, total = self._limits, self._connections.total()
        if self._connections[visitor] >= limits.connections or total >= limits.connections_total:
            return False
        self._connections[visitor] += 1
        return True

    def leave(self, visitor: str) -> None:
        _leave(self._connections, visitor)


def visitor_of(address: str | None) -> str:
    """The name under which an IP address is counted: itself, or the /64 that an IPv6 customer gets whole."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def _leave(counts: Counter[str], visitor: str) -> None:
    counts[visitor] -= 1
    if counts[visitor] <= 0:
        del counts[visitor]
