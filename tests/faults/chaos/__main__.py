"""Run the service under faults and check its promises, or check a recorded history again.

``python -m tests.faults.chaos run`` or ``python -m tests.faults.chaos replay chaos.jsonl``.
"""

import asyncio
import json
import logging
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from tests.faults.chaos import report
from tests.faults.chaos.checker import check
from tests.faults.chaos.cluster_testbed import ClusterTestbed
from tests.faults.chaos.history import read, write
from tests.faults.chaos.plants import PLANTS
from tests.faults.chaos.run import Plan, Result, Testbed
from tests.faults.chaos.run import run as run_plan
from tests.faults.chaos.single_testbed import SingleTestbed
from tests.faults.clusters.cluster import start_cluster
from tests.support.brokers import Broker, start_broker

TopologyName = Literal["single", "cluster"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    *,
    seconds: Annotated[float, typer.Option(help="Duration of load and faults.")] = 90,
    seed: Annotated[int, typer.Option(help="Random seed; 0 draws one.")] = 0,
    topology: Annotated[
        TopologyName, typer.Option(help="One server of each kind, or clusters of three.")
    ] = "single",
    broker: Annotated[Broker, typer.Option(help="RabbitMQ; 4.0 and 4.3 need Docker.")] = "3.10",
    pace: Annotated[float, typer.Option(help="Commands a second.")] = 1_500,
    pause: Annotated[float, typer.Option(help="Mean seconds between faults.")] = 1.0,
    partitions: Annotated[int, typer.Option(help="Number of partitions at the start.")] = 1,
    changes: Annotated[
        float, typer.Option(help="Mean seconds between changes of that number; 0 for none.")
    ] = 0,
    planted: Annotated[
        str, typer.Option(help=f"Fault to plant in the worker: {', '.join(PLANTS)}.")
    ] = "",
    out: Annotated[Path, typer.Option(help="File for the history.")] = Path("chaos.jsonl"),
) -> None:
    """Run the service under faults; exit with code 1 if it breaks a promise."""
    plan = Plan(
        seed or random.SystemRandom().randrange(1, 2**31), seconds, pace, pause,
        planted=planted, partitions=partitions, changes=changes,
    )  # fmt: skip
    print(
        f"seed {plan.seed}, {topology}, RabbitMQ {broker}, partitions: {partitions}, "
        f"changes: {changes:g}",
        flush=True,
    )
    # aiormq logs each of the many lost connections.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    with _open_testbed(topology, broker, random.Random(plan.seed)) as testbed:
        result = asyncio.run(run_plan(plan, testbed))
    write(result.history, out)
    log = out.with_suffix(".log")
    log.write_text("".join(f"{json.dumps(line)}\n" for line in result.logs))
    _print_result(result, out)
    if result.violations:
        raise typer.Exit(1)


@app.command()
def replay(history: Annotated[Path, typer.Argument(help="A file that `run` wrote.")]) -> None:
    """Check a recorded history again; exit with code 1 if it has a violation."""
    with history.open() as file:
        violations = check(read(file))
    print("\n".join(report.render_violations(violations)))
    if violations:
        raise typer.Exit(1)


def _print_result(result: Result, out: Path) -> None:
    print("\n".join(report.render_timeline(result.history.faults)))
    print("\n".join(["", *report.render_fault_counts(result.history), ""]))
    for name, count in result.summary().items():
        print(f"{count:10,}  {name}")
    log = out.with_suffix(".log")
    print(f"{result.seconds:10.0f}  seconds; the history is in {out}, the workers' log in {log}\n")
    print("\n".join(report.render_violations(result.violations)))


@contextmanager
def _open_testbed(topology: TopologyName, broker: Broker, rng: random.Random) -> Iterator[Testbed]:
    if topology == "cluster":
        with start_cluster(broker) as servers:
            yield ClusterTestbed(servers, rng)
        return
    with start_broker(broker) as single:
        yield SingleTestbed(single, rng)


if __name__ == "__main__":
    sys.exit(app())
