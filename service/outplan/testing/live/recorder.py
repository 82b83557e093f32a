"""Sees every event that leaves a worker, also what was published while nobody was connected."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiormq.abc import DeliveredMessage

from outplan.client import Refused
from outplan.client.connection import open_connection, translate_errors
from outplan.contract.topology import topology
from outplan.errors import BrokerUnavailable
from outplan.rabbitmq.connection import Connection
from outplan.retry import SPREAD_BACKOFF, retrying
from outplan.testing.event_buffer import EventBuffer

_log = logging.getLogger(__name__)

# A queue that is declared or read in vain for so long will not answer at all.
_SECONDS: Final = 10


class EventRecorder:
    """All events of a prefix since it began; ``times_seen`` is by their ids."""

    def __init__(self, amqp_url: str, prefix: str) -> None:
        self.buffer = EventBuffer()
        self.times_seen: Counter[str] = Counter()
        self.queue = f"{prefix}.witness"
        self._url = amqp_url
        self._exchange = topology(prefix).events
        self._news = asyncio.Condition()
        self._listening = asyncio.Event()

    async def until(self, true: Callable[[], bool], within: float) -> None:
        """Await what is to come with an event. Raises TimeoutError."""
        async with asyncio.timeout(within), self._news:
            await self._news.wait_for(true)

    async def listening(self) -> None:
        """Await the first time that it listens. Raises TimeoutError."""
        async with asyncio.timeout(_SECONDS):
            await self._listening.wait()

    async def listen(self) -> None:
        """Listen for ever, over one connection after the other."""
        retry = retrying(BrokerUnavailable, Refused, on_error=self._on_error, wait=SPREAD_BACKOFF)
        while True:
            # Refused too: that is what a broker which starts up does.
            await retry(self._once)

    async def _once(self) -> None:
        async with open_connection(self._url, "witness") as wire:
            with translate_errors():
                async with asyncio.timeout(_SECONDS):
                    await self._consume(wire)
            self._listening.set()
            raise await wire.guard.lost

    async def _consume(self, wire: Connection) -> None:
        channel = await wire.open_channel()
        exchange = self._exchange
        # The worker declares the same; whoever is first does not matter.
        await channel.exchange_declare(exchange.name, exchange_type=exchange.type, durable=True)
        await channel.queue_declare(self.queue, durable=True)
        await channel.queue_bind(self.queue, exchange.name, "#")

        async def arrived(message: DeliveredMessage) -> None:
            assert message.delivery_tag is not None
            await channel.basic_ack(message.delivery_tag, wait=False)
            await self._see(message)

        await channel.basic_consume(self.queue, arrived)

    async def _see(self, message: DeliveredMessage) -> None:
        self.buffer.add(message.body)
        self.times_seen[message.header.properties.message_id or ""] += 1
        async with self._news:
            self._news.notify_all()

    def _on_error(self, error: BaseException) -> None:
        _log.info("no events for now: %s", error)


@asynccontextmanager
async def record_events(amqp_url: str, prefix: str) -> AsyncIterator[EventRecorder]:
    """A witness that listens until the block ends. Its queue outlives it."""
    seen = EventRecorder(amqp_url, prefix)
    listening = asyncio.create_task(seen.listen())
    try:
        await seen.listening()
        yield seen
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
