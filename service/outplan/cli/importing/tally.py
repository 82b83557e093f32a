"""How far an import has come, and how it ended."""

import time
from collections import Counter
from typing import Any, Final

from outplan.cli.importing.lines import Line
from outplan.cli.outcome import Exit
from outplan.client import CommandResult, Result

# In the order in which they are told; some are told only where there are any.
_COUNTED: Final = {
    "valid": "",
    "accepted": "",
    "unchanged": "",
    "duplicates": "had taken effect before",
    "skipped": "outplans that are deleted",
    "rejected": "",
    "unknown": "without a verdict",
}


class Tally:
    """What became of the lines so far; blank ones are not counted.

    ``reached`` is the last line of those that have all been judged.
    """

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.reached = Line(0, b"", 0, 0)
        self._began = time.monotonic()

    def count(self, verdict: CommandResult[Result]) -> None:
        duplicate = verdict.result is not None and verdict.result.duplicate
        self.counts["duplicates" if duplicate else verdict.status] += 1

    @property
    def lines(self) -> int:
        return self.counts.total()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Lines a second."""
        return self.lines / max(self.seconds, 1e-6)

    @property
    def code(self) -> Exit:
        if self.counts["unknown"]:
            return Exit.UNKNOWN
        return Exit.REJECTED if self.counts["rejected"] else Exit.DONE

    def object(self) -> dict[str, Any]:
        """For machines: every count, also those that are 0."""
        return {
            "lines": self.lines,
            **{name: self.counts[name] for name in _COUNTED},
            "seconds": round(self.seconds, 3),
            "lines_per_second": round(self.rate, 1),
        }

    def text(self) -> list[str]:
        """For people: a line for what there is."""
        told = [(name, self.counts[name]) for name in _COUNTED if self.counts[name]]
        width = max((len(f"{count:,}") for _, count in told), default=0)
        lines = "1 line" if self.lines == 1 else f"{self.lines:,} lines"
        return [
            f"{lines} in {self.seconds:,.1f} s, {self.rate:,.0f} a second",
            *(f"  {name:<10}  {n:>{width},}  {_COUNTED[name]}".rstrip() for name, n in told),
        ]
