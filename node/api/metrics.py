"""What the API counts, for Prometheus. A registry of its own for each application: two nodes may share a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from market.work import Work

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


COUNTED: Mapping[str, str] = {
    "model_hits": "Tasks that found their model loaded.",
    "model_misses": "Tasks that had their model loaded, or waited for it.",
    "model_loads": "Models loaded.",
    "model_evictions": "Models unloaded to make room for others.",
    "model_load_failures": "Models that could not be loaded.",
    "prefix_jobs": "Jobs that ran on engines here.",
    "prefix_hits": "Jobs that found some of their prompt prefilled.",
    "prefix_prompt_tokens": "Prompt tokens of these jobs.",
    "prefix_cached_tokens": "Prompt tokens that were prefilled already.",
    "cache_hits": "Answers told again to clients.",
    "cache_misses": "Questions for an answer that is not kept here.",
    "cache_evicted": "Answers thrown away because others needed their place.",
    "cache_asked": "Answers bought that might have been told again.",
    "cache_told_again": "Answers bought that were told again.",
    "embedding_cache_hits": "Texts to embed whose vector was kept here.",
    "embedding_cache_misses": "Texts to embed whose vector was looked for and not found.",
    "embedding_cache_evicted": "Vectors thrown away because others needed their place.",
    "embedding_cache_damaged": "Vectors and files that were not what was written.",
}
"""What a node counts itself, by name; `octo_` stands before and `_total` behind."""


GAUGED: Mapping[str, str] = {
    "models_offered": "Models on offer here.",
    "models_loaded": "Models in memory.",
    "models_bytes": "What they take there.",
    "cache_bytes": "What kept answers take on disk.",
    "embedding_cache_bytes": "What kept vectors take on disk.",
}
"""What stands at a figure now; `octo_` stands before."""


class _NodeFigures(Collector):
    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        counts = self._counts()
        for name, meaning in COUNTED.items():
            yield CounterMetricFamily(f"octo_{name}", meaning, value=counts.get(name, 0))
        for name, meaning in GAUGED.items():
            yield GaugeMetricFamily(f"octo_{name}", meaning, value=counts.get(name, 0))


class Metrics:
    """`counts` gives what the node has counted so far, by the names of COUNTED, and what stands now, by GAUGED's."""

    def __init__(self, counts: Callable[[], Mapping[str, int]] = dict) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_NodeFigures(counts))
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
