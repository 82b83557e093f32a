"""Ask a server for its version, which also tells whether it is ready."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import aio_pika
from aiormq.exceptions import AMQPError
from pymongo import MongoClient
from pymongo.errors import NotPrimaryError, PyMongoError

# What a probe raises while the server does not answer.
NOT_READY: Final = (OSError, AMQPError, PyMongoError)


def rabbitmq_version(url: str) -> str:
    """Connect to RabbitMQ and return its version. Raises one of `NOT_READY`."""

    async def connect() -> str:
        async with await aio_pika.connect(url, timeout=10) as connection:
            transport: Any = connection.transport
            return str(transport.connection.server_properties["version"])

    with ThreadPoolExecutor(1) as pool:  # asyncio.run refuses a thread whose loop is running
        return pool.submit(asyncio.run, connect()).result()


def mongodb_version(url: str) -> str:
    """Connect to MongoDB and return its version. Raises one of `NOT_READY`."""
    with MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=10_000) as client:
        return str(client.server_info()["version"])


def primary_version(port: int) -> str:
    """Return the version of a writable primary; initiate a replica set that has no members yet.

    Raises one of `NOT_READY`.
    """
    address = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    with MongoClient[dict[str, Any]](address, serverSelectionTimeoutMS=2_000) as client:
        hello = client.admin.command("hello")
        if hello["isWritablePrimary"]:
            return str(client.server_info()["version"])
        if hello.get("isreplicaset"):  # started with --replSet, and not initiated yet
            members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
            settings = {"electionTimeoutMillis": 1_000}
            config = {"_id": "rs0", "members": members, "settings": settings}
            client.admin.command("replSetInitiate", config)
    raise NotPrimaryError("no primary yet")
