"""Run ``python -m tests.bench.partitions``: measure the CPU per command by number of partitions.

One worker serves all of them. Each round measures every number in turn, so that other load on the
machine slows all of them; the ratios are those within a round.
"""

import asyncio
from collections.abc import Callable, Sequence
from statistics import median
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from outplan.testing.servers import start_servers
from tests.bench.round import SERVICE, Bench, Result

NUMBERS: Final = (1, 4, 16)

Round = dict[int, Result]


async def _measure(bench: Bench, rounds: int, commands: int) -> list[Round]:
    found: list[Round] = []
    for number in range(1, rounds + 1):
        # Each round starts with another number: the one after a pause finds warmer servers.
        first = number % len(NUMBERS)
        order = (*NUMBERS[first:], *NUMBERS[:first])
        found.append({n: await bench.measure(SERVICE, commands, n) for n in order})
        rates = ", ".join(f"{n}: {found[-1][n].rate:.0f}/s" for n in NUMBERS)
        print(f"round {number}: {rates}", flush=True)
    return found


def build_table(rounds: Sequence[Round]) -> Table:
    """Build a table of medians, and of the medians of the ratios to one partition."""
    table = Table(title="One worker, commands to events", caption="median (lowest to highest)")
    table.add_column("")
    for number in NUMBERS:
        table.add_column(f"{number} partitions" if number > 1 else "1 partition", justify="right")
    for label, read in _ROWS.items():
        table.add_row(label, *(_describe([read(r[n]) for r in rounds]) for n in NUMBERS))
        ratios = ([read(r[n]) / read(r[1]) for r in rounds] for n in NUMBERS)
        table.add_row("  to 1 partition", *(_describe(some, ".2f") for some in ratios))
    return table


def _describe(values: Sequence[float], shape: str = ".0f") -> str:
    return f"{median(values):{shape}} ({min(values):{shape}} to {max(values):{shape}})"


def _microseconds(seconds: float | None) -> float:
    return float("nan") if seconds is None else seconds * 1e6


_ROWS: dict[str, Callable[[Result], float]] = {
    "events a second": lambda r: r.rate,
    "worker CPU, µs a command": lambda r: _microseconds(r.usage.worker),
    "RabbitMQ CPU, µs a command": lambda r: _microseconds(r.usage.broker),
    "MongoDB CPU, µs a command": lambda r: _microseconds(r.usage.store),
}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds for each number.")] = 5,
    commands: Annotated[
        int, typer.Option(min=1_000, help="Number of commands in each round.")
    ] = 10_000,
) -> None:
    """Measure the CPU that a command costs with 1, 4 and 16 partitions and one worker."""
    with start_servers() as servers:
        bench = Bench(servers.rabbitmq.url, servers.mongodb.url)
        found = asyncio.run(_measure(bench, rounds, commands))
    Console(width=120).print(build_table(found))
    sizes = {result.event_bytes for round_ in found for result in round_.values()}
    print(f"event size in bytes: {min(sizes)} to {max(sizes)}")


if __name__ == "__main__":
    typer.run(main)
