"""Publish updates of many outplans on several connections, in order, through every outage."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aio_pika

from outplan.testing import Deployment
from tests.support.partitions import key_of, make_id
from tests.support.scenario import Scenario, SentCommand, assert_events_and_documents
from tests.support.world import World, create_body

CONNECTION_ERRORS: Final = (
    aio_pika.exceptions.AMQPError, ConnectionError, TimeoutError, RuntimeError,
)  # fmt: skip
_PUBLISHERS: Final = 3


class OrderedLoad:
    """Hold what was published: ``scenario`` knows each command and the order of each outplan's.

    Each publisher has outplans of its own. It sends one update of each in a round, and starts the
    next round when the broker has confirmed all of this one.
    """

    def __init__(self, deployment: Deployment, outplans: int, pause: float) -> None:
        self.scenario = Scenario()
        self._deployment = deployment
        slots = [f"{n * 256 // outplans:02x}" for n in range(outplans)]
        self._ids = [make_id(slot) for slot in slots]
        self._pause = pause
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Publish until ``stop``."""
        async with asyncio.TaskGroup() as group:
            for n in range(_PUBLISHERS):
                group.create_task(self._run_publisher(self._ids[n::_PUBLISHERS]))

    def stop(self) -> None:
        """Let each publisher finish its round."""
        self._stopped.set()

    async def publish_rounds(self, rounds: int) -> None:
        """Publish so many rounds and stop, without a pause between them."""
        publisher = _Publisher(self._deployment)
        first = not self.scenario.commands
        for n in range(rounds):
            await publisher.publish(self._build_round(self._ids, is_first=first and n == 0))
        await publisher.close()

    async def _run_publisher(self, ids: list[str]) -> None:
        publisher = _Publisher(self._deployment)
        is_first = not any(self.scenario.intervals[id_] for id_ in ids)
        while not self._stopped.is_set():
            await publisher.publish(self._build_round(ids, is_first=is_first))
            is_first = False
            await asyncio.sleep(self._pause)
        await publisher.close()

    def _build_round(self, ids: list[str], *, is_first: bool) -> list[SentCommand]:
        for id_ in ids:
            intervals = self.scenario.intervals[id_]
            if is_first:
                self.scenario.add("outplan_create", create_body(id=id_), "accepted")
                intervals.append(60_000)
            else:
                body = {"id": id_, "try_interval": 1_000 + len(intervals)}
                self.scenario.add("outplan_update", body, "accepted")
                intervals.append(1_000 + len(intervals))
        return self.scenario.commands[-len(ids) :]


class _Publisher:
    """Publish on one connection at a time, each command until the broker has confirmed it."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._connection: aio_pika.abc.AbstractConnection | None = None
        self._exchange: aio_pika.abc.AbstractExchange | None = None

    async def publish(self, commands: list[SentCommand]) -> None:
        """Publish commands of different outplans at once; return when all are confirmed."""
        left = list(commands)
        while left:
            try:
                exchange = await self._open()
                async with asyncio.timeout(10):
                    results = await asyncio.gather(
                        *(_publish(exchange, command) for command in left), return_exceptions=True
                    )
            except CONNECTION_ERRORS:
                results = [ConnectionError() for _ in left]
            for result in results:
                if isinstance(result, aio_pika.exceptions.PublishError):
                    raise result  # No queue took it.
            pairs = zip(left, results, strict=True)
            left = [command for command, result in pairs if isinstance(result, BaseException)]
            if left:
                await self.close()
                await asyncio.sleep(0.1)

    async def close(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            try:
                async with asyncio.timeout(3):
                    await connection.close()
            except CONNECTION_ERRORS:
                pass

    async def _open(self) -> aio_pika.abc.AbstractExchange:
        if self._exchange is None:
            async with asyncio.timeout(10):
                self._connection = await aio_pika.connect(self._deployment.amqp_url)
                channel = await self._connection.channel(on_return_raises=True)
                name = f"{self._deployment.prefix}.commands"
                self._exchange = await channel.get_exchange(name, ensure=False)
        return self._exchange


async def _publish(exchange: aio_pika.abc.AbstractExchange, command: SentCommand) -> None:
    id_, name, body = command
    message = aio_pika.Message(json.dumps(body).encode(), message_id=id_, delivery_mode=2)
    # Mandatory: the test fails if a command is unroutable for a moment.
    await exchange.publish(message, key_of(name, body["id"]), mandatory=True)


@asynccontextmanager
async def run_load(
    deployment: Deployment, outplans: int = 48, pause: float = 0.1
) -> AsyncIterator[OrderedLoad]:
    """Publish for the block; at its end finish the round."""
    load = OrderedLoad(deployment, outplans, pause)
    running = asyncio.create_task(load.run())
    try:
        yield load
        load.stop()
        await running
    finally:
        running.cancel()
        await asyncio.wait({running})


async def assert_applied_in_order(
    world: World, load: OrderedLoad, *, repeats: bool = False, seconds: float = 60
) -> None:
    """Wait for all events; check their order, that none is missing, and the documents.

    Without ``repeats``, no event may come twice.
    """
    accepted = load.scenario.accepted
    await world.wait_for(lambda: len(world.events) >= len(accepted), seconds)
    await assert_events_and_documents(world, load.scenario, seconds)
    if not repeats:
        assert len(world.events) == len(accepted)
