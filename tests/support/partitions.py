"""Address partitions as the contract says, change their number, and ask RabbitMQ who serves them.

The mapping is written here again, from docs/contract.md alone, so that an error in
``outplan.contract.slots`` cannot hide.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import aio_pika
from aiormq.exceptions import ChannelLockedResource, ChannelNotFoundEntity

from outplan.testing import Deployment
from outplan.testing.servers import Servers
from tests.support.commands import CommandProcess, run_command
from tests.support.worker_process import run_worker
from tests.support.world import World

SLOTS: Final = [f"{n:02x}" for n in range(256)]
# Enough for a single node; the defaults are for the nodes of a cluster.
SHORT_WAITS: Final = ("--settle", "0.5", "--retire", "0.5")


def make_id(slot: str) -> str:
    """Return a new outplan id in a slot."""
    return str(uuid4())[:-2] + slot


def key_of(command: str, outplan_id: str) -> str:
    """Return the routing key of a command with its slot."""
    return f"{command}.{outplan_id[-2:].lower()}"


def queue_of(prefix: str, slot: str, partitions: int) -> str:
    """Return the queue that a slot's commands belong to."""
    if partitions == 1:
        return f"{prefix}.commands"
    return f"{prefix}.commands.{int(slot, 16) * partitions // 256}"


def queues_of(prefix: str, partitions: int) -> list[str]:
    """Return the queues of the partitions."""
    numbered = [f"{prefix}.commands.{n}" for n in range(partitions)]
    return numbered if partitions > 1 else [f"{prefix}.commands"]


