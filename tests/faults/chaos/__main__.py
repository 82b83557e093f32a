"""``python -m tests.faults``: a run with faults, or a kept record checked again."""

import asyncio
import logging
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from outplan.testing.servers import Mode, start_servers
from tests.faults.chaos import report
from tests.faults.chaos.checker import check
from tests.faults.chaos.clustered import Clustered
from tests.faults.chaos.plants import PLANTS
from tests.faults.chaos.record import read, write
from tests.faults.chaos.run import Grounds, Plan, Result, run
from tests.faults.chaos.single import Single
from tests.faults.clusters.cluster import cluster
from tests.support.brokers import Broker

Topology = Literal["single", "cluster"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def chaos(
    *,
    seconds: Annotated[float, typer.Option(help="How long commands and faults come.")] = 90,
    seed: Annotated[int, typer.Option(help="0 draws one.")] = 0,
    topology: Annotated[Topology, typer.Option()] = "single",
    broker: Annotated[Broker, typer.Option(help="RabbitMQ; 4 comes by Docker.")] = "3.10",
    pace: Annotated[float, typer.Option(help="Commands a second.")] = 1_500,
    pause: Annotated[float, typer.Option(help="Seconds between faults, on average.")] = 1.0,
    partitions: Annotated[int, typer.Option(help="Queues that outplans are spread over.")] = 1,
    planted: Annotated[str, typer.Option(help=f"A fault in the code: {', '.join(PLANTS)}")] = "",
    out: Annotated[Path, typer.Option(help="Where the record is kept.")] = Path("chaos.jsonl"),
) -> None:
    """Torture the service, and say whether it kept its promises: exit code 1 where not."""
    plan = Plan(
        seed or random.SystemRandom().randrange(1, 2**31), seconds, pace, pause,
        planted=planted, partitions=partitions,
    )  # fmt: skip
    print(f"seed {plan.seed}, {topology}, RabbitMQ {broker}, partitions: {partitions}", flush=True)
    # Connections are lost all the time here.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    with _grounds(topology, broker, random.Random(plan.seed)) as grounds:
        result = asyncio.run(run(plan, grounds))
    write(result.record, out)
    print("\n".join(report.timeline(result.record.faults)))
    print("\n".join(["", *report.table(result.record), ""]))
    _tell(result, out)
    if result.violations:
        raise typer.Exit(1)


@app.command()
def replay(record: Path) -> None:
    """Check a kept record again."""
    with record.open() as file:
        violations = check(read(file))
    print("\n".join(report.verdict(violations)))
    if violations:
        raise typer.Exit(1)


def _tell(result: Result, out: Path) -> None:
    for name, count in result.summary().items():
        print(f"{count:10,}  {name}")
    print(f"{result.seconds:10.0f}  seconds in all; the record is in {out}\n")
    print("\n".join(report.verdict(result.violations)))


@contextmanager
def _grounds(topology: Topology, broker: Broker, luck: random.Random) -> Iterator[Grounds]:
    if topology == "cluster":
        with cluster(broker) as servers:
            yield Clustered(servers, luck)
        return
    mode: Mode = "docker" if broker == "4" else "processes"
    with start_servers(mode) as single:
        yield Single(single, luck)


if __name__ == "__main__":
    sys.exit(app())
