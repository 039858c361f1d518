"""What is counted, as Prometheus reads it. No label is anyone's word: routes are templates, sessions have no names."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from beacon_memory.models.running.running import Running
    from beacon_memory.server.desk import Desk
    from beacon_memory.sessions.repository import LRUCache, Repository

SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
QUICK = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)  # of a store
TOGETHER = (1, 2, 4, 8, 16, 32, 64)  # answers


class Metrics:
    """The counts of one server."""

    def __init__(self) -> None:
        self.registry = registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "beacon_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._seconds = prometheus.Histogram(
            "beacon_request_seconds",
            "From a request to the end of its answer.",
            ["route"],
            registry=registry,
            buckets=SECONDS,
        )
        self._first = prometheus.Histogram(
            "beacon_first_byte_seconds",
            "From a request to the first of its answer.",
            ["route"],
            registry=registry,
            buckets=SECONDS,
        )
        self._prompt = prometheus.Counter("beacon_prompt_tokens", "Tokens that answers could see.", registry=registry)
        self._held = prometheus.Counter(
            "beacon_prompt_tokens_held", "Of these, tokens that memory held already.", registry=registry
        )
        self._raw = prometheus.Counter(
            "beacon_raw_tokens", "Tokens that stood raw in front of answers.", registry=registry
        )
        self._answered = prometheus.Counter("beacon_answer_tokens", "Tokens of answers.", registry=registry)
        self._store = prometheus.Histogram(
            "beacon_store_seconds", "What a store took.", ["operation"], registry=registry, buckets=QUICK
        )
        self._failed = prometheus.Counter(
            "beacon_store_errors", "Operations of a store that failed.", ["operation", "error"], registry=registry
        )
        prometheus.ProcessCollector(registry=registry)

    def answered(self, method: str, route: str, status: int, *, seconds: float, first: float | None) -> None:
        """Count a request that was answered; `first` is the time to its first byte, where there was one."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if first is not None:
            self._first.labels(route).observe(first)

    def told(self, *, tokens: int, held: int, raw: int, answer: int) -> None:
        """Count the tokens of an answer: what it could see, what memory held of that, what stood raw, what it said."""
        self._prompt.inc(tokens)
        self._held.inc(held)
        self._raw.inc(raw)
        self._answered.inc(answer)

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Count what an operation of a store takes, and its errors by their class."""
        begun = time.perf_counter()
        try:
            yield
        except Exception as exc:
            self._failed.labels(operation, type(exc).__name__).inc()
            raise
        finally:
            self._store.labels(operation).observe(time.perf_counter() - begun)

    def watch(self, desk: Desk, running: Running, memories: Callable[[], Sequence[Repository]], *, most: int) -> None:
        """Tell, when it is asked, of the queue, the model, and what the memories of all namespaces did and hold."""
        self.registry.register(_Held(desk, running, memories, most))

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)


class _Held(Collector):
    """What is not counted here but held elsewhere, read when it is asked for."""

    def __init__(self, desk: Desk, running: Running, memories: Callable[[], Sequence[Repository]], most: int) -> None:
        self._desk, self._running, self._memories, self._most = desk, running, memories, most

    def collect(self) -> Iterator[Metric]:
        memories, running = self._memories(), self._running
        yield GaugeMetricFamily("beacon_busy", "Requests that wait for the model or use it.", self._desk.busy)
        yield GaugeMetricFamily("beacon_busy_most", "So many may; more get 429.", self._most)
        yield GaugeMetricFamily("beacon_waiting", "Of the busy ones, those that wait for a thread.", self._desk.waiting)
        yield GaugeMetricFamily("beacon_answers", "Answers that are being made.", running.answers)
        passes = HistogramMetricFamily("beacon_pass_answers", "How many answers a pass of the model read.")
        passes.add_metric([], *_buckets(dict(running.passes)))
        yield passes
        yield GaugeMetricFamily("beacon_namespaces", "Namespaces whose store is open.", len(memories))
        folded: Counter[str] = Counter()
        for memory in memories:
            folded.update(memory.folded)
        for name, said in (
            ("tokens", "Tokens that were folded and stored."),
            ("slots", "Slots they became."),
            ("bytes", "Bytes of these."),
        ):
            yield CounterMetricFamily(f"beacon_folded_{name}", said, folded[name])
        yield from _caches([memory.caches for memory in memories])


def _buckets(counts: Mapping[int, int]) -> tuple[list[tuple[str, float]], float]:
    """A histogram's buckets, and the sum of all that was counted."""
    buckets = [(f"{most:.1f}", float(sum(n for size, n in counts.items() if size <= most))) for most in TOGETHER]
    return [*buckets, ("+Inf", float(sum(counts.values())))], float(sum(size * n for size, n in counts.items()))


def _caches(memories: Sequence[Mapping[str, LRUCache[Any]]]) -> Iterator[Metric]:
    hits = CounterMetricFamily("beacon_cache_hits", "What was found in a cache.", labels=["cache"])
    misses = CounterMetricFamily("beacon_cache_misses", "What was not.", labels=["cache"])
    kept = GaugeMetricFamily("beacon_cache_bytes", "Bytes that a cache holds.", labels=["cache"])
    for name in {name: None for memory in memories for name in memory}:
        found = [memory[name] for memory in memories]
        hits.add_metric([name], sum(cache.hits for cache in found))
        misses.add_metric([name], sum(cache.misses for cache in found))
        kept.add_metric([name], sum(cache.nbytes for cache in found))
    yield from (hits, misses, kept)
