"""What a run looks like on paper: a timeline, a table of faults, and the verdict."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from tests.faults.chaos.checker import Violation
from tests.faults.chaos.record import Fault, Record

KEPT: Final = "every promise was kept"
_SHOWN: Final = 5
_LENGTH: Final = 400


def timeline(faults: Sequence[Fault]) -> Iterator[str]:
    """A line a fault."""
    for fault in sorted(faults, key=lambda f: f.at):
        yield f"{fault.at:8.2f} s  {fault.name:<36}{fault.detail}"


def table(record: Record) -> Iterator[str]:
    """How often each kind of fault was done."""
    for name, times in sorted(Counter(fault.name for fault in record.faults).items()):
        yield f"{times:6}  {name}"


def verdict(violations: Sequence[Violation]) -> Iterator[str]:
    """All promises kept, or which were not, with some examples of each."""
    if not violations:
        yield KEPT
        return
    ordered = sorted(violations, key=lambda v: v.rule)
    for rule, group in groupby(ordered, key=lambda v: v.rule):
        found = list(group)
        yield f"VIOLATED  {rule}, {len(found)} times"
        for violation in found[:_SHOWN]:
            yield f"    {violation.subject}: {violation.detail[:_LENGTH]}"
