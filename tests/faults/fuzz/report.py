"""What a run over hostile messages came to: outcomes, time for each, memory, and what was wrong."""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from rich.table import Table

from tests.faults.fuzz.mutants import Mutant

_KEPT: Final = 20
_MIB: Final = 2**20
_STEPS: Final = 32  # in each doubling of the time, so a quantile is right to about 2%


@dataclass(slots=True)
class Times:
    """Nanoseconds in a histogram, and the slowest with what took them: nothing else is kept."""

    counts: Counter[int] = field(default_factory=Counter)
    slowest: list[tuple[int, int, Mutant]] = field(default_factory=list)
    _serial: int = 0

    def add(self, spent: int, mutant: Mutant) -> None:
        self.counts[_bucket(spent)] += 1
        self._serial += 1
        item = (spent, self._serial, mutant)
        if len(self.slowest) < _KEPT:
            heapq.heappush(self.slowest, item)
        elif spent > self.slowest[0][0]:
            heapq.heapreplace(self.slowest, item)

    def merge(self, other: "Times") -> None:
        self.counts.update(other.counts)
        for spent, _, mutant in other.slowest:
            self._serial += 1
            self.slowest.append((spent, self._serial, mutant))
        self.slowest = heapq.nlargest(_KEPT, self.slowest)

    def quantile(self, share: float) -> float:
        """In microseconds."""
        wanted, seen = share * self.counts.total(), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return _upper(bucket) / 1e3
        return 0.0


def _bucket(spent: int) -> int:
    if spent < _STEPS:
        return spent
    shift = spent.bit_length() - _STEPS.bit_length()
    return (shift << 8) + (spent >> shift)


def _upper(bucket: int) -> int:
    shift, value = bucket >> 8, bucket & 0xFF
    return (value + 1) << shift


@dataclass(slots=True)
class Report:
    """One run, or several merged. ``faults`` are sentences; there must be none."""

    count: int = 0
    malformed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    times: Times = field(default_factory=Times)
    memory: list[tuple[int, int]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def merge(self, other: "Report") -> None:
        self.count += other.count
        self.malformed += other.malformed
        for mine, theirs in (
            (self.outcomes, other.outcomes), (self.kinds, other.kinds), (self.checks, other.checks)
        ):  # fmt: skip
            mine.update(theirs)
        self.times.merge(other.times)
        self.memory += other.memory
        self.faults += other.faults
        self.seconds = max(self.seconds, other.seconds)

    @property
    def growth(self) -> int:
        """Bytes of resident memory gained after the first tenth, by the worst process."""
        return max((end - early for early, end in self.memory), default=0)


def tables(report: Report, remeasured: list[tuple[float, Mutant]]) -> list[Table]:
    """Outcomes, how messages were made, and the slowest of them."""
    found = [_counted("outcome", report.outcomes), _counted("made", report.kinds)]
    slow = Table(title="The slowest, timed again five times")
    for heading in ("ms", "made", "routing key", "header", "body", "the body's beginning"):
        slow.add_column(heading)
    for spent, mutant in remeasured[:6]:
        slow.add_row(
            f"{spent * 1e3:.1f}",
            mutant.kind,
            ascii(mutant.routing_key)[:20],
            f"{len(mutant.header):,}",
            f"{len(mutant.body):,}",
            ascii(mutant.body[:60])[2:-1],
        )
    return [*found, slow]


def summary(report: Report, worst: float) -> list[str]:
    """The figures in words; ``worst`` is the slowest message's time when timed again, seconds."""
    at = {f"p{share * 100:g}": report.times.quantile(share) for share in (0.5, 0.99, 0.999)}
    times = ", ".join(f"{name} {micros:.0f} µs" for name, micros in at.items())
    top = report.times.slowest[0][0] if report.times.slowest else 0
    lines = [
        f"{report.count:,} messages in {report.seconds:.0f} s, {report.malformed:,} more malformed",
        f"CPU time each: {times}, max {top / 1e6:.1f} ms; "
        f"the slowest timed again {worst * 1e3:.1f} ms",
        f"held against another implementation: {dict(report.checks)}",
    ]
    memory = (
        f"resident memory after a tenth {early / _MIB:.1f} MiB, at the end {end / _MIB:.1f} MiB"
        for early, end in report.memory
    )
    return [*lines, *memory, *(f"FAULT: {fault}" for fault in report.faults)]


def typical(times: list[float]) -> float:
    """The median of several timings of one message, seconds."""
    return median(times)


def _counted(heading: str, counts: Counter[str]) -> Table:
    made = Table()
    made.add_column(heading)
    made.add_column("messages", justify="right")
    for name, count in counts.most_common(16):
        made.add_row(name, f"{count:,}")
    return made
