"""The only module that knows MongoDB.

One transaction a batch: read what the batch needs, write what it decided, and last the fence.
Whatever fails, nothing of it was stored, or all of it was and the next attempt finds it by the
commands' ids; so every failure is answered by starting the batch again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from inspect import isawaitable
from typing import Any, Final, TypeVar

import pymongo
from bson.errors import BSONError
from motor.motor_asyncio import AsyncIOMotorClient
from pydantic import ValidationError
from pymongo import AsyncMongoClient, InsertOne, ReplaceOne, ReturnDocument
from pymongo.errors import (
    ConfigurationError,
    DocumentTooLarge,
    InvalidOperation,
    InvalidURI,
    OperationFailure,
    PyMongoError,
)
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from outplan.contract.messages import Event
from outplan.domain.decider import State
from outplan.domain.records import Fence, Record, Snapshot, Trial, Version
from outplan.errors import (
    Fenced,
    OutplanError,
    StoreAborted,
    StoreConflict,
    StoreUnavailable,
    StoreUnsuitable,
    Unprocessable,
    WrongSetting,
)
from outplan.mongodb.documents import (
    event_document,
    fence_of,
    outplan_document,
    record_of,
    state_of,
)
from outplan.mongodb.validators import (
    EVENTS,
    FENCES,
    OUTPLANS,
    VERSION_INDEX,
    VERSION_KEYS,
    validators,
)

T = TypeVar("T")

_DUPLICATE_KEY: Final = 11_000
# WriteConflict, NoSuchTransaction and TransactionTooLargeForCache.
_ABORTED: Final = frozenset({112, 251, 388})
_OTHER_INDEX: Final = frozenset({85, 86})  # IndexOptionsConflict, IndexKeySpecsConflict
_REFUSED: Final = frozenset({13, 18, 8_000})  # Unauthorized, AuthenticationFailed, Atlas' own
_NO_REPLICA_SET: Final = 20  # IllegalOperation: "Transaction numbers are only allowed on …"
# DocumentValidationFailure, BSONObjectTooLarge, TransactionTooLarge and what it was called before.
_UNPROCESSABLE: Final = frozenset({121, 10_334, 17_280, 17_419, 17_420, 257, 358})
_PING_SECONDS: Final = 5
# A server that hangs is found out after these; the URL may say otherwise.
_TIMEOUTS: Final = {
    "serverSelectionTimeoutMS": 5_000,
    "connectTimeoutMS": 5_000,
    "socketTimeoutMS": 20_000,
    "heartbeatFrequencyMS": 2_000,
}


class Transaction:
    """One attempt at a batch; made by ``Store.transact``."""

    def __init__(self, database: Any, session: Any) -> None:
        self._database = database
        self._session = session

    async def load(
        self,
        outplan_ids: Iterable[str],
        command_ids: Iterable[str],
        past: Collection[Version] = (),
    ) -> Snapshot:
        """Read outplans by id, events by command id, and outplans as of ``past`` versions."""
        outplans = await self._find(OUTPLANS, _any_of(outplan_ids))
        events = await self._find(EVENTS, _any_of(command_ids))
        return Snapshot(
            {doc["_id"]: state_of(doc) for doc in outplans},
            {doc["_id"]: record_of(doc) for doc in events},
            await self._load_past(past) if past else {},
        )

    async def _load_past(self, past: Collection[Version]) -> dict[Version, State]:
        events = await self._find(EVENTS, {"$or": [_event_at(*version) for version in past]})
        recorded = (record_of(doc).event for doc in events)
        return {(e.data.id, e.version): State(e.data, e.version) for e in recorded}

    async def save(self, records: Sequence[Record], known: dict[str, State]) -> None:
        """Write the events, and each outplan they leave, over the version in ``known``."""
        if not records:
            return
        events = [InsertOne(event_document(record)) for record in records]
        await self._write(EVENTS, events)
        latest = {record.event.data.id: record.event for record in records}
        writes = [_outplan_write(event, known.get(id_)) for id_, event in latest.items()]
        result = await self._write(OUTPLANS, writes)
        if result.inserted_count + result.matched_count != len(writes):
            raise StoreConflict("an outplan has another version than was read")

    async def read_fence(self, fence: Fence) -> Fence:
        """The fence as it is stored now. Raises Fenced."""
        document = await self._database[FENCES].find_one(_held(fence), session=self._session)
        if document is None:
            raise Fenced(f"another worker has taken {fence.queue} over")
        return fence_of(document)

    async def hold(self, fence: Fence) -> None:
        """Keep the fence, with its verdicts; Fenced where another worker has claimed it."""
        # The counter makes each batch a real write, which another's claim collides with.
        update: dict[str, Any] = {
            "$inc": {"batches": 1},
            "$set": {"verdicts": [asdict(verdict) for verdict in fence.verdicts]},
        }
        if fence.trial is None:
            update["$unset"] = {"trial": ""}
        result = await self._database[FENCES].update_one(
            _held(fence), update, session=self._session
        )
        if result.matched_count != 1:
            raise Fenced(f"another worker has taken {fence.queue} over")

    async def _find(self, collection: str, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        cursor = self._database[collection].find(wanted, session=self._session)
        found: list[dict[str, Any]] = await cursor.to_list(length=None)
        return found

    async def _write(self, collection: str, writes: Sequence[Any]) -> Any:
        return await self._database[collection].bulk_write(
            writes, ordered=False, session=self._session
        )


class Store:
    """The documents and their history. For one batch at a time.

    Every call may raise StoreUnavailable (try again); ``transact`` also StoreConflict (start the
    batch again), Fenced and Unprocessable. Whoever opened it closes it.
    """

    def __init__(self, url: str, database: str, driver: str = "motor") -> None:
        self._url = url
        self._session: Any = None
        client: Any = AsyncIOMotorClient if driver == "motor" else AsyncMongoClient
        try:
            self._client = client(url, **_absent(url, _TIMEOUTS))
        except (ConfigurationError, ValueError) as error:
            raise WrongSetting(_unreadable(error)) from None
        self._database = self._client.get_database(
            database,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority", j=True),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.end_session()
        await _awaited(self._client.close())

    async def prepare(self) -> None:
        """Check that transactions can be had; make collections, validators and indexes."""
        await self._suitable()
        with translated():
            present = {
                item["name"]: item.get("options", {}).get("validator")
                async for item in await _awaited(self._database.list_collections())
            }
            for name, validator in validators().items():
                if name not in present:
                    await self._database.create_collection(name, validator=validator)
                elif present[name] != validator:
                    await self._database.command("collMod", name, validator=validator)
            await self._database[EVENTS].create_index(
                list(VERSION_KEYS), unique=True, name=VERSION_INDEX
            )

    async def ping(self) -> None:
        """Await a primary's answer, for some seconds: it holds one of the driver's threads."""
        with translated(), pymongo.timeout(_PING_SECONDS):
            await self._client.admin.command("ping", read_preference=ReadPreference.PRIMARY)

    async def claim(self, queue: str, worker: str) -> Fence:
        """Raise the queue's epoch, so that every earlier holder is fenced off from here on.

        A holder that was killed in a transaction leaves it open, its documents locked, for a
        minute by the server's default; so its session is killed too.
        """
        with translated():
            session = await self._opened_session()
            before = await self._database[FENCES].find_one({"_id": queue})
            if before is not None:
                await self._end_session(before["session"])
            before = await self._database[FENCES].find_one_and_update(
                {"_id": queue},
                {
                    "$inc": {"epoch": 1},
                    "$set": {"worker": worker, "session": session.session_id["id"]},
                    "$setOnInsert": {"batches": 0, "verdicts": []},
                },
                upsert=True,
                return_document=ReturnDocument.BEFORE,
            )
            if before is None:
                return Fence(queue, 1)
            await self._end_session(before["session"])
            return fence_of({**before, "epoch": before["epoch"] + 1})

    async def _end_session(self, session_id: Any) -> None:
        """Abort whatever another holder has open; killing an ended session is no error."""
        if session_id != self._session.session_id["id"]:
            await self._client.admin.command("killSessions", [{"id": session_id}])

    async def put_on_trial(self, fence: Fence, trial: Trial) -> None:
        """Write down what is handled next, and alone. Raises Fenced."""
        with translated():
            result = await self._database[FENCES].update_one(
                _held(fence), {"$set": {"trial": asdict(trial)}}
            )
        if result.matched_count != 1:
            raise Fenced(f"another worker has taken {fence.queue} over")

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run ``work`` in one transaction: majority, journaled, and never cut in the middle.

        A cancelled caller waits for the attempt to end, since the driver's thread goes on with it
        in any case; the driver's timeouts bound that.
        """
        attempt = asyncio.ensure_future(self._attempt(work))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            await asyncio.wait({attempt})
            if not attempt.cancelled():
                attempt.exception()
            raise

    async def _attempt(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        with translated():
            session = await self._opened_session()
            context = session.start_transaction(
                read_concern=ReadConcern("snapshot"),
                write_concern=WriteConcern("majority", j=True),
                read_preference=ReadPreference.PRIMARY,
            )
            async with await _awaited(context):
                return await work(Transaction(self._database, session))

    async def _opened_session(self) -> Any:
        """The one server session of this store: what it has open can be killed by its id."""
        if self._session is None:
            self._session = await _awaited(self._client.start_session())
        return self._session

    async def _suitable(self) -> None:
        try:
            with translated():
                hello = await self._client.admin.command("hello")
        except StoreUnavailable:
            if reason := await probe(self._url):
                raise StoreUnsuitable(reason) from None
            raise
        if "setName" not in hello and hello.get("msg") != "isdbgrid":
            raise StoreUnsuitable(_no_replica_set(hello))


async def _awaited(value: Any) -> Any:
    """What the driver gives at once and its successor on awaiting, or the other way round."""
    return await value if isawaitable(value) else value


async def probe(url: str) -> str | None:
    """What stands in the way at the first host of ``url``, or None.

    With ``replicaSet`` in the URL the driver ignores a standalone server without a word, so one
    question to the host itself tells "not there yet" from "will never do".
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
    except PyMongoError:
        return None
    finally:
        await client.close()
    if "setName" in hello or hello.get("isreplicaset") or hello.get("msg") == "isdbgrid":
        return _other_set(url, hello)
    return _no_replica_set(hello)


def _other_set(url: str, hello: dict[str, Any]) -> str | None:
    name = hello.get("setName")
    if not name or "replicaSet=" not in url or f"replicaSet={name}" in url:
        return None
    return f"OUTPLAN_MONGO_URL: the server's replica set is called {name!r}, not as in the URL"


def _no_replica_set(hello: dict[str, Any]) -> str:
    if hello.get("isreplicaset"):
        raise StoreUnavailable("the replica set is not initiated yet")
    return (
        "MongoDB is no replica set, so it has no transactions: start mongod with --replSet rs0 "
        "and run rs.initiate() once (a single node will do)"
    )


def _unreadable(error: Exception) -> str:
    # What it quotes of an unescaped URL may be a piece of the password.
    text = "escape user and password (RFC 3986)" if isinstance(error, InvalidURI) else str(error)
    return f"OUTPLAN_MONGO_URL cannot be used: {text}"


def _absent(url: str, options: dict[str, int]) -> dict[str, int]:
    return {k: v for k, v in options.items() if f"{k.lower()}=" not in url.lower()}


@contextmanager
def translated() -> Iterator[None]:
    """No driver exception leaves this module."""
    try:
        yield
    except OutplanError:
        raise
    except (PyMongoError, BSONError, OverflowError, ValidationError) as error:
        raise translation(error) from error


def translation(error: Exception) -> OutplanError:
    """The service's exception for one of the driver's."""
    codes = _codes(error)
    if codes & _ABORTED:
        return StoreAborted(str(error))
    if _DUPLICATE_KEY in codes:
        return StoreConflict(str(error))
    if codes & _REFUSED or isinstance(error, ConfigurationError):
        return StoreUnsuitable(f"MongoDB refuses: {brief(error)}; check OUTPLAN_MONGO_URL")
    if codes & _OTHER_INDEX:
        return StoreUnsuitable(f"{error}: drop that index, and it is made as it should be")
    if _NO_REPLICA_SET in codes:
        return StoreUnsuitable(_no_replica_set({}))
    # A ValidationError: what is stored does not keep to the contract.
    culprit = (BSONError, OverflowError, DocumentTooLarge, InvalidOperation, ValidationError)
    if codes & _UNPROCESSABLE or isinstance(error, culprit):
        return Unprocessable(str(error))
    # Whatever else it is (a full disk, an election, a shutdown): the command is not to blame.
    return StoreUnavailable(str(error))


def brief(error: Exception) -> str:
    """The text of an error that came of the driver, which repeats what the server said."""
    return str(error).partition(", full error")[0].partition(", Timeout: ")[0]


def _codes(error: Exception) -> set[int]:
    codes = {error.code} if isinstance(error, OperationFailure) and error.code else set()
    details = getattr(error, "details", None)
    if not isinstance(details, dict):
        return codes
    return codes | {item.get("code", 0) for item in details.get("writeErrors", ())}


def _held(fence: Fence) -> dict[str, Any]:
    return {"_id": fence.queue, "epoch": fence.epoch}


def _any_of(ids: Iterable[str]) -> dict[str, Any]:
    return {"_id": {"$in": list(ids)}}


def _event_at(outplan_id: str, version: int) -> dict[str, Any]:
    return {"outplan_id": outplan_id, "version": version}


def _outplan_write(event: Event, known: State | None) -> Any:
    document = outplan_document(event)
    if known is None:
        return InsertOne(document)
    return ReplaceOne({"_id": document["_id"], "version": known.version}, document)
