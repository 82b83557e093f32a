"""Declare one round's queues, fill them with commands and count the events."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID, uuid4

import aio_pika
import orjson
from aio_pika.abc import AbstractChannel, AbstractQueue

from outplan.contract.slots import routing_key
from outplan.contract.topology import Topology, build_topology
from tests.support.topology import declare_topology

_IN_FLIGHT: Final = 500
_CUSTOMERS: Final = 50


class Queues:
    """Hold the service's topology under one prefix, and a quorum queue that gets every event."""

    def __init__(self, channel: AbstractChannel, layout: Topology, events: AbstractQueue) -> None:
        self._channel = channel
        self._layout = layout
        self._events = events

    async def fill(self, count: int) -> None:
        """Publish ``count`` persistent commands and wait for their confirms."""
        commands = await self._channel.get_exchange(self._layout.commands.name, ensure=False)
        for first in range(0, count, _IN_FLIGHT):
            numbers = range(first, min(first + _IN_FLIGHT, count))
            await asyncio.gather(*(commands.publish(*_build_create(n)) for n in numbers))

    async def count_events(self) -> int:
        """Count the events published so far."""
        declared = await self._channel.declare_queue(self._events.name, passive=True)
        return declared.declaration_result.message_count or 0

    async def measure_event(self) -> int:
        """Return the body size of one event in bytes."""
        message = await self._events.get(no_ack=False)
        assert message is not None
        await message.nack(requeue=True)
        return len(message.body)

    async def delete(self) -> None:
        """Delete every queue and exchange."""
        for name in [self._events.name, *(q.name for q in self._layout.queues)]:
            await self._channel.queue_delete(name)
        for exchange in self._layout.exchanges:
            await self._channel.exchange_delete(exchange.name)


@asynccontextmanager
async def open_queues(url: str, prefix: str, partitions: int) -> AsyncIterator[Queues]:
    """Declare the service's queues before it runs; delete them when the block ends."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queues = await _declare(channel, build_topology(prefix, partitions))
        try:
            yield queues
        finally:
            await queues.delete()


async def read_cluster_name(url: str) -> str:
    """Return the cluster name that the RabbitMQ node reports."""
    async with await aio_pika.connect(url) as connection:
        assert connection.transport is not None
        properties = connection.transport.connection.server_properties
        return _decode(properties.get("cluster_name", ""))


async def _declare(channel: AbstractChannel, layout: Topology) -> Queues:
    await declare_topology(channel, layout)
    events = await channel.declare_queue(
        f"{layout.events.name}.bench", durable=True, arguments={"x-queue-type": "quorum"}
    )
    await events.bind(layout.events.name, "#")
    return Queues(channel, layout, events)


def _build_create(number: int) -> tuple[aio_pika.Message, str]:
    """Build a create and its routing key."""
    id_ = str(uuid4())
    body = {
        "id": id_,
        "customer_id": str(UUID(int=1 + number % _CUSTOMERS)),
        "name": f"Spring campaign {number}",
        "detail": "Mobile first, then the office; stop after the third unanswered call.",
        "source": {"type": "tel", "target": "+821021656521", "target_name": "Support"},
        "dial_timeout": 30_000,
        "try_interval": 600_000,
        "max_try_count_0": 3,
        "max_try_count_1": 2,
    }
    message = aio_pika.Message(
        orjson.dumps(body),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=str(uuid4()),
        type="outplan_create",
        timestamp=int(time.time()),
        headers={"outplan_id": id_},
    )
    return message, routing_key("outplan_create", id_)


def _decode(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
