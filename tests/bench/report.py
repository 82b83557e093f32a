"""What the turns came to: a table, and one line to judge by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from tests.bench.round import HANDLER, SERVICE, Result


@dataclass(frozen=True, slots=True)
class Verdict:
    """Median rates, their ratio, and the median of the ratios turn by turn."""

    service: float
    handler: float
    pairwise: float

    @classmethod
    def of(cls, results: Sequence[Result]) -> "Verdict":
        service, handler = _rates(results, SERVICE.name), _rates(results, HANDLER.name)
        ratios = [a / b for a, b in zip(service, handler, strict=True)]
        return cls(median(service), median(handler), median(ratios))

    @property
    def ratio(self) -> float:
        return self.service / self.handler

    def line(self, wanted: float) -> str:
        return (
            f"service {self.service:.0f}/s, handler {self.handler:.0f}/s, "
            f"ratio {self.ratio:.1f} (at least {wanted:g} wanted)"
        )


def table(results: Sequence[Result], verdict: Verdict) -> Table:
    """Medians of all turns, side by side."""
    made = Table(
        title="Commands to events, from a side's first event to its last",
        caption=f"median of the pairwise ratios: {verdict.pairwise:.1f}",
    )
    made.add_column("median (lowest to highest)")
    for side in (SERVICE, HANDLER):
        made.add_column(side.name, justify="right")
    for label, cell in _ROWS.items():
        sides = ([r for r in results if r.side == s.name] for s in (SERVICE, HANDLER))
        made.add_row(label, *(cell(side) for side in sides))
    return made


def _rates(results: Sequence[Result], side: str) -> list[float]:
    return [result.rate for result in results if result.side == side]


def _spread(values: Sequence[float | None], scale: float = 1) -> str:
    known = [value * scale for value in values if value is not None]
    if not known:
        return "out of reach"
    return f"{median(known):.0f} ({min(known):.0f} to {max(known):.0f})"


_ROWS: dict[str, Callable[[Sequence[Result]], str]] = {
    "events a second": lambda side: _spread([r.rate for r in side]),
    "worker's CPU, µs each": lambda side: _spread([r.usage.worker for r in side], 1e6),
    "RabbitMQ's CPU, µs each": lambda side: _spread([r.usage.broker for r in side], 1e6),
    "MongoDB's CPU, µs each": lambda side: _spread([r.usage.store for r in side], 1e6),
    "an event's bytes": lambda side: _spread([r.event_bytes for r in side]),
}
