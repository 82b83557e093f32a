"""Record every event that a worker publishes, across connection losses."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiormq.channel import Channel

from outplan.client import Refused
from outplan.client.connection import open_connection, translate_errors
from outplan.contract.amqp import Delivery
from outplan.contract.topology import build_topology
from outplan.errors import BrokerUnavailable
from outplan.rabbitmq.connection import Connection
from outplan.rabbitmq.delivery_queue import DeliveryQueue
from outplan.rabbitmq.reader import unused_callback
from outplan.retry import SPREAD_BACKOFF, retrying
from outplan.testing.event_buffer import EventBuffer

_log = logging.getLogger(__name__)

_SECONDS: Final = 10


def recorder_queue(prefix: str) -> str:
    """Name the durable queue that a recorder consumes; it outlives the recorder."""
    return f"{prefix}.witness"


class EventRecorder:
    """Record the events of a prefix in ``buffer``; ``times_seen`` counts them by id.

    Messages that are no events are logged and dropped.
    """

    def __init__(self, amqp_url: str, prefix: str) -> None:
        self.buffer = EventBuffer()
        self.times_seen: Counter[str] = Counter()
        self._url = amqp_url
        self._queue = recorder_queue(prefix)
        self._exchange = build_topology(prefix).events
        self._received = asyncio.Event()
        self._consuming = asyncio.Event()

    async def wait_for(self, condition: Callable[[], bool], within: float) -> None:
        """Wait until an event makes the condition true. Raises TimeoutError."""
        async with asyncio.timeout(within):
            while not condition():
                self._received.clear()
                await self._received.wait()

    async def wait_until_consuming(self) -> None:
        """Wait until it consumes for the first time. Raises TimeoutError."""
        async with asyncio.timeout(_SECONDS):
            await self._consuming.wait()

    async def run(self) -> None:
        """Consume until cancelled, over one connection after another."""
        # Refused too: a broker that starts up refuses connections at first.
        retry = retrying(BrokerUnavailable, Refused, on_error=self._on_error, wait=SPREAD_BACKOFF)
        while True:
            await retry(self._consume_once)

    async def _consume_once(self) -> None:
        async with open_connection(self._url, "witness") as connection:
            messages = DeliveryQueue(connection.guard)
            with translate_errors():
                async with asyncio.timeout(_SECONDS):
                    channel = await self._consume(connection, messages)
            self._consuming.set()
            while True:
                message = await messages.take()
                with translate_errors():
                    await channel.basic_ack(message.tag, wait=False)
                self._record(message)

    async def _consume(self, connection: Connection, messages: DeliveryQueue) -> Channel:
        channel = await connection.open_channel(messages)
        exchange = self._exchange
        # The worker declares the same exchange; either may be first.
        await channel.exchange_declare(exchange.name, exchange_type=exchange.type, durable=True)
        await channel.queue_declare(self._queue, durable=True)
        await channel.queue_bind(self._queue, exchange.name, "#")
        await channel.basic_consume(self._queue, unused_callback)
        return channel

    def _record(self, message: Delivery) -> None:
        try:
            event = self.buffer.add(message.body)
        except ValueError as error:
            _log.warning("a message on the events exchange is no event: %s", error)
            return
        self.times_seen[event.id] += 1
        self._received.set()

    def _on_error(self, error: BaseException) -> None:
        _log.info("events cannot be received for now: %s", error)


@asynccontextmanager
async def record_events(amqp_url: str, prefix: str) -> AsyncIterator[EventRecorder]:
    """Yield a recorder that consumes until the block ends."""
    recorder = EventRecorder(amqp_url, prefix)
    running = asyncio.create_task(recorder.run())
    try:
        await recorder.wait_until_consuming()
        yield recorder
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
