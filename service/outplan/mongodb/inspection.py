"""Inspect a MongoDB server and the store's collections without changing anything."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from pymongo import AsyncMongoClient
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from outplan.domain.records import WorkerReport
from outplan.mongodb.documents import parse_report
from outplan.mongodb.registry import MongoRegistry
from outplan.mongodb.suitability import find_obstacle
from outplan.mongodb.translation import explain_wrong_url, translate_errors
from outplan.mongodb.validators import (
    EVENTS,
    FENCES,
    FORGET_SECONDS,
    SEEN_INDEX,
    SEEN_KEYS,
    VALIDATION_LEVEL,
    VERSION_INDEX,
    VERSION_KEYS,
    WORKERS,
    build_validators,
)
from outplan.urls import check_mongo_url

SECONDS: Final = 4
_MILLISECONDS: Final = SECONDS * 1_000
# The privileges that a worker needs on its collections, and on their database.
_NEEDED: Final = ("find", "insert", "update", "createCollection", "createIndex", "collMod")
_NEEDED_ON_DATABASE: Final = ("listCollections",)
_NEEDED_ON_WORKERS: Final = ("remove",)
OTHER_VALIDATOR: Final = "the validator differs from the worker's"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class QueueHolder:
    """The worker that claimed a command queue last; ``epoch`` counts the claims.

    ``committed_seconds`` is how long ago it committed the last batch, and ``lag`` how old that
    batch's oldest command was, in seconds. None: not known.
    """

    queue: str
    worker: str
    epoch: int
    batches: int
    committed_seconds: float | None = None
    lag: float | None = None


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """A worker that announced itself ``seconds`` ago; one that stopped cleanly is forgotten."""

    name: str
    seconds: float
    report: WorkerReport


class MongoInspector:
    """Ask MongoDB questions; each may raise StoreUnavailable or StoreUnsuitable.

    Raises WrongSetting for a URL that cannot be used. The opener closes it.
    """

    def __init__(self, url: str, database: str) -> None:
        self._name = database
        with explain_wrong_url():
            self._url = check_mongo_url(url)
            self._client: AsyncMongoClient[Document] = AsyncMongoClient(
                self._url,
                serverSelectionTimeoutMS=_MILLISECONDS,
                connectTimeoutMS=_MILLISECONDS,
                socketTimeoutMS=_MILLISECONDS,
            )
        self._database = self._client.get_database(database, read_preference=ReadPreference.PRIMARY)

    async def close(self) -> None:
        await self._client.close()

    async def find_obstacle(self) -> str | None:
        """Return why a server that does not answer cannot be used, if that can be told."""
        with translate_errors():
            return await find_obstacle(self._url)

    async def ask_hello(self) -> Document:
        """Return the answer of the primary, or of mongos, to ``hello``."""
        with translate_errors():
            return await self._client.admin.command("hello", read_preference=ReadPreference.PRIMARY)

    async def read_version(self) -> tuple[int, ...]:
        """Return the server's version, three numbers."""
        with translate_errors():
            found = await self._client.server_info()
        return tuple(found["versionArray"][:3])

    async def await_majority(self) -> None:
        """Await a majority's ack of a write that changes nothing, as every commit does."""
        concern = WriteConcern("majority", j=True, wtimeout=_MILLISECONDS)
        fences = self._database.get_collection(FENCES, write_concern=concern)
        with translate_errors():
            await fences.update_one({"_id": f"check-{uuid4()}"}, {"$set": {"epoch": 1}})

    async def find_missing_privileges(self) -> tuple[str, list[str]]:
        """Return the user (empty without a login) and the privileges that it lacks."""
        with translate_errors():
            status = await self._client.admin.command("connectionStatus", showPrivileges=True)
        info = status["authInfo"]
        users = [f"{user['user']}@{user['db']}" for user in info["authenticatedUsers"]]
        if not users:
            return "", []
        granted = info["authenticatedUserPrivileges"]
        missing = [a for a in _NEEDED_ON_DATABASE if not self._is_granted(granted, a, "")]
        needed = {action: tuple(build_validators()) for action in _NEEDED}
        needed |= dict.fromkeys(_NEEDED_ON_WORKERS, (WORKERS,))
        for action, collections in needed.items():
            names = [name for name in collections if not self._is_granted(granted, action, name)]
            missing += [f"{action} on {', '.join(names)}"] if names else []
        return ", ".join(users), missing

    async def compare_validators(self) -> dict[str, str | None]:
        """Return what is wrong with each existing collection's validator, None for nothing."""
        with translate_errors():
            found = {
                item["name"]: item.get("options", {})
                async for item in await self._database.list_collections()
            }
        return {
            name: _drift(found[name], validator)
            for name, validator in build_validators().items()
            if name in found
        }

    async def compare_version_index(self) -> str | None:
        """Return what is wrong with the events' index: empty for nothing, None if there is none."""
        return await self._compare_index(EVENTS, VERSION_INDEX, VERSION_KEYS, {"unique": True})

    async def compare_seen_index(self) -> str | None:
        """Return what is wrong with the workers' index, as ``compare_version_index`` does."""
        options = {"expireAfterSeconds": FORGET_SECONDS}
        return await self._compare_index(WORKERS, SEEN_INDEX, SEEN_KEYS, options)

    async def _compare_index(
        self, collection: str, name: str, keys: tuple[tuple[str, int], ...], options: Document
    ) -> str | None:
        with translate_errors():
            found = await self._database[collection].index_information()
        if name not in found:
            same = [other for other, index in found.items() if tuple(index["key"]) == keys]
            return f"an index on the same keys is called {same[0]}" if same else None
        index = found[name]
        found_keys = tuple((key, int(order)) for key, order in index["key"])
        wrong = {option: index.get(option) for option in options} != options
        if found_keys != keys or wrong or "partialFilterExpression" in index:
            rest = {option: value for option, value in index.items() if option not in ("key", "v")}
            return f"{name} is on {dict(found_keys)} with {rest or 'no options'}"
        return ""

    def open_registry(self, prefix: str) -> MongoRegistry:
        """Return the registry of the workers with this prefix."""
        return MongoRegistry(self._database, prefix)

    async def count_unordered(self, prefix: str) -> int:
        """Return how many commands the workers of the last hour handled outside of their order."""
        with translate_errors():
            found = await self._database[WORKERS].find({"prefix": prefix}).to_list()
        return sum(worker["unordered"] for worker in found)

    async def list_holders(self, queues: Iterable[str]) -> list[QueueHolder]:
        """List the holders of these queues; a queue that was never claimed has none."""
        found = await self._find_with_age(FENCES, {"_id": {"$in": list(queues)}}, "committed")
        return [
            QueueHolder(f["_id"], f["worker"], f["epoch"], f["batches"], f.get("age"), f.get("lag"))
            for f in found
        ]

    async def list_seen_workers(self, prefix: str) -> list[SeenWorker]:
        """List the workers that announced themselves within the last hour, by name."""
        found = await self._find_with_age(WORKERS, {"prefix": prefix}, "seen")
        return sorted(
            (SeenWorker(f["_id"], max(0.0, f["age"]), parse_report(f)) for f in found),
            key=lambda worker: worker.name,
        )

    async def _find_with_age(self, collection: str, wanted: Document, time: str) -> list[Document]:
        """Find documents, each with the ``age`` in seconds of a time, by the server's clock."""
        age = {"$divide": [{"$subtract": ["$$NOW", f"${time}"]}, 1_000]}
        pipeline: list[Document] = [{"$match": wanted}, {"$set": {"age": age}}]
        with translate_errors():
            return await (await self._database[collection].aggregate(pipeline)).to_list()

    def _is_granted(self, privileges: Iterable[Mapping[str, Any]], action: str, name: str) -> bool:
        return any(
            action in privilege["actions"] and _covers(privilege["resource"], self._name, name)
            for privilege in privileges
        )


def _covers(resource: Mapping[str, Any], database: str, collection: str) -> bool:
    if resource.get("anyResource"):
        return True
    return resource.get("db") in ("", database) and resource.get("collection") in ("", collection)


def _drift(options: Mapping[str, Any], validator: Document) -> str | None:
    level = options.get("validationLevel", "strict")
    action = options.get("validationAction", "error")
    if level not in ("strict", "moderate") or action != "error":
        return f"validation is {level}, {action}: wrong documents get in"
    as_set = (options.get("validator"), level)
    return None if as_set == (validator, VALIDATION_LEVEL) else OTHER_VALIDATOR
