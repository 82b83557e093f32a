"""``python -m tests.faults.soak.__main__``: half of what a worker can do, for a long time.

Its memory, open files and connections must not grow, nothing may pile up, nothing may be lost.
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

from outplan.contract.topology import topology
from outplan.testing import Deployment
from outplan.testing.servers import Servers, start_servers
from tests.faults.soak.load import Load
from tests.faults.soak.plot import plot
from tests.faults.soak.samples import MIB, Row, Sample, Sheet, verdict
from tests.support.process_state import count_connections, find_listener, open_files, resident_bytes

_MEASURED_SECONDS: Final = 20.0
_SETTLE_SECONDS: Final = 60.0


class Worker:
    """A worker process; of its log only what is no mere information is kept, and little of that."""

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
        """Its exit code."""
        if self.process.returncode is None:
            self.process.terminate()
        await self._reading
        return await self.process.wait()


@asynccontextmanager
async def _working(place: Deployment) -> AsyncIterator[Worker]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "outplan", "run", env=place.environment(), stdout=PIPE,
        limit=1 << 20,
    )  # fmt: skip
    worker = Worker(process)
    try:
        async with asyncio.timeout(_SETTLE_SECONDS):
            await worker.ready.wait()
        yield worker
    finally:
        await worker.stop()


@dataclass(frozen=True, slots=True)
class Processes:
    """Process ids; None for a server that is not to be seen from here."""

    worker: int
    broker: int | None
    store: int | None
    amqp_port: int


def _processes(place: Deployment, worker: int) -> Processes:
    amqp, mongo = URL(place.amqp_url).port or 5672, URL(place.mongo_url).port or 27017
    return Processes(worker, find_listener("beam.smp", amqp), find_listener("mongod", mongo), amqp)


class Sampler:
    """Looks at everything once a second."""

    def __init__(
        self,
        load: Load,
        place: Deployment,
        processes: Processes,
        channel: AbstractChannel,
        sheet: Sheet,
    ) -> None:
        self._load = load
        self._layout = topology(place.prefix)
        self._witness = load.queues[1]
        self._processes = processes
        self._channel = channel
        self._sheet = sheet
        self._since = time.monotonic()

    async def run(self, until: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not until.is_set():
            due += 1
            await asyncio.sleep(due - loop.time())
            self._sheet.add(await self._sample())

    async def _sample(self) -> Sample:
        load, processes = self._load, self._processes
        latencies, load.latencies = load.latencies, []
        files = open_files(processes.worker)
        # One after the other, as each goes over the one channel.
        ready = [
            await self._ready(name)
            for name in (
                self._layout.command_queues[0].name, self._layout.rejected.name, self._witness
            )
        ]  # fmt: skip
        return Sample(
            at=round(time.monotonic() - self._since, 2),
            worker_memory=_mib(processes.worker) or 0.0,
            worker_files=len(files),
            worker_connections=count_connections(processes.worker, files, processes.amqp_port),
            broker_memory=_mib(processes.broker),
            store_memory=_mib(processes.store),
            loader_memory=_mib(os.getpid()) or 0.0,
            commands_ready=ready[0],
            rejected_ready=ready[1],
            events_ready=ready[2],
            in_flight=load.in_flight,
            sent=load.sent,
            replied=load.replied,
            p50=_quantile(latencies, 50),
            p99=_quantile(latencies, 99),
        )

    async def _ready(self, queue: str) -> int:
        declared = await self._channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


def _mib(pid: int | None) -> float | None:
    return None if pid is None else round(resident_bytes(pid) / MIB, 2)


def _quantile(latencies: list[float], percent: int) -> float | None:
    """In milliseconds."""
    if len(latencies) < 2:
        return None
    return round(1e3 * quantiles(latencies, n=100)[percent - 1], 2)


@dataclass(frozen=True, slots=True)
class Soaked:
    """What a run came to. ``faults`` are sentences; there must be none."""

    rate: float
    rows: list[Row]
    faults: list[str]


async def _soak(
    servers: Servers, minutes: float, rate: float | None, out: Path, seed: int
) -> Soaked:
    place = Deployment(servers.rabbitmq.url, servers.mongodb.url)
    load = Load(place.amqp_url, place.prefix, seed)
    sheet = Sheet(out.with_suffix(".csv"))
    try:
        async with _working(place) as worker, load.running():
            if rate is None:
                maximum = await load.maximum(_MEASURED_SECONDS)
                await load.settled(_SETTLE_SECONDS)
                rate = maximum / 2
                print(
                    f"at most {maximum:.0f} commands a second; half of that from here on",
                    flush=True,
                )
            await _sampled(load, place, worker, sheet, rate, minutes * 60)
            settled = await load.settled(_SETTLE_SECONDS)
            await worker.stop()
    finally:
        sheet.close()
        await place.drop(load.queues)
    plot(sheet.samples, rate, out)
    return Soaked(rate, verdict(sheet.samples, rate), _faults(load, worker, settled))


async def _sampled(
    load: Load, place: Deployment, worker: Worker, sheet: Sheet, rate: float, seconds: float
) -> None:
    load.latencies.clear()
    processes, over = _processes(place, worker.process.pid), asyncio.Event()
    async with await aio_pika.connect(place.amqp_url) as connection:
        channel = await connection.channel()
        async with asyncio.TaskGroup() as group:
            group.create_task(Sampler(load, place, processes, channel, sheet).run(over))
            await load.steady(rate, seconds)
            over.set()


def _faults(load: Load, worker: Worker, settled: bool) -> list[str]:
    found = [f"the worker complained: {line}" for line in worker.complaints]
    if not settled:
        found.append(f"{load.in_flight} of {load.sent} commands have no reply")
    if load.unexpected:
        found.append(f"{load.unexpected} replies that nobody waited for")
    if worker.process.returncode:
        found.append(f"the worker ended with {worker.process.returncode}")
    return found


def _table(soaked: Soaked) -> Table:
    table = Table(min_width=100, title=f"{soaked.rate:.0f} commands a second")
    for heading in ("median", "early", "late", "growth", "allowed", ""):
        table.add_column(heading, justify="left" if heading in ("median", "allowed") else "right")
    for row in soaked.rows:
        verdict_ = "" if not row.limit else ("sound" if row.sound else "NOT SOUND")
        growth = f"{100 * row.growth:+.1f}%"
        table.add_row(
            row.name, f"{row.early:,.1f}", f"{row.late:,.1f}", growth, row.limit, verdict_
        )
    return table


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long, after the start.")] = 30,
    rate: Annotated[
        float | None, typer.Option(help="Commands a second, not half the most.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture; the samples stand beside it.")] = Path(
        "soak.png"
    ),
    seed: Annotated[int, typer.Option(help="The same seed makes the same commands.")] = 1,
) -> None:
    """Keep a worker under load; exit 1 where it grows, falls behind or loses anything."""
    with start_servers() as servers:
        soaked = uvloop.run(_soak(servers, minutes, rate, out, seed))
    Console(width=110).print(_table(soaked))
    for fault in soaked.faults:
        print(f"FAULT: {fault}")
    sound = not soaked.faults and all(row.sound for row in soaked.rows)
    print(f"{'sound' if sound else 'NOT SOUND'}; see {out} and {out.with_suffix('.csv')}")
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    typer.run(main)
