"""A broker in memory: one command queue, whose messages come back until they are settled.

Properties go through the wire's own encoding on their way, so that a worker reads what it would
read of RabbitMQ, and what can't be sent there can't be sent here.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
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
    """A command in its queue; ``deliveries`` is how many of them came to nothing."""

    routing_key: str
    properties: Basic.Properties
    body: bytes
    deliveries: int = 0

    @property
    def on_the_wire(self) -> WireProperties:
        """The properties as a consumer gets them. TypeError for what AMQP has no room for."""
        properties = self.properties
        if self.deliveries:
            properties = copy(properties)
            properties.headers = {**(properties.headers or {}), "x-delivery-count": self.deliveries}
        return read_content_header(ContentHeader(0, len(self.body), properties).marshal())


class MemoryBroker:
    """Takes commands, delivers them to a worker, and gives away what it publishes.

    ``on_event`` is called with each event; ``rejected`` holds the rejected copies. While it is
    stopped whoever opens a session waits. Nothing is lost by that but replies under way.
    """

    def __init__(self, layout: Topology, on_event: Callable[[Publication], None]) -> None:
        self.layout = layout
        self.rejected: list[Publication] = []
        self._on_event = on_event
        self._up = asyncio.Event()
        self._up.set()
        self._ready: deque[Message] = deque()
        self._replies: dict[str, OnReply] = {}
        self._consumer: WorkerSession | None = None
        self._clients: set[ClientSession] = set()

    def stop(self) -> None:
        """Shut down: every session is lost."""
        self._up.clear()
        for client in self._clients:
            client.fail(STOPPED)
        if self._consumer is not None:
            self._consumer.fail(STOPPED)

    def start(self) -> None:
        """Come back, with all that was in the queues."""
        self._up.set()

    async def started(self) -> None:
        await self._up.wait()

    def send(self, message: Message) -> None:
        """Take a command from a publisher. TypeError for properties that AMQP has no room for."""
        assert message.on_the_wire
        self._ready.append(message)
        self._pump()

    def publish(self, publication: Publication) -> None:
        """Take what a worker publishes; a reply whose queue has gone is dropped."""
        if publication.exchange == self.layout.events.name:
            self._on_event(publication)
        elif publication.routing_key == self.layout.rejected.name:
            self.rejected.append(publication)
        elif on_reply := self._replies.get(publication.routing_key):
            on_reply(publication.correlation_id, publication.body)

    @asynccontextmanager
    async def worker_session(self, awake: asyncio.Event) -> AsyncIterator["WorkerSession"]:
        """Consume commands; at the end what is not settled goes back, in order."""
        await self.started()
        await awake.wait()
        self._consumer = session = WorkerSession(self, awake)
        self._pump()
        try:
            yield session
        finally:
            self._consumer = None
            self._ready.extendleft(replace(m, deliveries=m.deliveries + 1) for m in session.end())

    @asynccontextmanager
    async def client_session(
        self, route: Route, on_reply: OnReply
    ) -> AsyncIterator["ClientSession"]:
        """Publish commands, hear replies."""
        await self.started()
        session = ClientSession(self)
        self._clients.add(session)
        self._replies[route.reply_queue] = on_reply
        try:
            yield session
        finally:
            self._clients.remove(session)
            del self._replies[route.reply_queue]

    def settled(self) -> None:
        """There may be room for more deliveries."""
        self._pump()

    def _pump(self) -> None:
        while self._ready and self._consumer is not None and self._consumer.has_room:
            self._consumer.deliver(self._ready.popleft())


class WorkerSession:
    """A session as ``Worker`` needs it. It stands still while its worker isn't awake."""

    def __init__(self, broker: MemoryBroker, awake: asyncio.Event) -> None:
        self._broker = broker
        self._awake = awake
        self._tag = 0
        self._inbox: deque[Delivery] = deque()
        self._unsettled: dict[int, Message] = {}
        self._arrived = asyncio.Event()
        self._leaving = False
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def has_room(self) -> bool:
        return len(self._unsettled) < PREFETCH and not self._lost.done()

    def deliver(self, message: Message) -> None:
        self._tag += 1
        self._unsettled[self._tag] = message
        layout = self._broker.layout
        self._inbox.append(
            Delivery(
                self._tag,
                layout.command_queues[0].name,
                layout.commands.name,
                message.routing_key,
                message.deliveries > 0,
                message.on_the_wire,
                message.body,
            )
        )
        self._arrived.set()

    def fail(self, reason: str) -> None:
        """End it, as the broker does."""
        if not self._lost.done():
            self._lost.set_exception(BrokerUnavailable(reason))
            self._lost.exception()  # Not every session is still watched when it fails.

    def end(self) -> list[Message]:
        """What was delivered and is not settled, the last first."""
        return list(reversed(self._unsettled.values()))

    async def receive(self, most: int) -> list[Delivery]:
        await self._turn()
        while not self._inbox and not self._leaving:
            self._arrived.clear()
            await self._arrived.wait()
            await self._turn()
        if self._leaving:
            return []
        return [self._inbox.popleft() for _ in range(min(most, len(self._inbox)))]

    def stop_receiving(self) -> None:
        self._leaving = True
        self._arrived.set()

    async def publish(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            await self._turn()
            self._broker.publish(publication)

    async def ack(self, delivery: Delivery) -> None:
        await self._turn()
        for tag in [tag for tag in self._unsettled if tag <= delivery.tag]:
            del self._unsettled[tag]
        self._broker.settled()

    async def confirm_ownership(self) -> None:
        await self._turn()

    async def watch(self) -> None:
        await asyncio.shield(self._lost)

    async def is_blocked(self) -> bool:
        return False

    async def _turn(self) -> None:
        """Let others go on, as any I/O does: a worker may be killed or cut off at each of these."""
        await asyncio.sleep(0)
        await self._awake.wait()
        if self._lost.done():
            self._lost.result()


class ClientSession:
    """A session as ``outplan.client`` needs it: a publisher's."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.lost: asyncio.Future[BrokerUnavailable] = asyncio.get_running_loop().create_future()
        self._broker = broker

    def publish(
        self, routing_key: str, body: bytes, properties: Basic.Properties
    ) -> "asyncio.Task[None]":
        return asyncio.create_task(self._publish(Message(routing_key, properties, body)))

    def fail(self, reason: str) -> None:
        """End it, as the broker does."""
        if not self.lost.done():
            self.lost.set_result(BrokerUnavailable(reason))

    async def _publish(self, message: Message) -> None:
        if self.lost.done():
            raise self.lost.result()
        self._broker.send(message)
