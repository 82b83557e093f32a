"""Store a batch in one transaction.

The transaction reads what the batch needs, writes its events and outplans, and the fence last.
After any failure either nothing is stored, or everything is and the next attempt finds it by the
commands' ids. So every failure is answered by running the batch again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from inspect import isawaitable
from typing import Any, Final, TypeVar

import pymongo
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, InsertOne, ReplaceOne, ReturnDocument, UpdateOne
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from outplan.contract.messages import Event
from outplan.domain.decider import State
from outplan.domain.records import Attempt, Fence, OutplanVersion, Record, Snapshot
from outplan.errors import (
    Fenced,
    LayoutChanged,
    StoreAborted,
    StoreConflict,
    StoreUnavailable,
    StoreUnsuitable,
)
from outplan.mongodb.documents import (
    build_attempt_document,
    build_event_document,
    build_outcome_document,
    build_outplan_document,
    parse_fence,
    parse_record,
    parse_state,
)
from outplan.mongodb.registry import MongoRegistry
from outplan.mongodb.suitability import explain_missing_replica_set, find_obstacle
from outplan.mongodb.translation import explain_wrong_url, translate_errors
from outplan.mongodb.validators import (
    EVENTS,
    FENCES,
    FORGET_SECONDS,
    OUTPLANS,
    SEEN_INDEX,
    SEEN_KEYS,
    VERSION_INDEX,
    VERSION_KEYS,
    WORKERS,
    build_collection_options,
)
from outplan.urls import check_mongo_url

T = TypeVar("T")

_PING_SECONDS: Final = 5
# Bound the wait for a server that hangs, unless the URL says otherwise.
_TIMEOUTS: Final = {
    "serverSelectionTimeoutMS": 5_000,
    "connectTimeoutMS": 5_000,
    "socketTimeoutMS": 20_000,
    "heartbeatFrequencyMS": 2_000,
    # Firewalls silently drop connections that were idle for minutes. The first use of such a
    # connection would wait for socketTimeoutMS.
    "maxIdleTimeMS": 10_000,
}


class MongoTransaction:
    """A ``worker.ports.BatchTransaction``, from ``MongoStore.transact``."""

    def __init__(self, database: Any, session: Any) -> None:
        self._database = database
        self._session = session

    async def load(
        self,
        outplan_ids: Iterable[str],
        command_ids: Iterable[str],
        past: Collection[OutplanVersion] = (),
    ) -> Snapshot:
        """Read outplans by id, events by command id, and outplans as of ``past`` versions."""
        outplans = await self._find(OUTPLANS, _any_of(outplan_ids))
        events = await self._find(EVENTS, _any_of(command_ids))
        return Snapshot(
            {doc["_id"]: parse_state(doc) for doc in outplans},
            {doc["_id"]: parse_record(doc) for doc in events},
            await self._load_past(past) if past else {},
        )

    async def _load_past(self, past: Collection[OutplanVersion]) -> dict[OutplanVersion, State]:
        events = await self._find(EVENTS, {"$or": [_event_at(*version) for version in past]})
        recorded = (parse_record(doc).event for doc in events)
        return {(e.data.id, e.version): State(e.data, e.version) for e in recorded}

    async def save(
        self, records: Sequence[Record], known: Mapping[str, State], fences: Sequence[Fence] = ()
    ) -> None:
        """Write events, the outplans that they leave, and the fences' outcomes last."""
        if records:
            await self._write(
                EVENTS, [InsertOne(build_event_document(record)) for record in records]
            )
            latest = {record.event.data.id: record.event for record in records}
            writes = [_outplan_write(event, known.get(id_)) for id_, event in latest.items()]
            result = await self._write(OUTPLANS, writes)
            if result.inserted_count + result.matched_count != len(writes):
                raise StoreConflict("an outplan has another version than was read")
        for fence in fences:
            await self._write_fence(fence)

    async def read_fence(self, fence: Fence) -> Fence:
        """Read the fence as it is stored now. Raises Fenced."""
        document = await self._database[FENCES].find_one(_claim_of(fence), session=self._session)
        if document is None:
            raise _fence_lost(fence)
        return parse_fence(document)

    async def _find(self, collection: str, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        cursor = self._database[collection].find(wanted, session=self._session)
        found: list[dict[str, Any]] = await cursor.to_list(length=None)
        return found

    async def _write_fence(self, fence: Fence) -> None:
        # The counter changes the document in each batch, so that another worker's claim conflicts.
        values: dict[str, Any] = {
            "verdicts": [build_outcome_document(outcome) for outcome in fence.outcomes]
        }
        if fence.lag is not None:
            values["lag"] = float(fence.lag)
        absent = {"trial": fence.attempt, "lag": fence.lag}
        update: dict[str, Any] = {
            "$inc": {"batches": 1},
            "$currentDate": {"committed": True},
            "$set": values,
            "$unset": {field: "" for field, value in absent.items() if value is None},
        }
        result = await self._database[FENCES].update_one(
            _claim_of(fence), update, session=self._session
        )
        if result.matched_count != 1:
            raise _fence_lost(fence)

    async def _write(self, collection: str, writes: Sequence[Any]) -> Any:
        return await self._database[collection].bulk_write(
            writes, ordered=False, session=self._session
        )


class MongoStore:
    """A ``worker.ports.OutplanStore`` in MongoDB.

    ``driver`` is ``motor`` or ``pymongo``. Raises WrongSetting for a URL that cannot be used. The
    opener closes it.
    """

    def __init__(self, url: str, database: str, driver: str = "motor") -> None:
        self._session: Any = None
        client: Any = AsyncIOMotorClient if driver == "motor" else AsyncMongoClient
        with explain_wrong_url():
            self._url = check_mongo_url(url)
            self._client = client(self._url, **_unless_in(self._url, _TIMEOUTS))
        self._database = self._client.get_database(
            database,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority", j=True),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.end_session()
        await _await(self._client.close())

    async def prepare(self) -> None:
        """Check that transactions work; make collections, validators and indexes."""
        await self._require_transactions()
        with translate_errors():
            present = {
                item["name"]: item.get("options", {})
                async for item in await _await(self._database.list_collections())
            }
            for name, options in build_collection_options().items():
                if name not in present:
                    await self._database.create_collection(name, **options)
                elif any(present[name].get(key) != value for key, value in options.items()):
                    await self._database.command("collMod", name, **options)
            await self._create_version_index()
            await self._database[WORKERS].create_index(
                list(SEEN_KEYS), expireAfterSeconds=FORGET_SECONDS, name=SEEN_INDEX
            )

    async def _create_version_index(self) -> None:
        try:
            with translate_errors():
                await self._database[EVENTS].create_index(
                    list(VERSION_KEYS), unique=True, name=VERSION_INDEX
                )
        except StoreAborted:
            raise
        except StoreConflict as error:
            raise StoreUnsuitable(
                f"{EVENTS} in OUTPLAN_MONGO_DATABASE holds two events of one version, which no "
                f"worker stores: {error}; remove one"
            ) from error

    async def ping(self) -> None:
        """Await an answer from the primary for at most 5 s, in one of the driver's threads."""
        with translate_errors(), pymongo.timeout(_PING_SECONDS):
            await self._client.admin.command("ping", read_preference=ReadPreference.PRIMARY)

    def open_registry(self, prefix: str) -> MongoRegistry:
        """Return the registry of the workers with this prefix, on the same connections."""
        return MongoRegistry(self._database, prefix)

    async def claim(self, queue: str, worker: str, generation: int) -> Fence:
        """Raise the queue's epoch, which fences off every earlier holder.

        Raises Fenced if a layout of a later generation is in force.
        A holder that was killed in a transaction leaves its documents locked, for a minute by the
        server's default. So the claim kills the former holder's MongoDB session too.
        """
        with translate_errors():
            session = await self._open_session()
            before = await self._database[FENCES].find_one({"_id": queue})
            if before is not None:
                if before.get("generation", 0) > generation:
                    raise LayoutChanged(
                        f"another layout is in force: {queue} has a later generation"
                    )
                await self._end_session(before["session"])
            # Of a later generation by now, the fence does not match, and the upsert conflicts.
            before = await self._database[FENCES].find_one_and_update(
                {"_id": queue, "generation": {"$not": {"$gt": generation}}},
                {
                    # Until it is released, this session is one that has crashed.
                    "$inc": {"epoch": 1, "crashes": 1},
                    "$set": {
                        "worker": worker,
                        "session": session.session_id["id"],
                        "generation": generation,
                    },
                    "$setOnInsert": {"batches": 0, "verdicts": []},
                },
                upsert=True,
                return_document=ReturnDocument.BEFORE,
            )
            if before is None:
                return Fence(queue, 1)
            await self._end_session(before["session"])
            return parse_fence({**before, "epoch": before["epoch"] + 1})

    async def _end_session(self, session_id: Any) -> None:
        """Abort another holder's transaction; the server ignores a session that has ended."""
        if session_id != self._session.session_id["id"]:
            await self._client.admin.command("killSessions", [{"id": session_id}])

    async def release(self, fences: Sequence[Fence]) -> None:
        """Note that the sessions with these claims end cleanly; reduce attempts to those given."""
        updates = [
            UpdateOne(
                _claim_of(fence),
                {"$set": {"crashes": 0, **_attempt_field(fence.attempt)}},
            )
            for fence in fences
        ]
        if updates:
            with translate_errors(), pymongo.timeout(_PING_SECONDS):
                await self._database[FENCES].bulk_write(updates, ordered=False)

    async def record_attempt(self, fence: Fence, attempt: Attempt) -> None:
        """Write the attempt that starts next. Raises Fenced."""
        with translate_errors():
            result = await self._database[FENCES].update_one(
                _claim_of(fence), {"$set": _attempt_field(attempt)}
            )
        if result.matched_count != 1:
            raise _fence_lost(fence)

    async def transact(self, work: Callable[[MongoTransaction], Awaitable[T]]) -> T:
        """Run ``work`` in one transaction, acknowledged by a majority's journals.

        A cancelled caller waits until the attempt ends, since the driver's thread carries on with
        it anyway. The driver's timeouts bound the wait.
        """
        attempt = asyncio.ensure_future(self._attempt(work))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            await asyncio.wait({attempt})
            if not attempt.cancelled():
                attempt.exception()
            raise

    async def _attempt(self, work: Callable[[MongoTransaction], Awaitable[T]]) -> T:
        with translate_errors():
            session = await self._open_session()
            context = session.start_transaction(
                read_concern=ReadConcern("snapshot"),
                write_concern=WriteConcern("majority", j=True),
                read_preference=ReadPreference.PRIMARY,
            )
            async with await _await(context):
                return await work(MongoTransaction(self._database, session))

    async def _open_session(self) -> Any:
        """Return the store's one server session, whose id lets a successor kill it."""
        if self._session is None:
            self._session = await _await(self._client.start_session())
        return self._session

    async def _require_transactions(self) -> None:
        try:
            with translate_errors():
                hello = await self._client.admin.command("hello")
        except StoreUnavailable:
            if obstacle := await find_obstacle(self._url):
                raise StoreUnsuitable(obstacle) from None
            raise
        if obstacle := explain_missing_replica_set(hello):
            raise StoreUnsuitable(obstacle)


async def _await(value: Any) -> Any:
    """Await what one of the two drivers returns as it is and the other as an awaitable."""
    return await value if isawaitable(value) else value


def _unless_in(url: str, options: dict[str, int]) -> dict[str, int]:
    return {k: v for k, v in options.items() if f"{k.lower()}=" not in url.lower()}


def _claim_of(fence: Fence) -> dict[str, Any]:
    return {"_id": fence.queue, "epoch": fence.epoch}


def _attempt_field(attempt: Attempt | None) -> dict[str, Any]:
    return {} if attempt is None else {"trial": build_attempt_document(attempt)}


def _fence_lost(fence: Fence) -> Fenced:
    return Fenced(f"another worker, or outplan partitions, has claimed {fence.queue}")


def _any_of(ids: Iterable[str]) -> dict[str, Any]:
    return {"_id": {"$in": list(ids)}}


def _event_at(outplan_id: str, version: int) -> dict[str, Any]:
    return {"outplan_id": outplan_id, "version": version}


def _outplan_write(event: Event, known: State | None) -> Any:
    document = build_outplan_document(event)
    if known is None:
        return InsertOne(document)
    return ReplaceOne({"_id": document["_id"], "version": known.version}, document)
