"""A store in memory with the contract of ``outplan.mongodb.store``.

It holds the same documents as MongoDB would and validates each against the contract's schema, as
the validators in MongoDB do.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, TypeVar

from outplan.contract import schemas
from outplan.domain.decider import State
from outplan.domain.records import Attempt, Fence, OutplanVersion, Record, Snapshot
from outplan.errors import Fenced, LayoutChanged, StoreConflict, Unprocessable
from outplan.mongodb.documents import (
    build_event_document,
    build_outplan_document,
    parse_record,
    parse_state,
)
from outplan.mongodb.validators import EVENTS, FENCES, OUTPLANS

T = TypeVar("T")
# A collection and an ``_id`` in it; for the unique index, an outplan's id and a version.
_Key = tuple[str, Any]

_VERSIONS: Final = "outplan_version"


class MemoryTransaction:
    """A transaction, from ``MemoryStore.transact``. Nobody sees its writes before its commit."""

    def __init__(self, stored: dict[_Key, Any]) -> None:
        self._stored = stored
        self._written: dict[_Key, Any] = {}
        self._before: dict[_Key, Any] = {}

    async def load(
        self,
        outplan_ids: Iterable[str],
        command_ids: Iterable[str],
        past: Collection[OutplanVersion] = (),
    ) -> Snapshot:
        outplans = self._find(OUTPLANS, outplan_ids)
        events = self._find(EVENTS, command_ids)
        return Snapshot(
            {doc["_id"]: parse_state(doc) for doc in outplans},
            {doc["_id"]: parse_record(doc) for doc in events},
            {version: self._past(version) for version in past},
        )

    async def save(
        self, records: Sequence[Record], known: Mapping[str, State], fences: Sequence[Fence] = ()
    ) -> None:
        for record in records:
            event = record.event
            self._insert((EVENTS, event.id), _validate(build_event_document(record)))
            self._insert((_VERSIONS, (event.data.id, event.version)), event.id)
        latest = {record.event.data.id: record.event for record in records}
        for id_, event in latest.items():
            current = self._read((OUTPLANS, id_))
            if (current["version"] if current else None) != _version(known.get(id_)):
                raise StoreConflict("an outplan has another version than was read")
            self._write((OUTPLANS, id_), build_outplan_document(event))
        for fence in fences:
            stored = await self.read_fence(fence)
            attempt = stored.attempt if fence.attempt else None
            written = replace(stored, outcomes=fence.outcomes, attempt=attempt)
            self._write((FENCES, fence.queue), written)

    async def read_fence(self, fence: Fence) -> Fence:
        return _require_epoch(self._read((FENCES, fence.queue)), fence)

    def commit(self) -> None:
        """Store all writes. Raises StoreConflict if another transaction has written one of them."""
        if any(self._stored.get(key) is not before for key, before in self._before.items()):
            raise StoreConflict("another transaction committed first")
        self._stored.update(self._written)

    def _find(self, collection: str, ids: Iterable[str]) -> list[dict[str, Any]]:
        found = (self._read((collection, id_)) for id_ in ids)
        return [dict(document) for document in found if document is not None]

    def _past(self, version: OutplanVersion) -> State:
        event = parse_record(self._read((EVENTS, self._read((_VERSIONS, version))))).event
        return State(event.data, event.version)

    def _read(self, key: _Key) -> Any:
        return self._written.get(key, self._stored.get(key))

    def _insert(self, key: _Key, value: Any) -> None:
        if self._read(key) is not None:
            raise StoreConflict(f"duplicate key: {key}")
        self._write(key, value)

    def _write(self, key: _Key, value: Any) -> None:
        self._before.setdefault(key, self._stored.get(key))
        self._written[key] = value


class MemoryStore:
    """Documents and their history, as ``outplan.mongodb.store.MongoStore`` holds them.

    It passes the same contract suite and is never unavailable. ``states`` are outplans to begin
    with, without their events.
    """

    def __init__(self, states: Mapping[str, State] = MappingProxyType({})) -> None:
        self._stored: dict[_Key, Any] = {
            (OUTPLANS, id_): _document(state) for id_, state in states.items()
        }
        self._generations: dict[str, int] = {}

    async def prepare(self) -> None:
        """Do nothing: there are no indexes or validators to create."""

    async def ping(self) -> None:
        """Return at once: the store is always available."""

    async def claim(
        self,
        queue: str,
        worker: str,  # noqa: ARG002 - as the real one's
        generation: int,
    ) -> Fence:
        if self._generations.setdefault(queue, generation) > generation:
            raise LayoutChanged(f"another layout is in force: {queue} has a later generation")
        self._generations[queue] = generation
        old: Fence = self._stored.get((FENCES, queue), Fence(queue, 0))
        claimed = replace(old, epoch=old.epoch + 1)
        self._stored[FENCES, queue] = replace(claimed, crashes=claimed.crashes + 1)
        return claimed

    async def release(self, fences: Sequence[Fence]) -> None:
        for fence in fences:
            stored = self._stored[FENCES, fence.queue]
            if stored.epoch == fence.epoch:
                attempt = fence.attempt or stored.attempt
                self._stored[FENCES, fence.queue] = replace(stored, crashes=0, attempt=attempt)

    async def record_attempt(self, fence: Fence, attempt: Attempt) -> None:
        key = (FENCES, fence.queue)
        self._stored[key] = replace(_require_epoch(self._stored.get(key), fence), attempt=attempt)

    async def transact(self, work: Callable[[MemoryTransaction], Awaitable[T]]) -> T:
        """Run ``work`` in one transaction, to its end even if the caller is cancelled."""
        attempt = asyncio.ensure_future(self._attempt(work))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            await asyncio.wait({attempt})
            if not attempt.cancelled():
                attempt.exception()
            raise

    @property
    def states(self) -> dict[str, State]:
        """Return all outplans by their ids, in the order of their creation."""
        return {id_: parse_state(doc) for id_, doc in self._documents(OUTPLANS).items()}

    @property
    def records(self) -> dict[str, Record]:
        """Return all events by their ids, in the order in which they were stored."""
        return {id_: parse_record(doc) for id_, doc in self._documents(EVENTS).items()}

    @property
    def fences(self) -> dict[str, Fence]:
        """Return the fence of each queue."""
        return {key: fence for (kind, key), fence in self._stored.items() if kind == FENCES}

    async def _attempt(self, work: Callable[[MemoryTransaction], Awaitable[T]]) -> T:
        transaction = MemoryTransaction(self._stored)
        result = await work(transaction)
        transaction.commit()
        return result

    def _documents(self, collection: str) -> dict[str, dict[str, Any]]:
        found = ((key, doc) for (kind, key), doc in self._stored.items() if kind == collection)
        return {key: dict(document) for key, document in found}


def _document(state: State) -> dict[str, Any]:
    document = state.outplan.model_dump()
    return {"_id": document.pop("id"), **document, "version": state.version}


def _version(state: State | None) -> int | None:
    return None if state is None else state.version


def _validate(document: dict[str, Any]) -> dict[str, Any]:
    if not schemas.is_valid("outplan", document["data"]):
        raise Unprocessable(f"event {document['_id']!r} violates the contract's schema")
    return document


def _require_epoch(stored: Fence | None, fence: Fence) -> Fence:
    if stored is None or stored.epoch != fence.epoch:
        raise Fenced(f"another worker has claimed {fence.queue}")
    return stored
