"""Run ``python -m tests.bench.layout_change``: measure how long commands wait during a change.

A client publishes creates at a steady rate. Meanwhile ``outplan partitions`` changes the number of
partitions. A command's wait is the time from its confirm to its event. Old queues are deleted at
once, since no command waits for that.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Annotated, Final
from uuid import uuid4

import aio_pika
import typer
from aio_pika.abc import AbstractIncomingMessage
from rich.console import Console
from rich.table import Table

from outplan.client import OutplanClient, Request
from outplan.contract.topology import build_topology
from outplan.testing import Deployment
from outplan.testing.deployment import open_deployment
from outplan.testing.servers import Servers, start_servers
from tests.support.worker_process import run_worker

# Each change of ADR 0014: to more, from and to one, to fewer.
PATH: Final = (1, 4, 16, 4, 1)

_TICK: Final = 0.02
_QUIET_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 60
_ADDRESS: Final = {"type": "tel", "target": "+821021656521"}

Change = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Result:
    """One change: how long it took, and the longest waits in seconds."""

    change: Change
    seconds: float
    longest: float
    longest_before: float
    longest_confirm: float
    commands: int


@dataclass(slots=True)
class Load:
    """Creates published at a rate, with the times of publish, confirm and event."""

    client: OutplanClient
    published: dict[str, float] = field(default_factory=dict)
    confirmed: dict[str, float] = field(default_factory=dict)
    received: dict[str, float] = field(default_factory=dict)

    async def publish(self, rate: float, stop: asyncio.Event) -> None:
        """Publish at this rate until told to stop; wait for the confirms."""
        due = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while not stop.is_set():
                count = int((time.monotonic() - due) * rate)
                due += count / rate
                for _ in range(count):
                    tasks.create_task(self._send())
                await asyncio.sleep(_TICK)

    async def note_event(self, message: AbstractIncomingMessage) -> None:
        """Note the time of an event."""
        self.received[str(message.message_id)] = time.monotonic()

    async def wait_for_events(self) -> None:
        """Return once every confirmed command has its event."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while self.confirmed.keys() - self.received.keys():
                await asyncio.sleep(_TICK)

    def find_longest_wait(self, since: float, until: float) -> float:
        """Return the longest wait of the commands confirmed in this time."""
        chosen = (id_ for id_, at in self.confirmed.items() if since <= at < until)
        return max(self.received[id_] - self.confirmed[id_] for id_ in chosen)

    def find_longest_confirm(self, since: float, until: float) -> float:
        """Return the longest time from publish to confirm in this time."""
        chosen = (id_ for id_, at in self.published.items() if since <= at < until)
        return max(self.confirmed[id_] - self.published[id_] for id_ in chosen)

    async def _send(self) -> None:
        request = Request.create(
            message_id=str(uuid4()),
            id=str(uuid4()),
            customer_id="5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11",
            name="layout change",
            source=_ADDRESS,
        )
        self.published[request.message_id] = time.monotonic()
        await self.client.send(request)
        self.confirmed[request.message_id] = time.monotonic()


async def measure_change(deployment: Deployment, change: Change, rate: float) -> Result:
    """Change the number while a client publishes; return the waits."""
    async with _open_load(deployment) as load:
        stop = asyncio.Event()
        publishing = asyncio.create_task(load.publish(rate, stop))
        start = time.monotonic()
        await asyncio.sleep(_QUIET_SECONDS)
        begin = time.monotonic()
        await run_partitions(deployment, change[1])
        end = time.monotonic()
        await asyncio.sleep(_QUIET_SECONDS)
        stop.set()
        await publishing
        await load.wait_for_events()
        until = end + _QUIET_SECONDS
        return Result(
            change,
            end - begin,
            load.find_longest_wait(begin, until),
            load.find_longest_wait(start + 1, begin),
            load.find_longest_confirm(begin, end),
            len(load.confirmed),
        )


@asynccontextmanager
async def _open_load(deployment: Deployment) -> AsyncIterator[Load]:
    async with (
        await aio_pika.connect(deployment.amqp_url) as connection,
        OutplanClient(
            deployment.amqp_url, prefix=deployment.prefix, timeout=_PATIENCE_SECONDS, validate=False
        ) as client,
    ):
        load, channel = Load(client), await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(build_topology(deployment.prefix).events.name, "#")
        await queue.consume(load.note_event, no_ack=True)
        yield load


async def run_partitions(deployment: Deployment, number: int) -> None:
    """Run ``outplan partitions`` as an operator does. Raises RuntimeError if it fails."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "outplan", "partitions", str(number), "--retire", "0",
        env=deployment.environment(), stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"outplan partitions {number}: {output.decode(errors='replace')}")


async def _measure(deployment: Deployment, rounds: int, workers: int, rate: float) -> list[Result]:
    results = []
    async with AsyncExitStack() as stack:
        for _ in range(workers):
            await stack.enter_async_context(run_worker(deployment))
        for number in range(1, rounds + 1):
            for change in pairwise(PATH):
                results.append(await measure_change(deployment, change, rate))
                print(f"round {number}: {_describe_one(results[-1])}", flush=True)
    return results


def _describe_one(r: Result) -> str:
    return (
        f"{r.change[0]} to {r.change[1]} in {r.seconds:.1f} s, longest wait {r.longest:.1f} s "
        f"({r.longest_before:.2f} s before), longest confirm {r.longest_confirm:.2f} s, "
        f"{r.commands} commands, load average {os.getloadavg()[0]:.0f}"
    )


def build_table(results: Sequence[Result]) -> Table:
    """Build a table with one row for each change, in seconds."""
    table = Table(caption="seconds: median (lowest to highest)")
    for title in ("change", "duration", "longest wait", "before", "longest confirm"):
        table.add_column(title, justify="right")
    for change in pairwise(PATH):
        some = [result for result in results if result.change == change]
        table.add_row(
            f"{change[0]} to {change[1]}",
            _describe([r.seconds for r in some]),
            _describe([r.longest for r in some]),
            _describe([r.longest_before for r in some]),
            _describe([r.longest_confirm for r in some]),
        )
    return table


def _describe(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


async def _run(servers: Servers, rounds: int, workers: int, rate: float) -> Table:
    async with open_deployment(servers) as deployment:
        return build_table(await _measure(deployment, rounds, workers, rate))


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often to make each change.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Number of workers.")] = 2,
    rate: Annotated[float, typer.Option(min=1, help="Commands a second.")] = 500,
) -> None:
    """Measure how long commands wait while the number of partitions changes."""
    with start_servers() as servers:
        table = asyncio.run(_run(servers, rounds, workers, rate))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
