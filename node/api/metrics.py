"""What the API counts, for Prometheus. A registry of its own for each application: two nodes may share a process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from market.work import Work

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "octo_http_requests", "Requests answered.", ("route", "status"), registry=self._registry
        )
        self._tokens = Counter("octo_tokens", "Tokens of text bought.", ("direction",), registry=self._registry)
        self._units = Counter(
            "octo_units", "Units of other work bought.", ("work", "direction"), registry=self._registry
        )
        self._first_token = Histogram(
            "octo_first_token_seconds",
            "From a request's arrival to its answer's first token.",
            registry=self._registry,
            buckets=_SECONDS,
        )

    def answered(self, route: str, status: int) -> None:
        """`route` is a pattern, never a path: a path is the caller's text."""
        self._requests.labels(route, str(status)).inc()

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def bought(self, work: Work, units_in: int, units_out: int) -> None:
        """Units are tokens where the work is text; `market.work` says what they are elsewhere."""
        for direction, units in (("in", units_in), ("out", units_out)):
            if work is Work.CHAT:
                self._tokens.labels(direction).inc(units)
            else:
                self._units.labels(str(work), direction).inc(units)

    def text(self) -> bytes:
        return generate_latest(self._registry)
