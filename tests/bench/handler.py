"""The yardstick: a FastStream handler that does for one command what the service does for many.

It is written as FastStream's documentation has it, and where the documentation leaves a choice the
faster one is taken: uvloop, no log line per message, a channel of its own for consuming, and as
many handlers at once as the prefetch allows (aio-pika starts a task for each delivery; RabbitMQ's
subscriber has no ``max_workers``). It promises less than the service: no order, no look for
an earlier command of the same id, no validators on its collections.
"""

from typing import Any, Final

import uvloop
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from faststream.rabbit.annotations import RabbitMessage
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.write_concern import WriteConcern

from outplan.bootstrap import utc_now
from outplan.contract.messages import Create, Event
from outplan.contract.topology import topology
from outplan.domain.codec import event_body
from outplan.domain.decider import decide
from outplan.settings import Settings, load_settings

PREFETCH: Final = 200
_DURABLE: Final = WriteConcern("majority", j=True)


class Documents:
    """Stores an event and the document that it leaves in one transaction."""

    def __init__(self, settings: Settings) -> None:
        # By default half of the handlers would wait for a connection.
        self._client: Any = AsyncIOMotorClient(settings.mongo_url, maxPoolSize=PREFETCH)
        self._database = self._client[settings.mongo_database]

    async def prepare(self) -> None:
        """Make the collections, with the unique index that the contract asks for."""
        await self._database.create_collection("outplans")
        await self._database["outplan_events"].create_index(
            [("outplan_id", 1), ("version", 1)], unique=True
        )

    async def store(self, event: Event) -> None:
        """Commit the event and its document: majority, journaled."""
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


def application(settings: Settings) -> FastStream:
    """The handler on the command queue of ``settings.prefix``, which is there already."""
    layout = topology(settings.prefix)
    events = RabbitExchange(layout.events.name, type=ExchangeType.TOPIC, durable=True)
    broker = RabbitBroker(settings.amqp_url, logger=None, app_id="handler")
    documents = Documents(settings)

    @broker.subscriber(
        RabbitQueue(layout.command_queues[0].name, declare=False),
        channel=Channel(prefetch_count=PREFETCH),
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def create(command: Create, message: RabbitMessage) -> None:
        event = decide(None, command, message.message_id, utc_now())
        assert isinstance(event, Event)
        await documents.store(event)
        outplan = event.data
        await broker.publish(
            event_body(event),
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

    return FastStream(broker, logger=None, on_startup=[documents.prepare])


if __name__ == "__main__":
    uvloop.run(application(load_settings()).run())
