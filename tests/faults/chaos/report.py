"""Render a run as text: timeline, number of faults of each kind, violations."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from tests.faults.chaos.checker import Violation
from tests.faults.chaos.history import History, InjectedFault

NO_VIOLATION: Final = "no violation"
_EXAMPLES: Final = 5
_DETAIL_LENGTH: Final = 400


def render_timeline(faults: Sequence[InjectedFault]) -> Iterator[str]:
    """Yield a line for each fault, in order of time."""
    for fault in sorted(faults, key=lambda f: f.at):
        yield f"{fault.at:8.2f} s  {fault.name:<36}{fault.detail}"


def render_fault_counts(history: History) -> Iterator[str]:
    """Yield a line for each kind of fault with its count."""
    for name, times in sorted(Counter(fault.name for fault in history.faults).items()):
        yield f"{times:6}  {name}"


def render_violations(violations: Sequence[Violation]) -> Iterator[str]:
    """Yield each broken rule with a few examples, or `NO_VIOLATION`."""
    if not violations:
        yield NO_VIOLATION
        return
    ordered = sorted(violations, key=lambda v: v.rule)
    for rule, group in groupby(ordered, key=lambda v: v.rule):
        found = list(group)
        yield f"VIOLATION  {rule}, {len(found)} times"
        for violation in found[:_EXAMPLES]:
            yield f"    {violation.subject}: {violation.detail[:_DETAIL_LENGTH]}"
