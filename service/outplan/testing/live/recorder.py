"""Record every event that a worker publishes, across connection losses."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiormq.abc import DeliveredMessage

from outplan.client import Refused
from outplan.client.connection import open_connection, translate_errors
from outplan.contract.topology import build_topology
from outplan.errors import BrokerUnavailable
from outplan.rabbitmq.connection import Connection
from outplan.retry import SPREAD_BACKOFF, retrying
from outplan.testing.event_buffer import EventBuffer

_log = logging.getLogger(__name__)

_SECONDS: Final = 10


def recorder_queue(prefix: str) -> str:
    """Name the durable queue that a recorder consumes; it outlives the recorder."""
    return f"{prefix}.witness"


class EventRecorder:
    """Record the events of a prefix in ``buffer``; ``times_seen`` counts them by message_id."""

    def __init__(self, amqp_url: str, prefix: str) -> None:
        self.buffer = EventBuffer()
        self.times_seen: Counter[str] = Counter()
        self._url = amqp_url
        self._queue = recorder_queue(prefix)
        self._exchange = build_topology(prefix).events
        self._received = asyncio.Condition()
        self._consuming = asyncio.Event()

    async def wait_for(self, condition: Callable[[], bool], within: float) -> None:
        """Wait until an event makes the condition true. Raises TimeoutError."""
        async with asyncio.timeout(within), self._received:
            await self._received.wait_for(condition)

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
            with translate_errors():
                async with asyncio.timeout(_SECONDS):
                    await self._consume(connection)
            self._consuming.set()
            raise await connection.guard.lost

    async def _consume(self, connection: Connection) -> None:
        channel = await connection.open_channel()
        exchange = self._exchange
        # The worker declares the same exchange; either may be first.
        await channel.exchange_declare(exchange.name, exchange_type=exchange.type, durable=True)
        await channel.queue_declare(self._queue, durable=True)
        await channel.queue_bind(self._queue, exchange.name, "#")

        async def receive(message: DeliveredMessage) -> None:
            assert message.delivery_tag is not None
            await channel.basic_ack(message.delivery_tag, wait=False)
            await self._record(message)

        await channel.basic_consume(self._queue, receive)

    async def _record(self, message: DeliveredMessage) -> None:
        self.buffer.add(message.body)
        self.times_seen[message.header.properties.message_id or ""] += 1
        async with self._received:
            self._received.notify_all()

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
