"""One round's queues: filled with commands, watched for events, and deleted."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID, uuid4

import aio_pika
import orjson
from aio_pika.abc import AbstractChannel, AbstractQueue

from outplan.contract.topology import Topology, topology

_IN_FLIGHT: Final = 500
_CUSTOMERS: Final = 50


class Queues:
    """The service's own topology under a prefix, and a quorum queue that gets every event."""

    def __init__(self, channel: AbstractChannel, layout: Topology, events: AbstractQueue) -> None:
        self._channel = channel
        self._layout = layout
        self._events = events

    async def fill(self, count: int) -> None:
        """Publish ``count`` commands, persistent and confirmed."""
        commands = await self._channel.get_exchange(self._layout.commands.name, ensure=False)
        for first in range(0, count, _IN_FLIGHT):
            messages = [_create(n) for n in range(first, min(first + _IN_FLIGHT, count))]
            await asyncio.gather(*(commands.publish(m, "outplan_create") for m in messages))

    async def events(self) -> int:
        """How many events have been published."""
        return await self._ready(self._events.name)

    async def commands(self) -> int:
        """How many commands are still waiting to be delivered."""
        return await self._ready(self._layout.command_queues[0].name)

    async def _ready(self, queue: str) -> int:
        declared = await self._channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def event_bytes(self) -> int:
        """The size of one event's body."""
        message = await self._events.get(no_ack=False)
        assert message is not None
        await message.nack(requeue=True)
        return len(message.body)

    async def delete(self) -> None:
        """Leave nothing behind."""
        for name in [self._events.name, *(q.name for q in self._layout.queues)]:
            await self._channel.queue_delete(name)
        for exchange in self._layout.exchanges:
            await self._channel.exchange_delete(exchange.name)


@asynccontextmanager
async def queues(url: str, prefix: str) -> AsyncIterator[Queues]:
    """Declare what the service would, so that commands can wait for it; deleted with the block."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        declared = await _declare(channel, topology(prefix))
        try:
            yield declared
        finally:
            await declared.delete()


async def cluster_name(url: str) -> str:
    """What the RabbitMQ node calls itself."""
    async with await aio_pika.connect(url) as connection:
        assert connection.transport is not None
        properties = connection.transport.connection.server_properties
        return _decoded(properties.get("cluster_name", ""))


async def _declare(channel: AbstractChannel, layout: Topology) -> Queues:
    for exchange in layout.exchanges:
        await channel.declare_exchange(exchange.name, exchange.type, durable=True)
    for queue in layout.queues:
        await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))
    for binding in layout.bindings:
        bound = await channel.get_queue(binding.destination, ensure=False)
        await bound.bind(binding.source, binding.routing_key)
    events = await channel.declare_queue(
        f"{layout.events.name}.bench", durable=True, arguments={"x-queue-type": "quorum"}
    )
    await events.bind(layout.events.name, "#")
    return Queues(channel, layout, events)


def _create(number: int) -> aio_pika.Message:
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
    return aio_pika.Message(
        orjson.dumps(body),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=str(uuid4()),
        type="outplan_create",
        timestamp=int(time.time()),
        headers={"outplan_id": id_},
    )


def _decoded(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
