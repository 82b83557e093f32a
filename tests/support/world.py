"""What the tests are: publishers, subscribers and operators who know the contract's page only."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aio_pika
import pika
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from pymongo import AsyncMongoClient

from outplan.contract.topology import topology
from tests.support.deployment import Deployment

CUSTOMER = "5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11"
TEL = {"type": "tel", "target": "+15559876543"}

Document = dict[str, Any]


def create_body(**fields: Any) -> Document:
    return {"customer_id": CUSTOMER, "name": "test outplan", "source": TEL, **fields}


class World:
    """A witness: everything that leaves the service, in the order in which it came."""

    def __init__(
        self,
        deployment: Deployment,
        connection: aio_pika.abc.AbstractConnection,
        watch_rejected: bool,
    ) -> None:
        self.deployment = deployment
        self._watch_rejected = watch_rejected
        self.connection = connection
        self.events: list[AbstractIncomingMessage] = []
        self.rejected: list[AbstractIncomingMessage] = []
        self.replies: dict[str, list[Document]] = defaultdict(list)
        self.channel: aio_pika.abc.AbstractChannel
        self.reply_queue: AbstractQueue
        self._raw: Any = None
        self._news = asyncio.Condition()
        mongo: AsyncMongoClient[Document] = AsyncMongoClient(deployment.mongo_url)
        self._mongo = mongo
        self.database = mongo[deployment.database]

    async def start(self) -> None:
        self.channel = await self.connection.channel()
        await self._declare()
        self.reply_queue = await self.channel.declare_queue(exclusive=True)
        await self.reply_queue.consume(self._on_reply, no_ack=True)
        events = await self.channel.declare_queue(f"{self.deployment.prefix}.witness", durable=True)
        await events.bind(f"{self.deployment.prefix}.events", "#")
        await events.consume(self._on_event, no_ack=True)
        if self._watch_rejected:
            rejected = await self.channel.get_queue(
                f"{self.deployment.prefix}.rejected", ensure=False
            )
            await rejected.consume(self._on_rejected, no_ack=True)

    async def close(self) -> None:
        if self._raw is not None:
            self._raw.connection.close()
        await self.connection.close()
        await self._mongo.close()

    async def send(
        self,
        name: str | None,
        body: Document | bytes,
        *,
        message_id: str | None = "",
        to_queue: bool = False,
        **properties: Any,
    ) -> str:
        """Publish, confirmed; the routing key is the name, or the queue when ``to_queue``."""
        id_ = str(uuid4()) if message_id == "" else message_id
        properties.setdefault("reply_to", self.reply_queue.name)
        properties.setdefault("correlation_id", id_)
        message = aio_pika.Message(
            body if isinstance(body, bytes) else json.dumps(body).encode(),
            message_id=id_,
            delivery_mode=2,
            **properties,
        )
        if to_queue:
            await self.channel.default_exchange.publish(
                message, f"{self.deployment.prefix}.commands"
            )
        else:
            exchange = await self.channel.get_exchange(
                f"{self.deployment.prefix}.commands", ensure=False
            )
            await exchange.publish(message, name or "", mandatory=False)
        return id_ or ""

    async def send_raw(self, routing_key: str, body: bytes, **properties: Any) -> None:
        """Publish by a client that adds nothing of its own, and lets bytes stand for text."""
        properties.setdefault("reply_to", self.reply_queue.name)
        await asyncio.to_thread(self._send_raw, routing_key, body, properties)

    def _send_raw(self, routing_key: str, body: bytes, properties: dict[str, Any]) -> None:
        if self._raw is None:
            parameters = pika.URLParameters(f"{self.deployment.amqp_url}?heartbeat=0")
            self._raw = pika.BlockingConnection(parameters).channel()
            self._raw.confirm_delivery()
        self._raw.basic_publish(
            f"{self.deployment.prefix}.commands",
            routing_key,
            body,
            pika.BasicProperties(**properties),
        )

    async def ask_raw(self, routing_key: str, body: bytes, **properties: Any) -> Document:
        """Publish raw and await the outcome."""
        correlation_id = properties.setdefault("correlation_id", str(uuid4()))
        await self.send_raw(routing_key, body, **properties)
        await self.wait_for(lambda: bool(self.replies[correlation_id]))
        return self.replies[correlation_id][-1]

    async def ask(self, name: str | None, body: Document | bytes, **how: Any) -> Document:
        """Publish and await the outcome."""
        correlation_id = how.setdefault("correlation_id", str(uuid4()))
        before = len(self.replies[correlation_id])
        await self.send(name, body, **how)
        await self.wait_for(lambda: len(self.replies[correlation_id]) > before)
        return self.replies[correlation_id][-1]

    async def wait_for(self, true: Callable[[], bool], seconds: float = 30) -> None:
        """Wait for what is to come; each arrival is looked at once."""
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(true)

    def find_events(self, command_id: str) -> list[Document]:
        return [json.loads(e.body) for e in self.events if e.message_id == command_id]

    async def wait_for_published(self, command_id: str) -> Document:
        await self.wait_for(lambda: bool(self.find_events(command_id)))
        return self.find_events(command_id)[0]

    async def wait_for_rejected(self, message_id: str | None) -> AbstractIncomingMessage:
        def found() -> list[AbstractIncomingMessage]:
            return [m for m in self.rejected if m.message_id == message_id]

        await self.wait_for(lambda: bool(found()))
        return found()[-1]

    async def find_document(self, outplan_id: str) -> Document | None:
        return await self.database["outplans"].find_one({"_id": outplan_id})

    async def read_history(self, outplan_id: str) -> list[Document]:
        cursor = self.database["outplan_events"].find({"outplan_id": outplan_id})
        return await cursor.sort("version").to_list()

    async def read_documents(self) -> tuple[list[Document], list[Document]]:
        """All outplans, and all events by outplan and version."""
        outplans = await self.database["outplans"].find().to_list()
        events = self.database["outplan_events"].find().sort({"outplan_id": 1, "version": 1})
        return outplans, await events.to_list()

    async def count_waiting(self) -> int:
        """How many commands stand in the queue, ready for a consumer."""
        channel = await self.connection.channel()
        async with channel:
            queue = await channel.declare_queue(f"{self.deployment.prefix}.commands", passive=True)
            return queue.declaration_result.message_count or 0

    async def _declare(self) -> None:
        """What the service declares itself, for tests that publish before it runs."""
        layout = topology(self.deployment.prefix)
        for exchange in layout.exchanges:
            await self.channel.declare_exchange(exchange.name, exchange.type, durable=True)
        for queue in layout.queues:
            await self.channel.declare_queue(
                queue.name, durable=True, arguments=dict(queue.arguments)
            )
        commands = await self.channel.get_queue(layout.command_queues[0].name)
        await commands.bind(layout.commands.name, "#")

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        assert message.type == "outplan_reply"
        self.replies[message.correlation_id or ""].append(json.loads(message.body))
        await self._tell()

    async def _on_event(self, message: AbstractIncomingMessage) -> None:
        self.events.append(message)
        await self._tell()

    async def _on_rejected(self, message: AbstractIncomingMessage) -> None:
        self.rejected.append(message)
        await self._tell()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


@asynccontextmanager
async def open_world(deployment: Deployment, watch_rejected: bool = True) -> AsyncIterator[World]:
    connection = await aio_pika.connect(deployment.amqp_url)
    world = World(deployment, connection, watch_rejected)
    try:
        await world.start()
        yield world
    finally:
        await world.close()