def pick_slots(partitions: int) -> list[str]:
    """Return one slot of each partition."""
    return [SLOTS[-(-256 * n // partitions)] for n in range(partitions)]


def run_change(
    deployment: Deployment, *arguments: object
) -> AbstractAsyncContextManager[CommandProcess]:
    """Run ``outplan partitions`` for the block, with a number or options."""
    return run_command(deployment, "partitions", *SHORT_WAITS, *map(str, arguments))


async def change(deployment: Deployment, *arguments: object, seconds: float = 60) -> str:
    """Run ``outplan partitions`` to its successful end; return its standard output."""
    async with run_change(deployment, *arguments) as command:
        assert await command.wait(seconds) == 0, command.err
        return command.out.decode()


async def fail_to_change(deployment: Deployment, *arguments: object) -> str:
    """Run ``outplan partitions``, which must refuse with one line; return that line."""
    async with run_change(deployment, *arguments) as command:
        assert await command.wait(60) == 1, command.err
        error = command.err.decode()
    assert error.startswith("outplan: ")
    assert error.count("\n") == 1, error
    return error


async def read_layout(world: World) -> dict[str, Any]:
    """Return the stored layout of a deployment."""
    found = await world.database["outplan_layouts"].find_one({"_id": world.deployment.prefix})
    assert found is not None
    return found


async def count_messages(world: World, queue: str) -> int | None:
    """Return how many messages of a queue are ready; None if there is no such queue."""
    try:
        async with await world.connection.channel() as channel:
            found = await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity:
        return None
    return found.declaration_result.message_count


async def list_queues(world: World, most: int = 16) -> list[str]:
    """Return those of the numbered queues 0 to ``most`` that exist."""
    names = [f"{world.deployment.prefix}.commands.{n}" for n in range(most + 1)]
    return [name for name in names if await count_messages(world, name) is not None]


async def is_locked(world: World) -> bool:
    """Return whether somebody holds the lock of the bindings."""
    try:
        return await count_messages(world, f"{world.deployment.prefix}.commands.lock") is not None
    except ChannelLockedResource:
        return True


async def list_active(servers: Servers, prefix: str) -> dict[str, list[str]]:
    """Return the active consumers of each command queue, as the channels of their workers."""
    text = await asyncio.to_thread(
        servers.rabbitmq.ctl, "list_consumers", "queue_name", "channel_pid", "active"
    )
    rows = (line.split("\t") for line in text.splitlines())
    found: dict[str, list[str]] = {}
    for queue, channel, active in (row for row in rows if row[0].startswith(f"{prefix}.commands")):
        found.setdefault(queue, [])
        if active == "true":
            found[queue].append(channel)
    return found


async def list_bindings(servers: Servers, exchange: str) -> set[tuple[str, str]]:
    """Return the routing keys and destinations of an exchange's bindings."""
    columns = ("source_name", "routing_key", "destination_name")
    printed = await asyncio.to_thread(
        servers.rabbitmq.ctl, "list_bindings", "--formatter", "json", *columns
    )
    rows = [[row[column] for column in columns] for row in json.loads(printed)]
    return {(key, queue) for source, key, queue in rows if source == exchange}


async def write_down_queues(servers: Servers) -> None:
    """Make RabbitMQ write new queues to disk, which it does by itself after a second."""
    await asyncio.to_thread(servers.rabbitmq.ctl, "eval", "[dets:sync(T) || T <- dets:all()].")


async def close_connections_of(servers: Servers, channels: set[str]) -> None:
    """Let the broker close the connections of these channels, as it does if heartbeats stop."""
    ctl = servers.rabbitmq.ctl
    text = await asyncio.to_thread(ctl, "list_channels", "pid", "connection")
    rows = (line.split("\t") for line in text.splitlines())
    for connection in {row[1] for row in rows if row[0] in channels}:
        await asyncio.to_thread(ctl, "close_connection", connection, "closed by a test")


async def lay_out(deployment: Deployment, partitions: int) -> None:
    """Let a worker set a number of partitions up, and stop it."""
    async with run_worker(deployment, OUTPLAN_PARTITIONS=str(partitions)) as worker:
        assert await worker.stop() == 0


@asynccontextmanager
async def watch_routing(world: World, partitions: int) -> AsyncIterator["Routing"]:
    """Consume every command queue, in place of workers, for the block."""
    prefix = world.deployment.prefix
    routing = Routing(world)
    async with await world.connection.channel() as channel:
        for name in {f"{prefix}.commands", *queues_of(prefix, partitions)}:
            queue = await channel.get_queue(name, ensure=False)
            await queue.consume(routing.make_callback(name), no_ack=True)
        yield routing


class Routing:
    """Publish commands, and see which queue each one reaches. Use ``watch_routing``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._queues: dict[str, list[str]] = {}
        self._arrived = asyncio.Condition()

    async def find_queues(self, keys: dict[str, str]) -> dict[str, str]:
        """Publish a message with each routing key; return the one queue that it reaches.

        ``keys`` are routing keys by any name; so is the result.
        """
        self._queues = {}
        exchange = await self._world.channel.get_exchange(
            f"{self._world.deployment.prefix}.commands", ensure=False
        )
        for name, key in keys.items():
            await exchange.publish(aio_pika.Message(b"{}", message_id=name), key)
        async with asyncio.timeout(20), self._arrived:
            await self._arrived.wait_for(lambda: self._queues.keys() >= keys.keys())
        assert all(len(queues) == 1 for queues in self._queues.values()), self._queues
        return {name: queues[0] for name, queues in self._queues.items()}

    async def list_waiting(self, queue: str) -> list[str]:
        """Return the names of the messages that waited in a queue."""
        marker = str(uuid4())
        await self._world.channel.default_exchange.publish(
            aio_pika.Message(b"{}", message_id=marker), queue
        )
        async with asyncio.timeout(20), self._arrived:
            await self._arrived.wait_for(lambda: marker in self._queues)
        return [name for name in self._queues if name != marker]

    def make_callback(self, queue: str) -> Any:
        async def receive(message: Any) -> None:
            self._queues.setdefault(message.message_id, []).append(queue)
            async with self._arrived:
                self._arrived.notify_all()

        return receive
