"""Places of a test's own, and their end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
from pymongo import AsyncMongoClient

from service.testing.servers import Servers
from service.topology import topology
from tests.integration.worker_process import Place


@asynccontextmanager
async def a_place(servers: Servers) -> AsyncIterator[Place]:
    """A prefix and a database that nobody else uses; emptied and dropped at the end."""
    place = Place(servers.rabbitmq.url, servers.mongodb.url)
    yield place
    await clear(place)


async def clear(place: Place) -> None:
    """Delete what the service has declared there, and drop the database."""
    layout = topology(place.prefix)
    async with await aio_pika.connect(place.amqp_url) as connection:
        channel = await connection.channel()
        for queue in (*[queue.name for queue in layout.queues], f"{place.prefix}.witness"):
            await channel.queue_delete(queue)
        for exchange in layout.exchanges:
            await channel.exchange_delete(exchange.name)
    async with AsyncMongoClient[dict[str, object]](place.mongo_url) as mongo:
        await mongo.drop_database(place.database)
