"""Talk to the service as its contract describes it: a publisher, a subscriber and an operator.

``World`` knows docs/contract.md only. It uses plain AMQP clients and reads MongoDB directly instead
of ``outplan.client`` and ``outplan.testing``, so that an error which the service shares with these
cannot hide.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aio_pika
import pika
from aio_pika.abc import (
    AbstractChannel,
    AbstractConnection,
    AbstractIncomingMessage,
    AbstractQueue,
)
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from outplan.contract.topology import build_topology
from outplan.testing import Deployment
from tests.support.topology import declare_topology

CUSTOMER = "5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11"
TEL = {"type": "tel", "target": "+15559876543"}

# Bound to all events; durable, so that it collects them across restarts of the broker.
EVENT_QUEUE = "{prefix}.world"

Document = dict[str, Any]


def create_body(**fields: Any) -> Document:
    """Build a valid body for outplan_create; ``fields`` add to it and replace."""
    return {"customer_id": CUSTOMER, "name": "test outplan", "source": TEL, **fields}


class World:
    """Send commands, and collect events, replies and rejected commands in order of arrival.

    Create one with ``open_world``. ``replies`` has the parsed bodies by correlation id; ``events``
    and ``rejected`` have the messages themselves.
    """

    def __init__(
        self,
        deployment: Deployment,
        channel: AbstractChannel,
        reply_queue: AbstractQueue,
        database: AsyncDatabase[Document],
        connection: AbstractConnection,
    ) -> None:
        self.deployment = deployment
        self.channel = channel
        self.reply_queue = reply_queue
        self.database = database
        self.events: list[AbstractIncomingMessage] = []
        self.rejected: list[AbstractIncomingMessage] = []
        self.replies: dict[str, list[Document]] = defaultdict(list)
        self.connection = connection
        self._raw_channel: Any = None
        self._arrival = asyncio.Condition()

    async def send(
        self,
        name: str | None,
        body: Document | bytes,
        *,
        message_id: str | None = "",
        to_queue: bool = False,
        **properties: Any,
    ) -> str:
        """Publish a command and wait for the confirm; return its message_id.

        ``name`` is the routing key; with ``to_queue`` the command goes to the default exchange
        with the queue's name instead. An empty ``message_id`` stands for a new one, None for none.
        """
        id_ = str(uuid4()) if message_id == "" else message_id
        properties.setdefault("reply_to", self.reply_queue.name)
        properties.setdefault("correlation_id", id_)
        message = aio_pika.Message(
            body if isinstance(body, bytes) else json.dumps(body).encode(),
            message_id=id_,
            delivery_mode=2,
            **properties,
        )
        commands = f"{self.deployment.prefix}.commands"
        if to_queue:
            await self.channel.default_exchange.publish(message, commands)
        else:
            exchange = await self.channel.get_exchange(commands, ensure=False)
            await exchange.publish(message, name or "", mandatory=False)
        return id_ or ""

    async def ask(self, name: str | None, body: Document | bytes, **properties: Any) -> Document:
        """Send a command and return its reply. Takes the arguments of ``send``."""
        correlation_id = properties.setdefault("correlation_id", str(uuid4()))
        before = len(self.replies[correlation_id])
        await self.send(name, body, **properties)
        await self.wait_for(lambda: len(self.replies[correlation_id]) > before)
        return self.replies[correlation_id][-1]

    async def send_raw(self, routing_key: str, body: bytes, **properties: Any) -> None:
        """Publish with pika, which adds no properties and accepts bytes in place of text."""
        properties.setdefault("reply_to", self.reply_queue.name)
        await asyncio.to_thread(self._send_raw, routing_key, body, properties)

    async def ask_raw(self, routing_key: str, body: bytes, **properties: Any) -> Document:
        """Send a command with ``send_raw`` and return its reply."""
        correlation_id = properties.setdefault("correlation_id", str(uuid4()))
        await self.send_raw(routing_key, body, **properties)
        await self.wait_for(lambda: bool(self.replies[correlation_id]))
        return self.replies[correlation_id][-1]

    async def wait_for(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until ``condition`` is true, testing it after each arrival; else TimeoutError."""
        async with asyncio.timeout(seconds), self._arrival:
            await self._arrival.wait_for(condition)

    async def wait_for_event(self, command_id: str) -> Document:
        """Return the first event of a command as soon as it arrives."""
        await self.wait_for(lambda: bool(self.find_events(command_id)))
        return self.find_events(command_id)[0]

    async def wait_for_events(self, command_ids: set[str]) -> None:
        """Wait until each of these commands has an event."""
        await self.wait_for(lambda: self.event_ids() >= command_ids)

    async def wait_for_rejected(self, message_id: str | None) -> AbstractIncomingMessage:
        """Return a command's latest copy in the rejected queue as soon as it arrives."""

        def find_copies() -> list[AbstractIncomingMessage]:
            return [message for message in self.rejected if message.message_id == message_id]

        await self.wait_for(lambda: bool(find_copies()))
        return find_copies()[-1]

    def find_events(self, command_id: str) -> list[Document]:
        """Return the bodies of a command's events, repeats included."""
        return [json.loads(e.body) for e in self.events if e.message_id == command_id]

    def event_ids(self) -> set[str | None]:
        """Return the message_id of every event, which is its command's."""
        return {event.message_id for event in self.events}

    async def find_document(self, outplan_id: str) -> Document | None:
        """Read one outplan's document from MongoDB."""
        return await self.database["outplans"].find_one({"_id": outplan_id})

    async def read_history(self, outplan_id: str) -> list[Document]:
        """Read one outplan's events from MongoDB by version."""
        cursor = self.database["outplan_events"].find({"outplan_id": outplan_id})
        return await cursor.sort("version").to_list()

    async def read_documents(self) -> tuple[list[Document], list[Document]]:
        """Read all outplans, and all events by outplan and version, from MongoDB."""
        outplans = await self.database["outplans"].find().to_list()
        events = self.database["outplan_events"].find().sort({"outplan_id": 1, "version": 1})
        return outplans, await events.to_list()

    async def count_waiting(self) -> int:
        """Count the commands that are ready in the command queue."""
        async with await self.connection.channel() as channel:
            name = f"{self.deployment.prefix}.commands"
            queue = await channel.declare_queue(name, passive=True)
            return queue.declaration_result.message_count or 0

    async def start(self, watch_rejected: bool) -> None:
        """Declare what the service declares and consume what it sends."""
        prefix = self.deployment.prefix
        # The tests may publish before the first worker has declared anything.
        await declare_topology(self.channel, build_topology(prefix))
        await self.reply_queue.consume(self._on_reply, no_ack=True)
        events = await self.channel.declare_queue(EVENT_QUEUE.format(prefix=prefix), durable=True)
        await events.bind(f"{prefix}.events", "#")
        await events.consume(self._on_event, no_ack=True)
        if watch_rejected:
            rejected = await self.channel.get_queue(f"{prefix}.rejected", ensure=False)
            await rejected.consume(self._on_rejected, no_ack=True)

    async def close(self) -> None:
        """Close the connection of ``send_raw``, if there is one."""
        if self._raw_channel is not None:
            await asyncio.to_thread(self._raw_channel.connection.close)

    def _send_raw(self, routing_key: str, body: bytes, properties: dict[str, Any]) -> None:
        if self._raw_channel is None:
            parameters = pika.URLParameters(f"{self.deployment.amqp_url}?heartbeat=0")
            self._raw_channel = pika.BlockingConnection(parameters).channel()
            self._raw_channel.confirm_delivery()
        exchange = f"{self.deployment.prefix}.commands"
        self._raw_channel.basic_publish(
            exchange, routing_key, body, pika.BasicProperties(**properties)
        )

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        assert message.type == "outplan_reply"
        self.replies[message.correlation_id or ""].append(json.loads(message.body))
        await self._notify()

    async def _on_event(self, message: AbstractIncomingMessage) -> None:
        self.events.append(message)
        await self._notify()

    async def _on_rejected(self, message: AbstractIncomingMessage) -> None:
        self.rejected.append(message)
        await self._notify()

    async def _notify(self) -> None:
        async with self._arrival:
            self._arrival.notify_all()


@asynccontextmanager
async def open_world(deployment: Deployment, watch_rejected: bool = True) -> AsyncIterator[World]:
    """Connect to a deployment's servers and start to collect its messages.

    Without ``watch_rejected`` the rejected commands stay in their queue.
    """
    async with (
        AsyncMongoClient[Document](deployment.mongo_url) as mongo,
        await aio_pika.connect(deployment.amqp_url) as connection,
    ):
        channel = await connection.channel()
        reply_queue = await channel.declare_queue(exclusive=True)
        database = mongo[deployment.database]
        world = World(deployment, channel, reply_queue, database, connection)
        try:
            await world.start(watch_rejected)
            yield world
        finally:
            await world.close()
