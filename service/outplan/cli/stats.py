"""Count the outcomes of an import."""

import time
from collections import Counter
from typing import Any, Final

from rich.table import Table

from outplan.cli.errors import ExitCode
from outplan.cli.lines import Line
from outplan.cli.output import make_table
from outplan.client import CommandResult, Result

# In the order of the summary, with a remark.
_OUTCOMES: Final = {
    "valid": "",
    "accepted": "",
    "unchanged": "",
    "duplicates": "took effect before",
    "skipped": "deleted outplans",
    "rejected": "",
    "unknown": "no reply",
}


class ImportStats:
    """Count lines by outcome, except blank ones.

    ``last_done`` is the last line up to which every line has its outcome.
    """

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.last_done = Line(0, b"", 0, 0)
        self._started = time.monotonic()

    def count(self, result: CommandResult[Result]) -> None:
        duplicate = result.result is not None and result.result.duplicate
        self.counts["duplicates" if duplicate else result.status] += 1

    @property
    def lines(self) -> int:
        return self.counts.total()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Return the lines per second."""
        return self.lines / max(self.seconds, 1e-6)

    @property
    def exit_code(self) -> ExitCode:
        if self.counts["unknown"]:
            return ExitCode.UNKNOWN
        return ExitCode.REJECTED if self.counts["rejected"] else ExitCode.DONE

    def to_json(self) -> dict[str, Any]:
        """Return every count, those that are 0 included."""
        return {
            "lines": self.lines,
            **{outcome: self.counts[outcome] for outcome in _OUTCOMES},
            "seconds": round(self.seconds, 3),
            "lines_per_second": round(self.rate, 1),
        }

    def headline(self) -> str:
        """Return how many lines took how long."""
        lines = "1 line" if self.lines == 1 else f"{self.lines:,} lines"
        return f"{lines} in {self.seconds:,.1f} s, {self.rate:,.0f} a second"

    def table(self) -> Table:
        """Return the counts, those that are 0 left out."""
        table = make_table(indent=True)
        table.add_column(min_width=10)
        table.add_column(justify="right")
        for outcome, remark in _OUTCOMES.items():
            if count := self.counts[outcome]:
                table.add_row(outcome, f"{count:,}", remark)
        return table
