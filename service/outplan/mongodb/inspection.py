"""Questions to MongoDB that change nothing: how it is, and how the store's collections are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from pymongo import AsyncMongoClient
from pymongo.errors import ConfigurationError
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from outplan.errors import WrongSetting
from outplan.mongodb.store import probe, translated
from outplan.mongodb.validators import EVENTS, FENCES, VERSION_INDEX, VERSION_KEYS, validators

SECONDS: Final = 4
_MILLISECONDS: Final = SECONDS * 1_000
# What a worker does to its collections, and once to the database that they are in.
_NEEDED: Final = ("find", "insert", "update", "createCollection", "createIndex", "collMod")
_NEEDED_ONCE: Final = ("listCollections",)

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has claimed a command queue last, for the how many-eth time it was claimed."""

    queue: str
    worker: str
    epoch: int
    batches: int


class Survey:
    """Each question may raise StoreUnavailable and StoreUnsuitable. Whoever opened it closes it."""

    def __init__(self, url: str, database: str) -> None:
        self._url = url
        self._name = database
        try:
            self._client: AsyncMongoClient[Document] = AsyncMongoClient(
                url,
                serverSelectionTimeoutMS=_MILLISECONDS,
                connectTimeoutMS=_MILLISECONDS,
                socketTimeoutMS=_MILLISECONDS,
            )
        except (ConfigurationError, ValueError) as error:
            raise WrongSetting(
                f"OUTPLAN_MONGO_URL cannot be used: {type(error).__name__}"
            ) from None
        self._database = self._client.get_database(database, read_preference=ReadPreference.PRIMARY)

    async def close(self) -> None:
        await self._client.close()

    async def obstacle(self) -> str | None:
        """What stands in the way of the server that does not answer, where it can be told."""
        with translated():
            return await probe(self._url)

    async def hello(self) -> Document:
        """What the primary, or mongos, says of itself."""
        with translated():
            return await self._client.admin.command("hello", read_preference=ReadPreference.PRIMARY)

    async def version(self) -> tuple[int, ...]:
        """The server's version."""
        with translated():
            found = await self._client.server_info()
        return tuple(found["versionArray"][:3])

    async def majority(self) -> None:
        """Have a majority agree to a write that changes nothing, as every commit waits for one."""
        concern = WriteConcern("majority", j=True, wtimeout=_MILLISECONDS)
        fences = self._database.get_collection(FENCES, write_concern=concern)
        with translated():
            await fences.update_one({"_id": f"check-{uuid4()}"}, {"$set": {"epoch": 1}})

    async def not_granted(self) -> tuple[str, list[str]]:
        """The user, empty without login, and what it may not do and would have to."""
        with translated():
            status = await self._client.admin.command("connectionStatus", showPrivileges=True)
        info = status["authInfo"]
        users = [f"{user['user']}@{user['db']}" for user in info["authenticatedUsers"]]
        if not users:
            return "", []
        granted = info["authenticatedUserPrivileges"]
        missing = [a for a in _NEEDED_ONCE if not self._granted(granted, a, "")]
        for action in _NEEDED:
            names = [c for c in validators() if not self._granted(granted, action, c)]
            missing += [f"{action} on {', '.join(names)}"] if names else []
        return ", ".join(users), missing

    async def collections(self) -> dict[str, str | None]:
        """What is wrong with each collection's validator; None: nothing, absent: not made yet."""
        with translated():
            found = {
                item["name"]: item.get("options", {})
                async for item in await self._database.list_collections()
            }
        return {
            name: _drift(found[name], validator)
            for name, validator in validators().items()
            if name in found
        }

    async def index(self) -> str | None:
        """What is wrong with the unique index; empty: nothing, None: not made yet."""
        with translated():
            found = await self._database[EVENTS].index_information()
        if VERSION_INDEX in found:
            index = found[VERSION_INDEX]
            keys = tuple((name, int(order)) for name, order in index["key"])
            if (
                keys == VERSION_KEYS
                and index.get("unique")
                and "partialFilterExpression" not in index
            ):
                return ""
            return f"{VERSION_INDEX} is on {dict(keys)}, unique: {bool(index.get('unique'))}"
        same = [name for name, index in found.items() if tuple(index["key"]) == VERSION_KEYS]
        return f"an index on the same keys is called {same[0]}" if same else None

    async def holders(self, queues: Iterable[str]) -> list[Holder]:
        """Who holds these queues, of those that were ever held."""
        with translated():
            found = await self._database[FENCES].find({"_id": {"$in": list(queues)}}).to_list()
        return [Holder(f["_id"], f["worker"], f["epoch"], f["batches"]) for f in found]

    def _granted(self, privileges: Iterable[Mapping[str, Any]], action: str, name: str) -> bool:
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
    if (level, action) != ("strict", "error"):
        return f"validation is {level}, {action}: wrong documents get in"
    return None if options.get("validator") == validator else "the validator is another one"
