"""Give each test a prefix and a database of its own on the shared servers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from outplan.testing.deployment import Deployment
from outplan.testing.servers import Servers

__all__ = ["Deployment", "delete_deployment", "event_queue_name", "open_deployment"]


@asynccontextmanager
async def open_deployment(servers: Servers) -> AsyncIterator[Deployment]:
    """Yield a new prefix and database; delete everything under them at the end."""
    deployment = Deployment(servers.rabbitmq.url, servers.mongodb.url)
    yield deployment
    await delete_deployment(deployment)


async def delete_deployment(deployment: Deployment) -> None:
    """Delete the worker's queues and exchanges and the test's event queue; drop the database."""
    await deployment.drop([event_queue_name(deployment.prefix)])


def event_queue_name(prefix: str) -> str:
    """Name the durable queue in which a test collects the events of ``prefix``."""
    return f"{prefix}.world"
