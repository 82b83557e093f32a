"""What a soak measures each second, and the verdict on it."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Final

# From the fifth minute to the end; both are medians of a minute, less in shorter runs.
WARM_UP: Final = 300.0
WINDOW: Final = 60.0
MOST_GROWTH: Final = 0.05
# Commands in flight, in seconds of load: ever, and more of them late than early.
MOST_BEHIND: Final = 10.0
MORE_BEHIND: Final = 3.0
# Of the rate that was asked for.
LEAST_RATE: Final = 0.95
MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """One second. Memory is resident, in MiB; times are milliseconds from publish to event.

    None is what cannot be seen from here: a server in a container, or a second without an event.
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


class Sheet:
    """The samples, written down as they come."""

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
class Row:
    """A line of the verdict: a measure early and late, and whether that is sound."""

    name: str
    early: float
    late: float
    limit: str
    sound: bool

    @property
    def growth(self) -> float:
        return self.late / self.early - 1 if self.early else 0.0


def windows(seconds: float) -> tuple[float, float]:
    """When the first window begins, and how long each is, in a run of so many seconds."""
    return min(WARM_UP, seconds / 4), min(WINDOW, seconds / 8)


def verdict(samples: Sequence[Sample], rate: float) -> list[Row]:
    """Judge the growth of the worker and what waits for it."""
    end = samples[-1].at
    warm, length = windows(end)
    early = [s for s in samples if warm <= s.at < warm + length]
    late = [s for s in samples if s.at > end - length]
    growing = [
        _grown(name, [getattr(s, field) for s in early], [getattr(s, field) for s in late])
        for name, field in (
            ("worker's memory, MiB", "worker_memory"),
            ("worker's open files", "worker_files"),
            ("worker's AMQP connections", "worker_connections"),
        )
    ]
    return [
        *growing,
        *_waiting(early, late, samples, rate),
        _answered(early, late, rate),
        *_seen(early, late),
    ]


def _grown(name: str, early: Iterable[float], late: Iterable[float]) -> Row:
    before, after = median(early), median(late)
    return Row(name, before, after, "5% more", after <= before * (1 + MOST_GROWTH))


def _waiting(
    early: list[Sample], late: list[Sample], samples: Sequence[Sample], rate: float
) -> list[Row]:
    before, after = (median(s.in_flight for s in part) for part in (early, late))
    peak = max(s.in_flight for s in samples if s.at >= early[0].at)
    most, more = MOST_BEHIND * rate, MORE_BEHIND * rate
    found = [
        Row("commands in flight", before, after, f"{more:.0f} more", after <= before + more),
        Row("commands in flight, at most", peak, peak, f"{most:.0f}", peak <= most),
    ]
    for name, field in (
        ("commands ready", "commands_ready"),
        ("events ready", "events_ready"),
        ("rejected copies ready", "rejected_ready"),
    ):
        first, last = (median(getattr(s, field) for s in part) for part in (early, late))
        found.append(Row(name, first, last, f"{more:.0f} more", last <= first + more))
    return found


def _answered(early: list[Sample], late: list[Sample], rate: float) -> Row:
    """A load that fell short of what was asked for has proved less than it says."""
    before, after = (
        (part[-1].replied - part[0].replied) / (part[-1].at - part[0].at) for part in (early, late)
    )
    overall = (late[-1].replied - early[0].replied) / (late[-1].at - early[0].at)
    least = LEAST_RATE * rate
    return Row(
        "commands answered a second", before, after, f"{least:.0f} overall", overall >= least
    )


def _seen(early: list[Sample], late: list[Sample]) -> list[Row]:
    """What is shown but not judged."""
    found = []
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
            found.append(Row(name, median(parts[0]), median(parts[1]), "", True))
    return found
