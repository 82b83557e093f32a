"""Store a soak's samples, and compare early with late ones."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Final

# The early window starts in the fifth minute and the late one ends the run, a minute each; both are
# shorter in short runs.
WARM_UP: Final = 300.0
WINDOW: Final = 60.0
MOST_GROWTH: Final = 0.05
# Limits for commands in flight, in seconds of load: at any time, and late compared with early.
MOST_BEHIND: Final = 10.0
MORE_BEHIND: Final = 3.0
# Share of the requested rate.
LEAST_RATE: Final = 0.95
MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """One second of a soak: memory in MiB, p50 and p99 in milliseconds from publish to event.

    None means unknown: a server in a container, or a second without an event.
    """

    at: float
    worker_memory: float
    worker_files: int
    worker_connections: int
    broker_memory: float | None
    store_memory: float | None
    loader_memory: float
    commands_ready: int
    rejected_ready: int
    events_ready: int
    in_flight: int
    sent: int
    replied: int
    p50: float | None
    p99: float | None


class SampleFile:
    """Keep samples, and write each to a CSV file at once."""

    def __init__(self, path: Path) -> None:
        self.samples: list[Sample] = []
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, [field.name for field in fields(Sample)])
        self._writer.writeheader()

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._writer.writerow(asdict(sample))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure early and late in the run, its limit, and whether it keeps it."""

    name: str
    early: float
    late: float
    limit: str
    has_passed: bool

    @property
    def growth(self) -> float:
        return self.late / self.early - 1 if self.early else 0.0


def comparison_windows(seconds: float) -> tuple[float, float]:
    """Return the early window's start and both windows' length, in seconds."""
    return min(WARM_UP, seconds / 4), min(WINDOW, seconds / 8)


def compare(samples: Sequence[Sample], rate: float) -> list[Measure]:
    """Compare the medians of the early and the late window with their limits."""
    end = samples[-1].at
    warm, length = comparison_windows(end)
    early = [s for s in samples if warm <= s.at < warm + length]
    late = [s for s in samples if s.at > end - length]
    growth_measures = [
        _measure_growth(name, [getattr(s, field) for s in early], [getattr(s, field) for s in late])
        for name, field in (
            ("worker's memory, MiB", "worker_memory"),
            ("worker's open files", "worker_files"),
            ("worker's AMQP connections", "worker_connections"),
        )
    ]
    return [
        *growth_measures,
        *_measure_backlog(early, late, samples, rate),
        _measure_rate(early, late, rate),
        *_measure_unlimited(early, late),
    ]


def _measure_growth(name: str, early: Iterable[float], late: Iterable[float]) -> Measure:
    before, after = median(early), median(late)
    return Measure(name, before, after, "5% more", after <= before * (1 + MOST_GROWTH))


def _measure_backlog(
    early: list[Sample], late: list[Sample], samples: Sequence[Sample], rate: float
) -> list[Measure]:
    before, after = (median(s.in_flight for s in part) for part in (early, late))
    peak = max(s.in_flight for s in samples if s.at >= early[0].at)
    most, more = MOST_BEHIND * rate, MORE_BEHIND * rate
    measures = [
        Measure("commands in flight", before, after, f"{more:.0f} more", after <= before + more),
        Measure("most commands in flight", peak, peak, f"{most:.0f}", peak <= most),
    ]
    for name, field in (
        ("commands ready", "commands_ready"),
        ("events ready", "events_ready"),
        ("rejected copies ready", "rejected_ready"),
    ):
        first, last = (median(getattr(s, field) for s in part) for part in (early, late))
        measures.append(Measure(name, first, last, f"{more:.0f} more", last <= first + more))
    return measures


def _measure_rate(early: list[Sample], late: list[Sample], rate: float) -> Measure:
    """Require the requested rate: a smaller load would prove less."""
    before, after = (
        (part[-1].replied - part[0].replied) / (part[-1].at - part[0].at) for part in (early, late)
    )
    overall = (late[-1].replied - early[0].replied) / (late[-1].at - early[0].at)
    least = LEAST_RATE * rate
    return Measure(
        "commands answered a second", before, after, f"{least:.0f} overall", overall >= least
    )


def _measure_unlimited(early: list[Sample], late: list[Sample]) -> list[Measure]:
    """Show measures without a limit."""
    measures = []
    for name, field in (
        ("p50, ms", "p50"),
        ("p99, ms", "p99"),
        ("RabbitMQ's memory, MiB", "broker_memory"),
        ("MongoDB's memory, MiB", "store_memory"),
        ("load generator's memory, MiB", "loader_memory"),
    ):
        parts = [
            [v for s in part if (v := getattr(s, field)) is not None] for part in (early, late)
        ]
        if all(parts):
            measures.append(Measure(name, median(parts[0]), median(parts[1]), "", True))
    return measures
