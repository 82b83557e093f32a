"""Where a worker is alone: servers, a prefix and a database."""

import asyncio
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import aio_pika
from pymongo import AsyncMongoClient

from outplan.contract.topology import topology
from outplan.settings import ENV_PREFIX

WORKER: Final = (sys.executable, "-m", "outplan", "run")


class WorkerFailed(Exception):
    """Raised when the worker ends, or doesn't when it should. The text has its log's end."""


class Whereabouts(Protocol):
    """Whatever knows where a worker is."""

    @property
    def amqp_url(self) -> str: ...
    @property
    def mongo_url(self) -> str: ...
    @property
    def prefix(self) -> str: ...
    @property
    def database(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Place:
    """The URLs of RabbitMQ and MongoDB, the prefix of all names, and the database."""

    amqp_url: str
    mongo_url: str
    prefix: str
    database: str


def environment(place: Whereabouts, http_port: int = 0) -> Mapping[str, str]:
    """What a worker process there needs; none of this process' own OUTPLAN_ variables."""
    settings = {
        "AMQP_URL": place.amqp_url,
        "MONGO_URL": place.mongo_url,
        "MONGO_DATABASE": place.database,
        "PREFIX": place.prefix,
        "HTTP_PORT": str(http_port),
        # One that was paused for long is to come back.
        "HANG_SECONDS": "0",
    }
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)},
        **{ENV_PREFIX + name: value for name, value in settings.items()},
    }


async def clear(place: Whereabouts, further_queues: Iterable[str] = ()) -> None:
    """Delete what a worker has declared there, and more queues if need be; drop the database."""
    await asyncio.gather(clear_broker(place, further_queues), drop_database(place))


async def clear_broker(place: Whereabouts, further_queues: Iterable[str] = ()) -> None:
    """Delete what a worker has declared there, and more queues if need be."""
    layout = topology(place.prefix)
    async with await aio_pika.connect(place.amqp_url) as connection:
        channel = await connection.channel()
        for queue in (*(queue.name for queue in layout.queues), *further_queues):
            await channel.queue_delete(queue)
        for exchange in layout.exchanges:
            await channel.exchange_delete(exchange.name)


async def drop_database(place: Whereabouts) -> None:
    """Drop the database of a worker there."""
    async with AsyncMongoClient[dict[str, Any]](place.mongo_url) as mongo:
        await mongo.drop_database(place.database)
