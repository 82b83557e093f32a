"""The witness: it hears every event and every reply, and says what it heard in the order heard."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import aio_pika
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import DeliveryError
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from yarl import URL

from outplan.contract.topology import NO_DELIVERY_LIMIT, topology
from tests.faults.chaos.load_publisher import closed
from tests.faults.chaos.record import Copied, Heard, Record, Replied, Stored
from tests.support.deployment import Deployment

_PREFETCH: Final = 2_000
# So many events may wait for the subscriber before the broker refuses more of them.
QUEUE_LENGTH: Final = 400
_END: Final = "the end"
_FILLER: Final = "nothing"


class Witness:
    """A durable subscriber on quorum queues of its own, from ``prepare`` on, which can be deaf.

    ``prepare`` declares them once the service has declared its exchanges.
    """

    def __init__(self, place: Deployment, url: str, record: Record) -> None:
        self._place = place
        self._url = url
        self._record = record
        self._events = f"{place.prefix}.witness"
        self._replies = f"{place.prefix}.replies"
        self._ended = {name: asyncio.Event() for name in (self._events, self._replies)}
        self._ids: set[str] = set()
        self._progress = asyncio.Condition()
        self._awake = asyncio.Event()
        self._awake.set()
        self._deaf = asyncio.Event()

    def deafen(self) -> None:
        """Stop listening: the queue of events runs full."""
        self._awake.clear()
        self._deaf.set()

    def listen(self) -> None:
        """Listen again."""
        self._deaf.clear()
        self._awake.set()

    async def prepare(self) -> None:
        """Declare and bind the queues."""
        async with self._channel() as channel:
            quorum: dict[str, Any] = {
                "x-queue-type": "quorum",
                "x-delivery-limit": NO_DELIVERY_LIMIT,
            }
            full = {**quorum, "x-max-length": QUEUE_LENGTH, "x-overflow": "reject-publish"}
            await channel.queue_declare(self._events, durable=True, arguments=full)
            await channel.queue_declare(self._replies, durable=True, arguments=quorum)
            await channel.queue_bind(self._events, f"{self._place.prefix}.events", "#")

    async def fill(self) -> None:
        """Fill what room the queue of events has left, until the broker refuses more."""
        async with self._channel() as channel:
            with suppress(DeliveryError):
                while True:
                    await channel.basic_publish(_FILLER.encode(), routing_key=self._events)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[AsyncDatabase[dict[str, Any]]]:
        """The service's database."""
        async with AsyncMongoClient[dict[str, Any]](self._place.mongo_url) as mongo:
            yield mongo[self._place.database]

    async def run(self) -> None:
        """Listen for ever, through whatever happens to the broker."""
        while True:
            await self._awake.wait()
            try:
                await self._listen()
            # Whatever it was, it comes down to connecting again.
            except Exception:
                await asyncio.sleep(0.2)

    async def heard(self, message_id: str, seconds: float) -> None:
        """Await an event. TimeoutError if it does not come."""

        async with asyncio.timeout(seconds), self._progress:
            await self._progress.wait_for(lambda: message_id in self._ids)

    async def finish(self) -> None:
        """Await all that is in the queues, then read the rejected ones and the collections."""
        async with self._channel() as channel:
            for name in self._ended:
                await channel.basic_publish(_END.encode(), routing_key=name)
        await asyncio.gather(*(ended.wait() for ended in self._ended.values()))
        await self._read_rejected()
        await self._read_collections()

    async def _listen(self) -> None:
        async with self._channel() as channel:
            lost = asyncio.Event()
            channel.closing.add_done_callback(lambda _: lost.set())
            await channel.basic_qos(prefetch_count=_PREFETCH)
            reader = _Reader(channel)
            for queue in self._ended:
                await channel.basic_consume(queue, partial(self._take, reader, queue))
            async with asyncio.TaskGroup() as group:
                ends = [group.create_task(event.wait()) for event in (lost, self._deaf)]
                acking = group.create_task(reader.ack_what_was_read())
                await asyncio.wait([*ends, acking], return_when=asyncio.FIRST_COMPLETED)
                for task in (*ends, acking):
                    task.cancel()

    async def _take(self, reader: "_Reader", queue: str, message: DeliveredMessage) -> None:
        if message.body == _END.encode():
            self._ended[queue].set()
        elif message.body == _FILLER.encode():
            pass
        elif queue == self._events:
            heard = _heard(message)
            self._ids.add(heard.message_id)
            self._record.add(heard)
        else:
            id_ = message.header.properties.correlation_id or ""
            self._record.add(Replied(id_, message.body.decode()))
        reader.read(message)
        async with self._progress:
            self._progress.notify_all()

    async def _read_rejected(self) -> None:
        """Take every rejected copy; nobody else has any."""
        name = topology(self._place.prefix).rejected.name
        done = asyncio.Event()
        async with self._channel() as channel:
            left = (await channel.queue_declare(name, passive=True)).message_count or 0

            async def take(message: DeliveredMessage) -> None:
                nonlocal left
                self._record.add(_copied(message))
                left -= 1
                if left <= 0:
                    done.set()

            if left:
                await channel.basic_consume(name, take, no_ack=True)
                await done.wait()

    async def _read_collections(self) -> None:
        async with self.database() as database:
            async for document in database["outplans"].find():
                self._record.add(Stored("outplans", document))
            async for document in database["outplan_events"].find({}, {"digest": 0}):
                self._record.add(Stored("outplan_events", document))

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[AbstractChannel]:
        url = URL(self._url).update_query(heartbeat=10)
        connection = await aio_pika.connect(url, timeout=10)
        try:
            assert connection.transport is not None
            yield await connection.transport.connection.channel(timeout=10)
        finally:
            await closed(connection)


class _Reader:
    """Acknowledges what was noted, many at a time."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._last = 0
        self._news = asyncio.Event()

    def read(self, message: DeliveredMessage) -> None:
        self._last = message.delivery_tag or 0
        self._news.set()

    async def ack_what_was_read(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await self._channel.basic_ack(self._last, multiple=True)


def _heard(message: DeliveredMessage) -> Heard:
    id_ = message.header.properties.message_id or ""
    return Heard(id_, message.routing_key or "", message.body.decode())


def _copied(message: DeliveredMessage) -> Copied:
    properties = message.header.properties
    headers: dict[str, Any] = properties.headers or {}
    return Copied(
        send_id=properties.correlation_id or "",
        message_id=properties.message_id or "",
        name=str(headers.get("x-original-routing-key", "")),
        outplan_id=str(headers.get("outplan_id", "")),
        body=message.body.decode("latin-1"),
        code=str(headers.get("x-problem-code", "")),
        problem=str(headers.get("x-problem", json.dumps({"code": "", "command_id": None}))),
    )
