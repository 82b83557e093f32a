"""A broker in memory: one command queue that redelivers messages until they are acked.

Properties pass through AMQP's own encoding, so that a worker reads what RabbitMQ would deliver and
a publisher cannot send what RabbitMQ would not carry.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Final

from pamqp.commands import Basic
from pamqp.header import ContentHeader

from outplan.client.session import OnReply, Route
from outplan.contract.amqp import Delivery, Publication
from outplan.contract.topology import PREFETCH, Topology
from outplan.errors import BrokerUnavailable
from outplan.rabbitmq.frames import WireProperties, read_content_header

STOPPED: Final = "the broker was stopped"


@dataclass(frozen=True, slots=True)
class Message:
    """A command in its queue; ``deliveries`` counts those that were not acked."""

    routing_key: str
    properties: Basic.Properties
    body: bytes
    deliveries: int = 0

    @property
    def wire_properties(self) -> WireProperties:
        """Return the properties as a consumer gets them. TypeError for what AMQP cannot carry."""
        properties = self.properties
        if self.deliveries:
            properties = copy(properties)
            properties.headers = {**(properties.headers or {}), "x-delivery-count": self.deliveries}
        return read_content_header(ContentHeader(0, len(self.body), properties).marshal())


class MemoryBroker:
    """Deliver commands to a worker and route what it publishes.

    ``on_event`` is called with each event; ``rejected`` holds the rejected copies. While the broker
    is stopped, sessions wait to be opened. A stop loses nothing but replies under way.
    """

    def __init__(self, layout: Topology, on_event: Callable[[Publication], object]) -> None:
        self.layout = layout
        self.rejected: list[Publication] = []
        self._on_event = on_event
        self._running = asyncio.Event()
        self._running.set()
        self._ready: deque[Message] = deque()
        self._replies: dict[str, OnReply] = {}
        self._consumer: WorkerSession | None = None
        self._clients: set[ClientSession] = set()

    async def stop(self) -> None:
        """Shut down and end every session."""
        self._running.clear()
        for client in self._clients:
            client.fail(STOPPED)
        if self._consumer is not None:
            self._consumer.fail(STOPPED)

    async def start(self) -> None:
        """Start again with all that was in the queues."""
        self._running.set()

    async def wait_until_started(self) -> None:
        await self._running.wait()

    def send(self, message: Message) -> None:
        """Enqueue a command. Raises TypeError for properties that AMQP cannot carry."""
        assert message.wire_properties
        self._ready.append(message)
        self.deliver_ready()

    def publish(self, publication: Publication) -> None:
        """Route what a worker publishes; drop a reply whose queue is gone."""
        if publication.exchange == self.layout.events.name:
            self._on_event(publication)
        elif publication.routing_key == self.layout.rejected.name:
            self.rejected.append(publication)
        elif on_reply := self._replies.get(publication.routing_key):
            on_reply(publication.correlation_id, publication.body)

    @asynccontextmanager
    async def worker_session(self, awake: asyncio.Event) -> AsyncIterator["WorkerSession"]:
        """Consume commands; requeue the unacked ones in order at the end."""
        await self.wait_until_started()
        await awake.wait()
        self._consumer = session = WorkerSession(self, awake)
        self.deliver_ready()
        try:
            yield session
        finally:
            self._consumer = None
            self._ready.extendleft(
                replace(m, deliveries=m.deliveries + 1) for m in reversed(session.list_unacked())
            )

    @asynccontextmanager
    async def client_session(
        self, route: Route, on_reply: OnReply
    ) -> AsyncIterator["ClientSession"]:
        """Publish commands and receive replies."""
        await self.wait_until_started()
        session = ClientSession(self)
        self._clients.add(session)
        self._replies[route.reply_queue] = on_reply
        try:
            yield session
        finally:
            self._clients.remove(session)
            del self._replies[route.reply_queue]

    def deliver_ready(self) -> None:
        """Deliver commands while the consumer's prefetch has room."""
        while self._ready and self._consumer is not None and self._consumer.has_room:
            self._consumer.deliver(self._ready.popleft())


class WorkerSession:
    """A session for ``Worker``. Every call waits while the worker is paused."""

    known_defect: str | None = None

    def __init__(self, broker: MemoryBroker, awake: asyncio.Event) -> None:
        self.delivered = {broker.layout.main.name}
        self.other_consumers: Mapping[str, int] = {broker.layout.main.name: 0}
        self._broker = broker
        self._awake = awake
        self._tag = 0
        self._inbox: deque[Delivery] = deque()
        self._unacked: dict[int, Message] = {}
        self._arrived = asyncio.Event()
        self._stopping = False
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def unacked(self) -> int:
        return len(self._unacked)

    @property
    def has_room(self) -> bool:
        return len(self._unacked) < PREFETCH and not self._lost.done()

    def deliver(self, message: Message) -> None:
        self._tag += 1
        self._unacked[self._tag] = message
        layout = self._broker.layout
        self._inbox.append(
            Delivery(
                self._tag,
                layout.main.name,
                layout.commands.name,
                message.routing_key,
                message.deliveries > 0,
                message.wire_properties,
                message.body,
            )
        )
        self._arrived.set()

    def fail(self, reason: str) -> None:
        """End the session, as a broker does."""
        if not self._lost.done():
            self._lost.set_exception(BrokerUnavailable(reason))
            self._lost.exception()  # the session may have no watcher any more

    def list_unacked(self) -> list[Message]:
        """Return the messages that were delivered and not acked, in order."""
        return list(self._unacked.values())

    async def receive(self, most: int) -> list[Delivery]:
        await self._yield()
        while not self._inbox and not self._stopping:
            self._arrived.clear()
            await self._arrived.wait()
            await self._yield()
        if self._stopping:
            return []
        return [self._inbox.popleft() for _ in range(min(most, len(self._inbox)))]

    def stop_receiving(self) -> None:
        self._stopping = True
        self._arrived.set()

    async def publish(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            await self._yield()
            self._broker.publish(publication)

    async def ack(self, delivery: Delivery) -> None:
        await self._yield()
        for tag in [tag for tag in self._unacked if tag <= delivery.tag]:
            del self._unacked[tag]
        self._broker.deliver_ready()

    async def confirm_ownership(self) -> None:
        await self._yield()

    async def watch(self) -> None:
        await asyncio.shield(self._lost)

    async def is_blocked(self) -> bool:
        return False

    async def send_barriers(self, queues: Iterable[str]) -> None:
        """Do nothing: the only consumer is active."""

    async def _yield(self) -> None:
        """Let other tasks run, as I/O does: the worker may be killed or cut off at each call."""
        await asyncio.sleep(0)
        await self._awake.wait()
        if self._lost.done():
            self._lost.result()


class ClientSession:
    """A session for ``outplan.client``."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.lost: asyncio.Future[BrokerUnavailable] = asyncio.get_running_loop().create_future()
        self._broker = broker

    def publish(
        self, routing_key: str, body: bytes, properties: Basic.Properties
    ) -> "asyncio.Task[None]":
        return asyncio.create_task(self._publish(Message(routing_key, properties, body)))

    async def explain_delay(self) -> str:
        return ""

    def fail(self, reason: str) -> None:
        """End the session, as a broker does."""
        if not self.lost.done():
            self.lost.set_result(BrokerUnavailable(reason))

    async def _publish(self, message: Message) -> None:
        if self.lost.done():
            raise self.lost.result()
        self._broker.send(message)
