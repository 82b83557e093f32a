"""Give each test a prefix and a database of its own on the shared servers."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

from outplan.testing.place import clear
from outplan.testing.servers import Servers


@dataclass(frozen=True)
class Deployment:
    """Name the servers, the prefix and the database that one test has to itself."""

    amqp_url: str
    mongo_url: str
    prefix: str = field(default_factory=lambda: f"test-{uuid4().hex[:12]}")
    database: str = field(default_factory=lambda: f"test-{uuid4().hex[:12]}")

    def environment(self, **more: str) -> dict[str, str]:
        """Build a worker's environment: no OUTPLAN_ variable of this process, then ``more``."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("OUTPLAN_")}
        return {
            **clean,
            "OUTPLAN_AMQP_URL": self.amqp_url,
            "OUTPLAN_MONGO_URL": self.mongo_url,
            "OUTPLAN_PREFIX": self.prefix,
            "OUTPLAN_MONGO_DATABASE": self.database,
            "OUTPLAN_HTTP_PORT": "0",
            **more,
        }


@asynccontextmanager
async def open_deployment(servers: Servers) -> AsyncIterator[Deployment]:
    """Yield a new prefix and database; delete everything under them at the end."""
    deployment = Deployment(servers.rabbitmq.url, servers.mongodb.url)
    yield deployment
    await delete_deployment(deployment)


async def delete_deployment(deployment: Deployment) -> None:
    """Delete the worker's queues and exchanges and the test's event queue; drop the database."""
    await clear(deployment, [event_queue_name(deployment.prefix)])


def event_queue_name(prefix: str) -> str:
    """Name the durable queue in which a test collects the events of ``prefix``."""
    return f"{prefix}.world"
