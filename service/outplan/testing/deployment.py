"""The names that one worker has to itself: servers, a prefix and a database."""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

import aio_pika
from pymongo import AsyncMongoClient

from outplan.contract.topology import build_topology
from outplan.mongodb.validators import LAYOUTS
from outplan.settings import ENV_PREFIX
from outplan.testing.servers.interface import Servers


def _new_name() -> str:
    return f"test-{token_hex(6)}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """The URLs of RabbitMQ and MongoDB, the prefix of all names, and the database."""

    amqp_url: str
    mongo_url: str
    prefix: str = field(default_factory=_new_name)
    database: str = field(default_factory=_new_name)

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment of a worker process here, with more variables if need be.

        It has none of this process' own OUTPLAN_ variables.
        """
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
        return {
            **inherited,
            f"{ENV_PREFIX}AMQP_URL": self.amqp_url,
            f"{ENV_PREFIX}MONGO_URL": self.mongo_url,
            f"{ENV_PREFIX}PREFIX": self.prefix,
            f"{ENV_PREFIX}MONGO_DATABASE": self.database,
            f"{ENV_PREFIX}HTTP_PORT": "0",
            **variables,
        }

    async def drop(self, further_queues: Iterable[str] = ()) -> None:
        """Delete the worker's queues and exchanges, and further queues; drop the database."""
        await self.drop_queues(further_queues)
        await self.drop_database()

    async def drop_queues(self, further_queues: Iterable[str] = ()) -> None:
        """Delete the worker's queues and exchanges, and further queues."""
        layout = build_topology(self.prefix, await self._count_partitions())
        async with await aio_pika.connect(self.amqp_url) as connection:
            channel = await connection.channel()
            for queue in (*(queue.name for queue in layout.queues), *further_queues):
                await channel.queue_delete(queue)
            for exchange in layout.exchanges:
                await channel.exchange_delete(exchange.name)

    async def _count_partitions(self) -> int:
        """Return the most partitions that the stored layout has or had."""
        async with AsyncMongoClient[dict[str, Any]](self.mongo_url) as mongo:
            layout = await mongo[self.database][LAYOUTS].find_one({"_id": self.prefix})
        return max(layout["partitions"], layout["former"]) if layout else 1

    async def drop_database(self) -> None:
        """Drop the worker's database."""
        async with AsyncMongoClient[dict[str, Any]](self.mongo_url) as mongo:
            await mongo.drop_database(self.database)


@asynccontextmanager
async def open_deployment(
    servers: Servers, *, further_queues: Iterable[str] = ()
) -> AsyncIterator[Deployment]:
    """Yield a new prefix and database on the servers; drop all under them at the end.

    ``further_queues`` are the queues besides the worker's; ``{prefix}`` in a name is replaced.
    """
    deployment = Deployment(servers.rabbitmq.url, servers.mongodb.url)
    try:
        yield deployment
    finally:
        await deployment.drop(name.format(prefix=deployment.prefix) for name in further_queues)
