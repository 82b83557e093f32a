"""Places of a test's own, and their end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from outplan.testing.place import clear as clear_place
from outplan.testing.servers import Servers
from tests.support.worker_process import Place


@asynccontextmanager
async def a_place(servers: Servers) -> AsyncIterator[Place]:
    """A prefix and a database that nobody else uses; emptied and dropped at the end."""
    place = Place(servers.rabbitmq.url, servers.mongodb.url)
    yield place
    await clear(place)


async def clear(place: Place) -> None:
    """Delete what the service has declared there, and the witness' queue; drop the database."""
    await clear_place(place, [f"{place.prefix}.witness"])
