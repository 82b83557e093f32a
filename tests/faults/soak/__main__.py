"""Run a worker at half its maximum rate for a long time: ``python -m tests.faults.soak``.

Its memory, open files and connections must not grow, the queues must not fill up, and every command
must have its reply.
"""

import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Final

import aio_pika
import typer
import uvloop
from aio_pika.abc import AbstractChannel
from rich.console import Console
from rich.table import Table
from yarl import URL

from outplan.contract.topology import build_topology
from outplan.testing import Deployment
from outplan.testing.servers import Servers, start_servers
from tests.faults.soak.load import Load, open_load
from tests.faults.soak.plot import plot
from tests.faults.soak.samples import MIB, Measure, Sample, SampleFile, compare
from tests.support.observer_queues import ObserverQueues
from tests.support.process_state import count_connections, find_listener, open_files, resident_bytes

_MAXIMUM_SECONDS: Final = 20.0
_TIMEOUT_SECONDS: Final = 60.0


class SoakWorker:
    """A worker process. It keeps only the last log lines above level info."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.ready = asyncio.Event()
        self.complaints: deque[str] = deque(maxlen=20)
        assert process.stdout is not None
        self._reading = asyncio.create_task(self._read(process.stdout))

    async def _read(self, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            if b'"ready"' in line:
                self.ready.set()
            elif b'"level":"info"' not in line.replace(b" ", b""):
                self.complaints.append(line.decode(errors="replace").strip())
        self.ready.set()

    async def stop(self) -> int:
        """Stop the worker gracefully and return its exit code."""
        if self.process.returncode is None:
            self.process.terminate()
        await self._reading
        return await self.process.wait()


@asynccontextmanager
async def _start_worker(deployment: Deployment) -> AsyncIterator[SoakWorker]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "outplan", "run", env=deployment.environment(), stdout=PIPE,
        limit=1 << 20,
    )  # fmt: skip
    worker = SoakWorker(process)
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await worker.ready.wait()
        yield worker
    finally:
        await worker.stop()


@dataclass(frozen=True, slots=True)
class ProcessIds:
    """The processes to sample; None for a server that this machine does not show."""

    worker: int
    broker: int | None
    store: int | None
    amqp_port: int


def _find_processes(deployment: Deployment, worker: int) -> ProcessIds:
    amqp = URL(deployment.amqp_url).port or 5672
    mongo = URL(deployment.mongo_url).port or 27017
    return ProcessIds(worker, find_listener("beam.smp", amqp), find_listener("mongod", mongo), amqp)


class Sampler:
    """Take a sample every second."""

    def __init__(
        self,
        load: Load,
        prefix: str,
        processes: ProcessIds,
        channel: AbstractChannel,
        file: SampleFile,
    ) -> None:
        self._load = load
        self._commands = build_topology(prefix).command_queues[0].name
        self._queues = ObserverQueues(prefix)
        self._processes = processes
        self._channel = channel
        self._file = file
        self._since = time.monotonic()

    async def run(self, until: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not until.is_set():
            due += 1
            await asyncio.sleep(due - loop.time())
            self._file.add(await self._sample())

    async def _sample(self) -> Sample:
        load, processes = self._load, self._processes
        latencies, load.latencies = load.latencies, []
        files = open_files(processes.worker)
        return Sample(
            at=round(time.monotonic() - self._since, 2),
            worker_memory=_resident_mib(processes.worker) or 0.0,
            worker_files=len(files),
            worker_connections=count_connections(processes.worker, files, processes.amqp_port),
            broker_memory=_resident_mib(processes.broker),
            store_memory=_resident_mib(processes.store),
            loader_memory=_resident_mib(os.getpid()) or 0.0,
            commands_ready=await self._count_ready(self._commands),
            rejected_ready=await self._count_ready(self._queues.rejected),
            events_ready=await self._count_ready(self._queues.events),
            in_flight=load.in_flight,
            sent=load.sent,
            replied=load.replied,
            p50=_quantile(latencies, 50),
            p99=_quantile(latencies, 99),
        )

    async def _count_ready(self, queue: str) -> int:
        declared = await self._channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


def _resident_mib(pid: int | None) -> float | None:
    return None if pid is None else round(resident_bytes(pid) / MIB, 2)


def _quantile(latencies: list[float], percent: int) -> float | None:
    """Return a percentile in milliseconds; None for fewer than two latencies."""
    if len(latencies) < 2:
        return None
    return round(1e3 * quantiles(latencies, n=100)[percent - 1], 2)


@dataclass(frozen=True, slots=True)
class SoakResult:
    """Measures and failures of a run; ``failures`` must be empty."""

    rate: float
    measures: list[Measure]
    failures: list[str]

    @property
    def has_passed(self) -> bool:
        return not self.failures and all(measure.has_passed for measure in self.measures)


async def _soak(
    servers: Servers, minutes: float, rate: float | None, out: Path, seed: int
) -> SoakResult:
    deployment = Deployment(servers.rabbitmq.url, servers.mongodb.url)
    prefix = deployment.prefix
    file = SampleFile(out.with_suffix(".csv"))
    try:
        async with (
            _start_worker(deployment) as worker,
            open_load(deployment.amqp_url, prefix, seed) as load,
        ):
            if rate is None:
                maximum = await load.measure_maximum(_MAXIMUM_SECONDS)
                await load.wait_for_replies(_TIMEOUT_SECONDS)
                rate = maximum / 2
                print(f"maximum {maximum:.0f} commands a second, soak at {rate:.0f}", flush=True)
            await _sample_under_load(load, deployment, worker, file, rate, minutes * 60)
            is_answered = await load.wait_for_replies(_TIMEOUT_SECONDS)
            await worker.stop()
    finally:
        file.close()
        await deployment.drop(ObserverQueues(prefix).own)
    plot(file.samples, rate, out)
    return SoakResult(rate, compare(file.samples, rate), _find_failures(load, worker, is_answered))


async def _sample_under_load(
    load: Load,
    deployment: Deployment,
    worker: SoakWorker,
    file: SampleFile,
    rate: float,
    seconds: float,
) -> None:
    load.latencies.clear()
    processes, over = _find_processes(deployment, worker.process.pid), asyncio.Event()
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        sampler = Sampler(load, deployment.prefix, processes, await connection.channel(), file)
        async with asyncio.TaskGroup() as group:
            group.create_task(sampler.run(over))
            await load.send_steadily(rate, seconds)
            over.set()


def _find_failures(load: Load, worker: SoakWorker, is_answered: bool) -> list[str]:
    failures = [f"the worker logged {line}" for line in worker.complaints]
    if not is_answered:
        failures.append(f"{load.in_flight} of {load.sent} commands have no reply")
    if load.unexpected_replies:
        failures.append(f"{load.unexpected_replies} replies to no known command")
    if worker.process.returncode:
        failures.append(f"the worker ended with exit code {worker.process.returncode}")
    return failures


def _build_table(result: SoakResult) -> Table:
    table = Table(min_width=100, title=f"{result.rate:.0f} commands a second")
    for heading in ("median", "early", "late", "growth", "limit", ""):
        table.add_column(heading, justify="left" if heading in ("median", "limit") else "right")
    for measure in result.measures:
        state = "" if not measure.limit else ("passed" if measure.has_passed else "FAILED")
        growth = f"{100 * measure.growth:+.1f}%"
        table.add_row(
            measure.name, f"{measure.early:,.1f}", f"{measure.late:,.1f}", growth, measure.limit,
            state,
        )  # fmt: skip
    return table


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="Duration after the warm-up.")] = 30,
    rate: Annotated[
        float | None, typer.Option(help="Commands a second instead of half the maximum.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="File for the plot; the samples go to a CSV file next to it.")
    ] = Path("soak.png"),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 1,
) -> None:
    """Run a worker under load; exit with code 1 if it grows, falls behind or loses a command."""
    with start_servers() as servers:
        result = uvloop.run(_soak(servers, minutes, rate, out, seed))
    Console(width=110).print(_build_table(result))
    for failure in result.failures:
        print(f"FAILURE: {failure}")
    print(f"{'passed' if result.has_passed else 'FAILED'}; see {out} and {out.with_suffix('.csv')}")
    sys.exit(0 if result.has_passed else 1)


if __name__ == "__main__":
    typer.run(main)
