"""A worker's logs and metrics, and the health of its components."""

import logging
import sys
from collections.abc import Callable
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from outplan.worker.log_writer import LogWriter

_LATENCIES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
_LAGS: Final = (1, 2, 5, 10, 30, 60, 300, 900, 3_600, 14_400, 86_400)


def configure_logging(format_: str, level: str, on_drop: Callable[[], None]) -> None:
    """Log to standard output: one JSON object a line, or coloured columns on a console.

    ``format_`` is ``json``, ``console`` or ``auto`` (console on a terminal), ``level`` a level's
    name. The libraries' own records go the same way. ``on_drop`` is called for each line that is
    dropped because nobody reads the output.
    """
    console = format_ == "console" or (format_ == "auto" and sys.stdout.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    exceptions: list[Any] = [] if console else [structlog.processors.format_exc_info]
    handler = LogWriter(sys.stdout.fileno(), on_drop)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *exceptions,
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # The worker logs each lost connection once, by itself.
    for noisy in ("aiormq", "aio_pika", "pymongo", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class Metrics:
    """A worker's Prometheus metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.commands = Counter(
            "outplan_commands", "Commands settled.", ("outcome", "code"), registry=r
        )
        self.redelivered = Counter(
            "outplan_redelivered", "Commands that the broker had delivered before.", registry=r
        )
        self.batch_size = Histogram(
            "outplan_batch_size", "Commands in a transaction.", buckets=_SIZES, registry=r
        )
        self.commit_seconds = Histogram(
            "outplan_commit_seconds",
            "From a batch's arrival to its commit.",
            buckets=_LATENCIES,
            registry=r,
        )
        self.publish_seconds = Histogram(
            "outplan_publish_seconds",
            "From a batch's commit to its last confirm.",
            buckets=_LATENCIES,
            registry=r,
        )
        self.lag_seconds = Histogram(
            "outplan_lag_seconds",
            "From a command's timestamp to its ack, in seconds.",
            buckets=_LAGS,
            registry=r,
        )
        self.sessions = Counter("outplan_sessions", "Sessions with the broker begun.", registry=r)
        self.retries = Counter(
            "outplan_retries", "Retries of an error that may pass.", ("error",), registry=r
        )
        self.unordered = Counter(
            "outplan_unordered_commands",
            "Commands outside of their outplan's partition, while there is more than one.",
            ("reason",),
            registry=r,
        )
        self.log_lines_dropped = Counter(
            "outplan_log_lines_dropped",
            "Log lines dropped because nobody read the output.",
            registry=r,
        )
        self.ready = Gauge("outplan_ready", "1 while the worker is ready.", registry=r)
        self.queues_active = Gauge(
            "outplan_queues_active",
            "Queues of which this worker is the active consumer.",
            registry=r,
        )

    def count_unordered(self) -> int:
        """Return how many commands came outside of their outplan's partition."""
        [metric] = self.unordered.collect()
        return int(sum(s.value for s in metric.samples if s.name.endswith("_total")))

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class Health:
    """The components that have failed and not recovered, with the last error of each."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._failures: dict[str, str] = {"broker": "not connected yet"}
        self._log = structlog.get_logger()

    @property
    def failures(self) -> dict[str, str]:
        """The last error of each failed component, as ``type: text``."""
        return dict(self._failures)

    def fail(self, component: str, error: BaseException) -> None:
        """Record an error; log it unless it repeats the component's last kind of error."""
        kind, text = type(error).__name__, str(error)
        self._metrics.retries.labels(kind).inc()
        if not self._failures.get(component, "").startswith(kind):
            self._log.warning("component_failed", component=component, error=kind, detail=text)
        self._failures[component] = f"{kind}: {text}"

    def recover(self, component: str) -> None:
        """Forget the component's last error."""
        self._failures.pop(component, None)
