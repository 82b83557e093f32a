"""Logs, metrics and the two health answers: all that an operator sees of a worker."""

import logging
import sys
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_LATENCIES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
_LAGS: Final = (1, 2, 5, 10, 30, 60, 300, 900, 3_600, 14_400, 86_400)


def configure_logging(format_: str, level: str) -> None:
    """Log to standard output: one JSON object a line, or coloured columns on a console.

    The libraries' own records go the same way.
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
    handler = logging.StreamHandler(sys.stdout)
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
    # Each loss of a connection is told once, by the supervisor.
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
    """The worker's metrics, in a registry of their own."""

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
            "From a command's timestamp to its acknowledgement.",
            buckets=_LAGS,
            registry=r,
        )
        self.sessions = Counter("outplan_sessions", "Sessions with the broker begun.", registry=r)
        self.retries = Counter(
            "outplan_retries", "Waits for something that only time mends.", ("error",), registry=r
        )
        self.ready = Gauge("outplan_ready", "1 while the worker is ready.", registry=r)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class Health:
    """What the worker has met that is wrong and not over, by where it is wrong."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._troubles: dict[str, str] = {"broker": "not connected yet"}
        self._log = structlog.get_logger()

    @property
    def troubles(self) -> dict[str, str]:
        return dict(self._troubles)

    def trouble(self, place: str, error: BaseException | str) -> None:
        """Something is wrong; said in the log once, until it is another thing or over."""
        kind, text = type(error).__name__, str(error)
        self._metrics.retries.labels(kind).inc()
        if place not in self._troubles or not self._troubles[place].startswith(kind):
            self._log.warning("waiting", place=place, error=kind, detail=text)
        self._troubles[place] = f"{kind}: {text}"

    def well(self, place: str) -> None:
        """Nothing is wrong there any more."""
        self._troubles.pop(place, None)
