"""Report the measurements of all rounds as a table and one line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from tests.bench.round import HANDLER, SERVICE, Result


@dataclass(frozen=True, slots=True)
class Summary:
    """Hold both median rates in events a second, and the median of the rounds' ratios."""

    service: float
    handler: float
    pairwise: float

    @classmethod
    def from_results(cls, results: Sequence[Result]) -> "Summary":
        service, handler = (
            _select_rates(results, SERVICE.name),
            _select_rates(results, HANDLER.name),
        )
        ratios = [a / b for a, b in zip(service, handler, strict=True)]
        return cls(median(service), median(handler), median(ratios))

    @property
    def ratio(self) -> float:
        return self.service / self.handler

    def format(self, minimum: float) -> str:
        return (
            f"service {self.service:.0f}/s, handler {self.handler:.0f}/s, "
            f"ratio {self.ratio:.1f} (minimum {minimum:g})"
        )


def build_table(results: Sequence[Result], summary: Summary) -> Table:
    """Build a table of each side's medians over all rounds."""
    table = Table(
        title="Commands to events, from each side's first event to its last",
        caption=f"median of the pairwise ratios: {summary.pairwise:.1f}",
    )
    table.add_column("median (lowest to highest)")
    for side in (SERVICE, HANDLER):
        table.add_column(side.name, justify="right")
    for label, cell in _ROWS.items():
        sides = ([r for r in results if r.side == s.name] for s in (SERVICE, HANDLER))
        table.add_row(label, *(cell(side) for side in sides))
    return table


def _select_rates(results: Sequence[Result], side: str) -> list[float]:
    return [result.rate for result in results if result.side == side]


def _format_spread(values: Sequence[float | None], scale: float = 1) -> str:
    known = [value * scale for value in values if value is not None]
    if not known:
        return "unknown"
    return f"{median(known):.0f} ({min(known):.0f} to {max(known):.0f})"


_ROWS: dict[str, Callable[[Sequence[Result]], str]] = {
    "events a second": lambda side: _format_spread([r.rate for r in side]),
    "worker CPU, µs an event": lambda side: _format_spread([r.usage.worker for r in side], 1e6),
    "RabbitMQ CPU, µs an event": lambda side: _format_spread([r.usage.broker for r in side], 1e6),
    "MongoDB CPU, µs an event": lambda side: _format_spread([r.usage.store for r in side], 1e6),
    "event size, bytes": lambda side: _format_spread([r.event_bytes for r in side]),
}
