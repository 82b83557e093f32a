"""Summarize a fuzz run: outcomes, CPU time, memory, failures."""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from rich.table import Table

from tests.faults.fuzz.mutants import Mutant

_SLOWEST_KEPT: Final = 20
_MIB: Final = 2**20
_STEPS: Final = 32  # in each doubling of the time, so a quantile is right to about 2%


@dataclass(slots=True)
class Times:
    """Histogram of nanoseconds, and the slowest messages; constant memory."""

    counts: Counter[int] = field(default_factory=Counter)
    slowest: list[tuple[int, int, Mutant]] = field(default_factory=list)
    _serial: int = 0

    def add(self, nanoseconds: int, mutant: Mutant) -> None:
        self.counts[_bucket(nanoseconds)] += 1
        self._serial += 1
        item = (nanoseconds, self._serial, mutant)
        if len(self.slowest) < _SLOWEST_KEPT:
            heapq.heappush(self.slowest, item)
        elif nanoseconds > self.slowest[0][0]:
            heapq.heapreplace(self.slowest, item)

    def merge(self, other: "Times") -> None:
        self.counts.update(other.counts)
        for nanoseconds, _, mutant in other.slowest:
            self._serial += 1
            self.slowest.append((nanoseconds, self._serial, mutant))
        self.slowest = heapq.nlargest(_SLOWEST_KEPT, self.slowest)

    def quantile(self, fraction: float) -> float:
        """Return a quantile in microseconds."""
        rank, counted = fraction * self.counts.total(), 0
        for bucket in sorted(self.counts):
            counted += self.counts[bucket]
            if counted >= rank:
                return _upper_bound(bucket) / 1e3
        return 0.0


def _bucket(nanoseconds: int) -> int:
    if nanoseconds < _STEPS:
        return nanoseconds
    shift = nanoseconds.bit_length() - _STEPS.bit_length()
    return (shift << 8) + (nanoseconds >> shift)


def _upper_bound(bucket: int) -> int:
    shift, value = bucket >> 8, bucket & 0xFF
    return (value + 1) << shift


@dataclass(slots=True)
class Report:
    """Results of one run, or of several merged. ``failures`` must be empty."""

    count: int = 0
    malformed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    readings: Counter[str] = field(default_factory=Counter)
    times: Times = field(default_factory=Times)
    reader_times: Times = field(default_factory=Times)
    memory: list[tuple[int, int]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def merge(self, other: "Report") -> None:
        self.count += other.count
        self.malformed += other.malformed
        for mine, theirs in (
            (self.outcomes, other.outcomes), (self.kinds, other.kinds),
            (self.checks, other.checks), (self.readings, other.readings),
        ):  # fmt: skip
            mine.update(theirs)
        self.times.merge(other.times)
        self.reader_times.merge(other.reader_times)
        self.memory += other.memory
        self.failures += other.failures
        self.seconds = max(self.seconds, other.seconds)

    @property
    def growth(self) -> int:
        """Return the bytes that the worst process gained after the first tenth."""
        return max((end - early for early, end in self.memory), default=0)


def build_tables(report: Report, slowest: list[tuple[float, Mutant]]) -> list[Table]:
    """Build tables of outcomes, of kinds of mutants, and of the slowest messages."""
    counts = [
        _count_table("outcome", report.outcomes),
        _count_table("made", report.kinds),
        _count_table("read by subscribers, clients and operators", report.readings),
    ]
    slow = Table(title="The slowest messages, median of five repeated timings")
    for heading in ("ms", "made", "routing key", "header", "body", "start of the body"):
        slow.add_column(heading)
    for seconds, mutant in slowest[:6]:
        slow.add_row(
            f"{seconds * 1e3:.1f}",
            mutant.kind,
            ascii(mutant.routing_key)[:20],
            f"{len(mutant.header):,}",
            f"{len(mutant.body):,}",
            ascii(mutant.body[:60])[2:-1],
        )
    return [*counts, slow]


def render_summary(report: Report, worst: float) -> list[str]:
    """Render the figures as lines; ``worst`` is the slowest message's repeated time in seconds."""
    times, readers = _describe_times(report.times), _describe_times(report.reader_times)
    lines = [
        f"{report.count:,} messages in {report.seconds:.0f} s, {report.malformed:,} more malformed",
        f"CPU time each: {times}; the slowest repeated {worst * 1e3:.1f} ms",
        f"{sum(report.readings.values()):,} readings, CPU time of all three readers: {readers}",
        f"schema checks against a second implementation: {dict(report.checks)}",
    ]
    memory = (
        f"resident memory after a tenth {early / _MIB:.1f} MiB, at the end {end / _MIB:.1f} MiB"
        for early, end in report.memory
    )
    return [*lines, *memory, *(f"FAILURE: {failure}" for failure in report.failures)]


def _describe_times(times: Times) -> str:
    at = {f"p{part * 100:g}": times.quantile(part) for part in (0.5, 0.99, 0.999)}
    top = max((nanoseconds for nanoseconds, _, _ in times.slowest), default=0)
    listed = ", ".join(f"{name} {micros:.0f} µs" for name, micros in at.items())
    return f"{listed}, max {top / 1e6:.1f} ms"


def _count_table(heading: str, counts: Counter[str]) -> Table:
    table = Table()
    table.add_column(heading)
    table.add_column("messages", justify="right")
    for name, count in counts.most_common(16):
        table.add_row(name, f"{count:,}")
    return table
