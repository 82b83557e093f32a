"""``python -m tests.bench``: the service against a handler per message, in one run.

Both work off the same commands on the same servers, in turn, so that whatever else the machine
does falls on both; what is judged is the ratio of their rates.
"""

import asyncio
import sys
from typing import Annotated, Final

import typer
from rich.console import Console

from outplan.testing.servers import start_servers
from tests.bench.report import Verdict, table
from tests.bench.round import HANDLER, SERVICE, Bench, Result

WANTED: Final = 4


async def _measure(bench: Bench, rounds: int, commands: int) -> list[Result]:
    results = []
    for number in range(1, rounds + 1):
        for side in (SERVICE, HANDLER):
            result = await bench.measure(side, commands)
            print(f"round {number}: {side.name} {result.rate:.0f}/s", flush=True)
            results.append(result)
    return results


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How many turns each side has.")] = 3,
    commands: Annotated[int, typer.Option(min=1_000, help="How many in each turn.")] = 10_000,
) -> None:
    """Compare the service's rate with that of a FastStream handler of the same durability."""
    with start_servers() as servers:
        bench = Bench(servers.rabbitmq.url, servers.mongodb.url)
        results = asyncio.run(_measure(bench, rounds, commands))
    verdict = Verdict.of(results)
    Console().print(table(results, verdict))
    print(verdict.line(WANTED))
    sys.exit(0 if verdict.ratio >= WANTED else 1)


if __name__ == "__main__":
    typer.run(main)
