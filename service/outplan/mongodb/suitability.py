"""Find out why a MongoDB server cannot be used."""

import re
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from outplan.errors import StoreUnavailable

NO_REPLICA_SET = (
    "MongoDB is not a replica set, so it has no transactions: start mongod with --replSet rs0 "
    "and run rs.initiate() once (a single node will do)"
)


async def find_obstacle(url: str) -> str | None:
    """Ask the first host of ``url`` directly; return what rules it out for good, or None.

    With ``replicaSet`` in the URL the driver ignores a standalone server silently. Asking the host
    itself tells a server that is starting from one that will never do.
    """
    client: AsyncMongoClient[dict[str, Any]]
    try:
        client = AsyncMongoClient(
            url, directConnection=True, replicaSet=None, serverSelectionTimeoutMS=2_000
        )
    except PyMongoError:
        return None
    try:
        hello = await client.admin.command("hello")
    except PyMongoError as error:
        return _explain_tls(error)
    finally:
        await client.close()
    name = hello.get("setName")
    if name and "replicaSet=" in url and f"replicaSet={name}" not in url:
        return f"OUTPLAN_MONGO_URL: the server's replica set is {name!r}; change replicaSet"
    return None if hello.get("isreplicaset") else explain_missing_replica_set(hello)


def _explain_tls(error: PyMongoError) -> str | None:
    """Return what to do about a certificate that is not trusted; None for any other error."""
    matched = re.search(r"certificate verify failed: ([^(\n]*)", str(error))
    if matched is None:
        return None
    return (
        f"MongoDB's certificate is not trusted: {matched[1].strip()}; correct the host or "
        "tlsCAFile in OUTPLAN_MONGO_URL, or the certificate"
    )


def explain_missing_replica_set(hello: dict[str, Any]) -> str | None:
    """Return what to do if a server is neither a replica set nor a mongos; else None.

    Raises StoreUnavailable if the replica set is not initiated yet.
    """
    if "setName" in hello or hello.get("msg") == "isdbgrid":
        return None
    if hello.get("isreplicaset"):
        raise StoreUnavailable("the replica set is not initiated yet")
    return NO_REPLICA_SET
