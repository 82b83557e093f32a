"""Sessions with the broker: declaring, consuming, publishing.

A session is a pair of plain connections, one that consumes and one that publishes, so that an
alarm which blocks the publishing one does not hold up acknowledgements. Anything wrong on either
ends the session; nothing is repaired in place. (A refusal is nothing wrong: see ``publisher``.)
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aio_pika
from aiormq.abc import AbstractChannel
from yarl import URL

from outplan.contract.amqp import Delivery, Publication
from outplan.contract.topology import PREFETCH, Topology
from outplan.rabbitmq.connection import ConnectionGuard, declaring, open_connection, translated
from outplan.rabbitmq.publisher import Notice, Publisher
from outplan.rabbitmq.reader import FrameHandler

_START_SECONDS: Final = 30
_BATCH_BYTES: Final = 16 * 1024 * 1024
# A byte of headers takes the time of many of a body: they are walked field by field, here.
_HEADER_WEIGHT: Final = 8


class Session(FrameHandler):
    """One pair of connections, from ``open_session``.

    Every call may raise BrokerUnavailable, after which the session is of no more use. Deliveries
    come in their queue's order. Not for concurrent use, but for ``receive`` beside ``publish``.
    """

    def __init__(self, topology: Topology, user: str, notice: Notice) -> None:
        self._topology = topology
        self._inbox: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._leaving = False
        self._guard = ConnectionGuard()
        self._publisher = Publisher(user, notice, self._guard)
        self._consuming: AbstractChannel

    async def receive(self, most: int) -> list[Delivery]:
        """Whatever has arrived, up to ``most``; waits for the first, never for more.

        Nothing once ``stop_receiving`` was called. The consumer is not cancelled then: a single
        active consumer that is cancelled hands the queue over at once, with its messages still
        unsettled, and the next one would overtake them. Closing gives all back in order.
        """
        while not self._inbox and not self._leaving:
            self._arrived.clear()
            await self._arrived.wait()
        if self._leaving:
            return []
        batch = [self._inbox.popleft()]
        size = _weight(batch[0])
        while self._inbox and len(batch) < most and size < _BATCH_BYTES:
            batch.append(self._inbox.popleft())
            size += _weight(batch[-1])
        return batch

    def stop_receiving(self) -> None:
        """Let ``receive`` return nothing from now on."""
        self._leaving = True
        self._arrived.set()

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish and await every confirm, as `Publisher.publish` does."""
        await self._publisher.publish(publications)

    async def ack(self, delivery: Delivery) -> None:
        """Acknowledge this delivery and all before it.

        Waits until that is written: closing would leave unsent what the library still queues.
        """
        await self._guard.hold(self._consuming.basic_ack(delivery.tag, multiple=True, wait=True))

    async def confirm_ownership(self) -> None:
        """Return when the broker has answered on the channel that consumes.

        So until then nothing that was delivered on it has been given to anybody else.
        """
        await self._guard.hold(self._consuming.basic_qos(prefetch_count=PREFETCH))

    async def watch(self) -> None:
        """Wait for the session's end; raises BrokerUnavailable with the reason."""
        await self._guard.end()

    async def blocked(self) -> bool:
        """Whether the broker holds publishers up, as it does in a memory or disk alarm."""
        return await self._publisher.blocked()

    def on_delivery(self, delivery: Delivery) -> None:
        self._inbox.append(delivery)
        self._arrived.set()

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:
        self._publisher.settle(tag, multiple, confirmed)

    def on_return(self, reason: str) -> None:
        # Only rejected copies are mandatory: their queue has gone. The next session declares it.
        self._guard.fail(f"queue {self._topology.rejected.name} is gone: {reason}")

    def on_close(self, code: int, reason: str) -> None:
        self._guard.fail(f"the broker closed the connection: {code} {reason}")

    async def start(
        self, consuming: aio_pika.abc.AbstractConnection,
        publishing: aio_pika.abc.AbstractConnection,
    ) -> None:  # fmt: skip
        """Declare everything, then consume. Raises BrokerRefused."""
        assert consuming.transport is not None
        assert publishing.transport is not None
        await self._declare(await self._guard.channel(consuming.transport.connection))
        await self._publisher.start(publishing.transport.connection)
        self._consuming = await self._guard.channel(consuming.transport.connection)
        self._consuming.on_consumer_cancel_callbacks.add(
            lambda frame: self._guard.fail(f"queue {frame.consumer_tag} is gone")
        )
        await self._consuming.basic_qos(prefetch_count=PREFETCH)
        for queue in self._topology.command_queues:
            # The tap takes the deliveries; the consumer tag tells it their queue.
            await self._consuming.basic_consume(queue.name, _untapped, consumer_tag=queue.name)

    async def _declare(self, channel: AbstractChannel) -> None:
        for exchange in self._topology.exchanges:
            with declaring(f"exchange {exchange.name}"):
                await channel.exchange_declare(
                    exchange.name,
                    exchange_type=exchange.type,
                    durable=True,
                    arguments=dict(exchange.arguments),
                )
        for queue in self._topology.queues:
            with declaring(f"queue {queue.name}"):
                await channel.queue_declare(
                    queue.name, durable=True, arguments=dict(queue.arguments)
                )
        for b in self._topology.bindings:
            with declaring(f"binding {b.source} to {b.destination}"):
                bind = channel.exchange_bind if b.to_exchange else channel.queue_bind
                await bind(b.destination, b.source, b.routing_key)


def _weight(delivery: Delivery) -> int:
    return len(delivery.body) + _HEADER_WEIGHT * len(delivery.properties.raw)


@asynccontextmanager
async def open_session(url: str, topology: Topology, notice: Notice) -> AsyncIterator[Session]:
    """Connect twice, declare, consume. Raises BrokerUnavailable (try again) or BrokerRefused."""
    session = Session(topology, URL(url).user or "guest", notice)
    async with (
        open_connection(url, "consume", session) as consuming,
        open_connection(url, "publish", session) as publishing,
    ):
        with translated():
            # A broker that has just come up may take a declaration and never answer it.
            async with asyncio.timeout(_START_SECONDS):
                await session.start(consuming, publishing)
        yield session


async def _untapped(_message: Any) -> None:
    """Never called: no delivery gets past the tap."""
