"""Serve as the benchmark's baseline: a FastStream handler that processes one command at a time.

It follows FastStream's documentation, and takes the faster option where there is a choice: uvloop,
no log line a message, a separate channel for consuming, and as many concurrent handlers as the
prefetch allows (aio-pika starts a task for each delivery; RabbitMQ's subscriber has no
``max_workers``). It guarantees less than the service: no order, no deduplication, no validators on
its collections.
"""

from typing import Any, Final

import uvloop
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from faststream.rabbit.annotations import RabbitMessage
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.write_concern import WriteConcern

from outplan.contract.messages import Create, Event
from outplan.contract.times import format_time, utc_now
from outplan.contract.topology import build_topology
from outplan.domain.codec import encode_event
from outplan.domain.decider import decide
from outplan.settings import Settings, load_settings

PREFETCH: Final = 200
_DURABLE: Final = WriteConcern("majority", j=True)


class DocumentStore:
    """Store an event and its document in one transaction."""

    def __init__(self, settings: Settings) -> None:
        # With the default pool half of the handlers would wait for a connection.
        self._client: Any = AsyncIOMotorClient(settings.mongo_url, maxPoolSize=PREFETCH)
        self._database = self._client[settings.mongo_database]

    async def prepare(self) -> None:
        """Create the collections, with the unique index that the contract requires."""
        await self._database.create_collection("outplans")
        await self._database["outplan_events"].create_index(
            [("outplan_id", 1), ("version", 1)], unique=True
        )

    async def save(self, event: Event) -> None:
        """Commit the event and its document with write concern majority, journaled."""
        outplan = event.data.model_dump()
        history = {
            "_id": event.id,
            "outplan_id": event.data.id,
            "customer_id": event.data.customer_id,
            "version": event.version,
            "type": event.type,
            "time": event.time,
            "data": outplan,
        }
        document = {"_id": event.data.id, **outplan, "version": event.version}
        del document["id"]
        async with (
            await self._client.start_session() as session,
            session.start_transaction(write_concern=_DURABLE),
        ):
            await self._database["outplan_events"].insert_one(history, session=session)
            await self._database["outplans"].insert_one(document, session=session)


def build_application(settings: Settings) -> FastStream:
    """Build the application that consumes the existing command queue of ``settings.prefix``."""
    layout = build_topology(settings.prefix)
    events = RabbitExchange(layout.events.name, type=ExchangeType.TOPIC, durable=True)
    broker = RabbitBroker(settings.amqp_url, logger=None, app_id="handler")
    store = DocumentStore(settings)

    @broker.subscriber(
        RabbitQueue(layout.command_queues[0].name, declare=False),
        channel=Channel(prefetch_count=PREFETCH),
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def create(command: Create, message: RabbitMessage) -> None:
        event = decide(None, command, message.message_id, format_time(utc_now()))
        assert isinstance(event, Event)
        await store.save(event)
        outplan = event.data
        await broker.publish(
            encode_event(event),
            exchange=events,
            routing_key=f"{event.type}.{outplan.customer_id}.{outplan.id}",
            persist=True,
            content_type="application/json",
            message_id=event.id,
            message_type=event.type,
            headers={
                "outplan_id": outplan.id,
                "customer_id": outplan.customer_id,
                "version": event.version,
            },
        )

    return FastStream(broker, logger=None, on_startup=[store.prepare])


if __name__ == "__main__":
    uvloop.run(build_application(load_settings()).run())
