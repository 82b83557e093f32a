"""Measure one round: fill the queue, start one side, time its first event to its last."""

import asyncio
import os
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Final
from uuid import uuid4

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from yarl import URL

from tests.bench.load import Queues, open_queues, read_cluster_name
from tests.bench.usage import Usage, find_broker, parse_mongod_seconds, read_tree_seconds

Document = dict[str, Any]

_ROOT: Final = Path(__file__).parents[2]
_POLL_SECONDS: Final = 0.05
_STALLED_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Side:
    """Name a module to measure: it reads the service's settings and consumes commands."""

    name: str
    module: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


SERVICE: Final = Side("service", ("outplan", "run"))
# Motor runs each call in a thread; its default of five threads a core would slow the handlers.
HANDLER: Final = Side("handler", ("tests.bench.handler",), {"MOTOR_MAX_WORKERS": "20"})


@dataclass(frozen=True, slots=True)
class Result:
    """Hold one round's measurements: events a second, CPU seconds an event, bytes an event."""

    side: str
    rate: float
    usage: Usage
    event_bytes: int


@dataclass(frozen=True, slots=True)
class Bench:
    """Run rounds on one pair of servers."""

    amqp_url: str
    mongo_url: str

    async def measure(self, side: Side, commands: int, partitions: int = 1) -> Result:
        """Run one process under a new prefix and database, and delete both afterwards.

        Raises RuntimeError if the side ends, stalls or has not stored every command.
        """
        name = f"bench-{uuid4().hex[:8]}"
        async with (
            open_queues(self.amqp_url, name, partitions) as load,
            _open_database(self.mongo_url, name) as database,
        ):
            await load.fill(commands)
            async with _run(side, self._environment(side, name, partitions)) as process:
                port = URL(self.amqp_url).port or 0
                broker = find_broker(await read_cluster_name(self.amqp_url), port)
                meter = _Meter(load, process, database, broker)
                first = await meter.wait_for_events(1)
                last = await meter.wait_for_events(commands)
            await _check_stored(database, commands)
            return _build_result(side, first, last, await load.measure_event())

    def _environment(self, side: Side, name: str, partitions: int) -> dict[str, str]:
        return {
            **os.environ,
            "OUTPLAN_AMQP_URL": self.amqp_url,
            "OUTPLAN_MONGO_URL": self.mongo_url,
            "OUTPLAN_MONGO_DATABASE": name,
            "OUTPLAN_PREFIX": name,
            "OUTPLAN_PARTITIONS": str(partitions),
            "OUTPLAN_HTTP_PORT": "0",
            **side.environment,
        }


@dataclass(frozen=True, slots=True)
class _Sample:
    time: float
    events: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class _Meter:
    load: Queues
    process: Process
    database: AsyncDatabase[Document]
    broker: int | None

    async def wait_for_events(self, events: int) -> _Sample:
        """Poll until this many events are published; return time, count and CPU used."""
        seen, since = -1, time.monotonic()
        while (now := await self.load.count_events()) < events:
            if now > seen:
                seen, since = now, time.monotonic()
            self._raise_if_stalled(now, since)
            await asyncio.sleep(_POLL_SECONDS)
        return _Sample(time.monotonic(), now, await self._read_usage())

    def _raise_if_stalled(self, events: int, since: float) -> None:
        if self.process.returncode is not None:
            raise RuntimeError(f"the measured process ended after {events} events")
        if time.monotonic() - since > _STALLED_SECONDS:
            raise RuntimeError(f"no event for {_STALLED_SECONDS:.0f} s after {events} events")

    async def _read_usage(self) -> Usage:
        status = await self.database.client.admin.command("serverStatus")
        return Usage(
            read_tree_seconds(self.process.pid),
            read_tree_seconds(self.broker),
            parse_mongod_seconds(status),
        )


def _build_result(side: Side, first: _Sample, last: _Sample, event_bytes: int) -> Result:
    # Events that the first poll found were published before the clock started.
    events = last.events - first.events
    usage = last.usage.subtract(first.usage).divide(events)
    return Result(side.name, events / (last.time - first.time), usage, event_bytes)


async def _check_stored(database: AsyncDatabase[Document], commands: int) -> None:
    for name in ("outplans", "outplan_events"):
        stored = await database[name].count_documents({})
        if stored != commands:
            raise RuntimeError(f"{stored} documents in {name} after {commands} commands")


@asynccontextmanager
async def _open_database(url: str, name: str) -> AsyncIterator[AsyncDatabase[Document]]:
    client: AsyncMongoClient[Document]
    async with AsyncMongoClient(url) as client:
        try:
            yield client[name]
        finally:
            await client.drop_database(name)


@asynccontextmanager
async def _run(side: Side, environment: dict[str, str]) -> AsyncIterator[Process]:
    """Run the side's process for the block; add its output to an error from the block."""
    with TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *side.module,
            cwd=_ROOT, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            yield process
        except BaseException as error:
            error.add_note(f"output of {side.name}:\n{_read_tail(output)}")
            raise
        finally:
            await _stop(process)


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _read_tail(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode(errors="replace")[-4_000:]
