"""Run ``python -m tests.bench``: compare the service with a handler that takes one message a time.

Both process the same commands on the same servers, in turn, so that other load on the machine slows
both. The result is the ratio of their rates.
"""

import asyncio
import sys
from typing import Annotated, Final

import typer
from rich.console import Console

from outplan.testing.servers import start_servers
from tests.bench.report import Summary, build_table
from tests.bench.round import HANDLER, SERVICE, Bench, Result

MINIMUM_RATIO: Final = 4


async def _measure(bench: Bench, rounds: int, commands: int) -> list[Result]:
    results = []
    for number in range(1, rounds + 1):
        for side in (SERVICE, HANDLER):
            result = await bench.measure(side, commands)
            print(f"round {number}: {side.name} {result.rate:.0f}/s", flush=True)
            results.append(result)
    return results


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds for each side.")] = 3,
    commands: Annotated[
        int, typer.Option(min=1_000, help="Number of commands in each round.")
    ] = 10_000,
) -> None:
    """Compare the service's rate with that of a FastStream handler of the same durability."""
    with start_servers() as servers:
        bench = Bench(servers.rabbitmq.url, servers.mongodb.url)
        results = asyncio.run(_measure(bench, rounds, commands))
    summary = Summary.from_results(results)
    Console().print(build_table(results, summary))
    print(summary.format(MINIMUM_RATIO))
    sys.exit(0 if summary.ratio >= MINIMUM_RATIO else 1)


if __name__ == "__main__":
    typer.run(main)
