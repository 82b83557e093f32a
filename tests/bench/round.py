"""One side's turn: a full queue, a fresh process, and the clock from first event to last."""

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

from tests.bench.load import Queues, cluster_name, queues
from tests.bench.usage import Usage, find_broker, mongod_seconds, tree_seconds

Document = dict[str, Any]

_ROOT: Final = Path(__file__).parents[2]
_POLL_SECONDS: Final = 0.05
_STALLED_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Side:
    """What is measured: a Python module that reads the service's settings and consumes."""

    name: str
    module: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


SERVICE: Final = Side("service", ("outplan", "run"))
# Motor runs each call in a thread; its default of five for each core holds the handlers up.
HANDLER: Final = Side("handler", ("tests.bench.handler",), {"MOTOR_MAX_WORKERS": "20"})


@dataclass(frozen=True, slots=True)
class Result:
    """What one turn came to: events a second, CPU seconds for each, and an event's size."""

    side: str
    rate: float
    usage: Usage
    event_bytes: int


@dataclass(frozen=True, slots=True)
class Bench:
    """Rounds on one pair of servers."""

    amqp_url: str
    mongo_url: str

    async def measure(self, side: Side, commands: int) -> Result:
        """One turn, with a prefix and a database of its own, which are deleted afterwards.

        Raises RuntimeError where the side ends, stalls or has not stored every command.
        """
        name = f"bench-{uuid4().hex[:8]}"
        async with queues(self.amqp_url, name) as load, _database(self.mongo_url, name) as database:
            await load.fill(commands)
            async with _running(side, self._environment(side, name)) as process:
                port = URL(self.amqp_url).port or 0
                broker = find_broker(await cluster_name(self.amqp_url), port)
                meter = _Meter(load, process, database, broker)
                first = await meter.until(1)
                last = await meter.until(commands)
            await _prove(database, commands)
            return _result(side, first, last, await load.event_bytes())

    def _environment(self, side: Side, name: str) -> dict[str, str]:
        return {
            **os.environ,
            "OUTPLAN_AMQP_URL": self.amqp_url,
            "OUTPLAN_MONGO_URL": self.mongo_url,
            "OUTPLAN_MONGO_DATABASE": name,
            "OUTPLAN_PREFIX": name,
            "OUTPLAN_HTTP_PORT": "0",
            **side.environment,
        }


@dataclass(frozen=True, slots=True)
class _Reading:
    time: float
    events: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class _Meter:
    load: Queues
    process: Process
    database: AsyncDatabase[Document]
    broker: int | None

    async def until(self, events: int) -> _Reading:
        """Wait for this many events, looking often enough to tell when."""
        seen, since = -1, time.monotonic()
        while (now := await self.load.events()) < events:
            if now > seen:
                seen, since = now, time.monotonic()
            self._alive(now, since)
            await asyncio.sleep(_POLL_SECONDS)
        return _Reading(time.monotonic(), now, await self._usage())

    def _alive(self, events: int, since: float) -> None:
        if self.process.returncode is not None:
            raise RuntimeError(f"it ended after {events} events")
        if time.monotonic() - since > _STALLED_SECONDS:
            raise RuntimeError(f"no event for {_STALLED_SECONDS:.0f} s after {events}")

    async def _usage(self) -> Usage:
        status = await self.database.client.admin.command("serverStatus")
        return Usage(
            tree_seconds(self.process.pid), tree_seconds(self.broker), mongod_seconds(status)
        )


def _result(side: Side, first: _Reading, last: _Reading, event_bytes: int) -> Result:
    # What was there at the first look counts as done before it.
    events = last.events - first.events
    usage = last.usage.since(first.usage).per(events)
    return Result(side.name, events / (last.time - first.time), usage, event_bytes)


async def _prove(database: AsyncDatabase[Document], commands: int) -> None:
    for name in ("outplans", "outplan_events"):
        stored = await database[name].count_documents({})
        if stored != commands:
            raise RuntimeError(f"{stored} documents in {name} after {commands} commands")


@asynccontextmanager
async def _database(url: str, name: str) -> AsyncIterator[AsyncDatabase[Document]]:
    client: AsyncMongoClient[Document]
    async with AsyncMongoClient(url) as client:
        try:
            yield client[name]
        finally:
            await client.drop_database(name)


@asynccontextmanager
async def _running(side: Side, environment: dict[str, str]) -> AsyncIterator[Process]:
    """The side's process; what it said is shown where the block fails."""
    with TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *side.module,
            cwd=_ROOT, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            yield process
        except BaseException as error:
            error.add_note(f"{side.name} said:\n{_tail(output)}")
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


def _tail(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode(errors="replace")[-4_000:]
