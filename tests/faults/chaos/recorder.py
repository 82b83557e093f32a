"""Record every event, reply, rejected copy and stored document in the history of a run."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import DeliveryError
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from yarl import URL

from outplan.contract.topology import NO_DELIVERY_LIMIT, build_topology
from outplan.testing import Deployment
from tests.faults.chaos.history import (
    History,
    ReceivedEvent,
    ReceivedReply,
    RejectedCopy,
    StoredDocument,
)
from tests.faults.chaos.load_publisher import open_channel

_PREFETCH: Final = 2_000
# The broker nacks further events once so many wait for the subscriber.
EVENT_QUEUE_LENGTH: Final = 400
_END: Final = b"the end"
_FILLER: Final = b"nothing"


class Recorder:
    """Consume events and replies from durable quorum queues; can be paused.

    Call ``declare_queues`` once the worker has declared its exchanges, then ``run`` in a task, and
    ``finish`` at the end.
    """

    def __init__(self, deployment: Deployment, url: str, history: History) -> None:
        self._deployment = deployment
        self._url = URL(url).update_query(heartbeat=10)
        self._history = history
        self._events = f"{deployment.prefix}.witness"
        self._replies = f"{deployment.prefix}.replies"
        self._ended = {name: asyncio.Event() for name in (self._events, self._replies)}
        self._event_ids: set[str] = set()
        self._arrivals = asyncio.Condition()
        self._paused = asyncio.Event()
        self._resumed = asyncio.Event()
        self._resumed.set()

    def pause(self) -> None:
        """Stop consuming, so that the event queue fills up."""
        self._resumed.clear()
        self._paused.set()

    def resume(self) -> None:
        """Consume again."""
        self._paused.clear()
        self._resumed.set()

    async def declare_queues(self) -> None:
        """Declare the queues of events and replies, and bind the former."""
        async with open_channel(self._url) as channel:
            quorum: dict[str, Any] = {
                "x-queue-type": "quorum",
                "x-delivery-limit": NO_DELIVERY_LIMIT,
                # As the client's durable queue. RabbitMQ 4.3 requeues late what a consumer had on a
                # node that died; without this, the next consumer would get younger messages first.
                "x-single-active-consumer": True,
            }
            limited = {**quorum, "x-max-length": EVENT_QUEUE_LENGTH, "x-overflow": "reject-publish"}
            await channel.queue_declare(self._events, durable=True, arguments=limited)
            await channel.queue_declare(self._replies, durable=True, arguments=quorum)
            await channel.queue_bind(self._events, f"{self._deployment.prefix}.events", "#")

    async def fill_event_queue(self) -> None:
        """Publish fillers to the event queue until the broker nacks one."""
        async with open_channel(self._url) as channel:
            with suppress(DeliveryError):
                while True:
                    await channel.basic_publish(_FILLER, routing_key=self._events)

    @asynccontextmanager
    async def open_database(self) -> AsyncIterator[AsyncDatabase[dict[str, Any]]]:
        """Connect to the service's database."""
        async with AsyncMongoClient[dict[str, Any]](self._deployment.mongo_url) as mongo:
            yield mongo[self._deployment.database]

    async def run(self) -> None:
        """Consume until cancelled; reconnect after every failure."""
        while True:
            await self._resumed.wait()
            try:
                await self._consume()
            # Any exception means that the connection is lost.
            except Exception:
                await asyncio.sleep(0.2)

    async def wait_for_event(self, message_id: str, seconds: float) -> None:
        """Wait until an event arrives. Raises TimeoutError."""
        async with asyncio.timeout(seconds), self._arrivals:
            await self._arrivals.wait_for(lambda: message_id in self._event_ids)

    async def finish(self) -> None:
        """Drain the queues, then read the rejected queue and the collections."""
        async with open_channel(self._url) as channel:
            for name in self._ended:
                await channel.basic_publish(_END, routing_key=name)
        await asyncio.gather(*(ended.wait() for ended in self._ended.values()))
        await self._read_rejected()
        await self._read_collections()

    async def _consume(self) -> None:
        async with open_channel(self._url) as channel:
            lost = asyncio.Event()
            channel.closing.add_done_callback(lambda _: lost.set())
            await channel.basic_qos(prefetch_count=_PREFETCH)
            acks = _BatchedAcks(channel)
            for queue in self._ended:
                await channel.basic_consume(queue, partial(self._on_message, acks, queue))
            async with asyncio.TaskGroup() as group:
                ends = [group.create_task(event.wait()) for event in (lost, self._paused)]
                acking = group.create_task(acks.run())
                await asyncio.wait([*ends, acking], return_when=asyncio.FIRST_COMPLETED)
                for task in (*ends, acking):
                    task.cancel()

    async def _on_message(
        self, acks: "_BatchedAcks", queue: str, message: DeliveredMessage
    ) -> None:
        if message.body == _END:
            self._ended[queue].set()
        elif message.body == _FILLER:
            pass
        elif queue == self._events:
            event = _event_from(message)
            self._event_ids.add(event.message_id)
            self._history.add(event)
        else:
            id_ = message.header.properties.correlation_id or ""
            self._history.add(ReceivedReply(id_, message.body.decode()))
        acks.add(message)
        async with self._arrivals:
            self._arrivals.notify_all()

    async def _read_rejected(self) -> None:
        """Read all rejected copies; no other consumer has any."""
        name = build_topology(self._deployment.prefix).rejected.name
        done = asyncio.Event()
        async with open_channel(self._url) as channel:
            left = (await channel.queue_declare(name, passive=True)).message_count or 0

            async def on_copy(message: DeliveredMessage) -> None:
                nonlocal left
                self._history.add(_copy_from(message))
                left -= 1
                if left <= 0:
                    done.set()

            if left:
                await channel.basic_consume(name, on_copy, no_ack=True)
                await done.wait()

    async def _read_collections(self) -> None:
        async with self.open_database() as database:
            async for document in database["outplans"].find():
                self._history.add(StoredDocument("outplans", document))
            async for document in database["outplan_events"].find({}, {"digest": 0}):
                self._history.add(StoredDocument("outplan_events", document))


class _BatchedAcks:
    """Ack recorded messages, many at a time."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self._last = 0
        self._pending = asyncio.Event()

    def add(self, message: DeliveredMessage) -> None:
        self._last = message.delivery_tag or 0
        self._pending.set()

    async def run(self) -> None:
        while True:
            await self._pending.wait()
            self._pending.clear()
            await self._channel.basic_ack(self._last, multiple=True)


def _event_from(message: DeliveredMessage) -> ReceivedEvent:
    id_ = message.header.properties.message_id or ""
    return ReceivedEvent(id_, message.routing_key or "", message.body.decode())


def _copy_from(message: DeliveredMessage) -> RejectedCopy:
    properties = message.header.properties
    headers: dict[str, Any] = properties.headers or {}
    return RejectedCopy(
        send_id=properties.correlation_id or "",
        message_id=properties.message_id or "",
        routing_key=str(headers.get("x-original-routing-key", "")),
        outplan_id=str(headers.get("outplan_id", "")),
        body=message.body.decode("latin-1"),
        code=str(headers.get("x-problem-code", "")),
        problem=str(headers.get("x-problem", json.dumps({"code": "", "command_id": None}))),
    )
