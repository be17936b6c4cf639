"""What the platform says about itself: structured logs and Prometheus metrics.

Logs carry ids, sizes and times, never what a user sent or a model answered: `CONTENT_KEYS` are
dropped from every event, whoever logs them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from stoker.domain import FunctionName, NodeId, Timeline

METRICS_MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
CONTENT_KEYS = frozenset(
    {"body", "content", "input", "messages", "payload", "prompt", "prompt_ids", "text", "value"}
)
NO_FUNCTION = ""  # the label of requests that name no deployed function; equal to no label at all

# A warm token takes milliseconds, a cold start of a large model minutes.
STARTUP_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip


# --- logs -----------------------------------------------------------------------------------


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Sends all logs, also those of libraries, to `stream` (stderr): colourful on a terminal,
    one JSON object a line elsewhere. Called once, by the process's entry point."""
    stream = stream or sys.stderr
    threshold = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_content,
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if stream.isatty()
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for chatty in ("httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _without_content(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {key: value for key, value in event.items() if key not in CONTENT_KEYS}


# --- metrics --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tally:
    """What a node has in its tiers now, and what has happened there since its agent started."""

    tier_bytes: Mapping[str, int]
    hits: Mapping[str, int]
    misses: Mapping[str, int]
    fetched_bytes: Mapping[str, int]  # by source
    evictions: Mapping[tuple[str, str], int]  # by tier and reason


class _Tiers(Collector):
    """Counters that nodes keep, as they say them when they are asked."""

    def __init__(self) -> None:
        self.tallies: Mapping[NodeId, Tally] = {}

    def collect(self) -> Iterator[Metric]:
        size = GaugeMetricFamily(
            "stoker_cache_bytes", "Checkpoints in a tier of a node.", labels=("node", "tier")
        )
        hits = CounterMetricFamily(
            "stoker_cache_hits",
            "Starts that found their checkpoint there.",
            labels=("node", "tier"),
        )
        misses = CounterMetricFamily(
            "stoker_cache_misses", "Starts that did not.", labels=("node", "tier")
        )
        fetched = CounterMetricFamily(
            "stoker_fetched_bytes", "Bytes brought to a node.", labels=("node", "source")
        )
        evictions = CounterMetricFamily(
            "stoker_cache_evictions",
            "Copies given up: for the budget, since the disk was full, or since somebody asked.",
            labels=("node", "tier", "reason"),
        )
        for node, tally in self.tallies.items():
            for family, values in (
                (size, tally.tier_bytes),
                (hits, tally.hits),
                (misses, tally.misses),
                (fetched, tally.fetched_bytes),
            ):
                for label, value in values.items():
                    family.add_metric((node, label), value)
            for (tier, reason), count in tally.evictions.items():
                evictions.add_metric((node, tier, reason), count)
        yield from (size, hits, misses, fetched, evictions)


class Metrics:
    """The platform's metrics in a registry of their own. Durations in seconds.

    Label values are bounded: functions that are deployed, states, phases, tiers, HTTP statuses.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._phase = Histogram(
            "stoker_startup_phase_seconds",
            "Duration of one phase of a request's start.",
            ("function", "phase", "tier"),
            registry=self.registry,
            buckets=STARTUP_BUCKETS_S,
        )
        self._prediction_error = Histogram(
            "stoker_startup_prediction_error_seconds",
            "Absolute difference of a phase's predicted and actual duration.",
            ("function", "phase"),
            registry=self.registry,
            buckets=STARTUP_BUCKETS_S,
        )
        self._ttft = Histogram(
            "stoker_ttft_seconds",
            "From a request's arrival to its first token or value.",
            ("function", "cold"),
            registry=self.registry,
            buckets=STARTUP_BUCKETS_S,
        )
        self._tokens = Counter(
            "stoker_tokens",
            "Tokens read and written.",
            ("function", "kind"),
            registry=self.registry,
        )
        self._requests = Counter(
            "stoker_requests",
            "Requests answered; 499: the client left first.",
            ("function", "status"),
            registry=self.registry,
        )
        self._held = Gauge(
            "stoker_held_requests",
            "Requests that wait for a slot.",
            ("function",),
            registry=self.registry,
        )
        self._instances = Gauge(
            "stoker_instances", "Instances by state.", ("function", "state"), registry=self.registry
        )
        self._tiers = _Tiers()
        self.registry.register(self._tiers)

    def started(self, timeline: Timeline) -> None:
        """A request got its first token or value."""
        function = timeline.function
        cold = "true" if timeline.cold else "false"
        self._ttft.labels(function, cold).observe(timeline.total_ms / 1000)
        for phase in timeline.phases:
            self._phase.labels(function, phase.name.value, phase.tier or "").observe(
                max(phase.duration_ms, 0.0) / 1000
            )
            if phase.predicted_ms is not None:
                error_ms = abs(phase.duration_ms - phase.predicted_ms)
                self._prediction_error.labels(function, phase.name.value).observe(error_ms / 1000)

    def tokens(self, function: FunctionName, *, prompt: int, completion: int) -> None:
        self._tokens.labels(function, "prompt").inc(prompt)
        self._tokens.labels(function, "completion").inc(completion)

    def request(self, function: FunctionName | None, status: int) -> None:
        """A request was answered; `function` is None unless it names a deployed one."""
        self._requests.labels(function or NO_FUNCTION, str(status)).inc()

    def forget(self, function: FunctionName) -> None:
        """Drops the series of a deleted function."""
        for metric in (
            self._phase,
            self._prediction_error,
            self._ttft,
            self._tokens,
            self._requests,
        ):
            metric.remove_by_labels({"function": function})

    def render(
        self,
        held: Mapping[FunctionName, int],
        instances: Iterable[tuple[FunctionName, str]],
        caches: Mapping[NodeId, Tally] | None = None,
    ) -> bytes:
        """The text exposition; `instances` gives function and state of each, `caches` what each
        node has in its tiers."""
        self._tiers.tallies = caches or {}
        self._held.clear()
        for function, waiting in held.items():
            self._held.labels(function).set(waiting)
        self._instances.clear()
        for function, state in instances:
            self._instances.labels(function, state).inc()
        return generate_latest(self.registry)
