"""Faults planted in the service, one by one, for the checker to catch."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import orjson
from pymongo import InsertOne, ReplaceOne
from pymongo.errors import OperationFailure

from outplan.contract import topology
from outplan.contract.amqp import Delivery, Publication
from outplan.domain import codec
from outplan.domain.codec import Outcome
from outplan.domain.records import Fence, Snapshot
from outplan.mongodb import store
from outplan.mongodb.documents import event_document, outplan_document
from outplan.mongodb.store import Store, Transaction
from outplan.mongodb.validators import EVENTS, OUTPLANS, VERSION_INDEX
from outplan.rabbitmq.publisher import Publisher
from outplan.rabbitmq.session import Session
from outplan.worker import worker


def ack_before_commit() -> None:
    """Acknowledge what has been received at once."""
    receive, ack = Session.receive, Session.ack

    async def receive_and_ack(self: Session, most: int) -> list[Delivery]:
        batch = await receive(self, most)
        if batch:
            await ack(self, batch[-1])
        return batch

    _patch(Session, "receive", receive_and_ack)
    _patch(Session, "ack", _nothing)


def publish_before_commit() -> None:
    """Publish a batch's events inside its transaction."""
    transact, publish, settled = Store.transact, Session.publish, _current_session()
    turn = asyncio.Lock()

    async def one_at_a_time(self: Session, messages: Sequence[Publication]) -> None:
        async with turn:
            await publish(self, messages)

    async def publish_then_commit(self: Store, work: Any) -> Any:
        async def eager(transaction: Transaction) -> Any:
            result = await work(transaction)
            if isinstance(result, tuple) and result and isinstance(result[0], list):
                layout = settled()._topology
                now = "2026-11-24 00:00:00.000000"
                early = [p for o in result[0] for p in codec.publications(o, layout, now)]
                await settled().publish([p for p in early if p.exchange])
            return result

        return await transact(self, eager)

    _patch(Store, "transact", publish_then_commit)
    _patch(Session, "publish", one_at_a_time)


def ack_before_publish() -> None:
    """Acknowledge a whole batch once it is stored, and publish after that."""
    publish, ack = Session.publish, Session.ack
    last: dict[Session, Delivery] = {}
    publications = codec.publications

    def remember(outcome: Outcome, layout: Any, now: str) -> list[Publication]:
        for session in sessions:
            last[session] = outcome.delivery
        return publications(outcome, layout, now)

    sessions = _open_sessions()

    async def ack_then_publish(self: Session, messages: Sequence[Publication]) -> None:
        if self in last:
            await ack(self, last[self])
        await publish(self, messages)

    _patch(worker, "publications", remember)
    _patch(Session, "publish", ack_then_publish)
    _patch(Session, "ack", _nothing)


def no_inbox() -> None:
    """Don't look up which commands were applied already, nor let the unique id stop a second."""
    load, write = Transaction.load, event_document

    async def forgetful(self: Transaction, outplan_ids: Any, _: Any, past: Any) -> Snapshot:
        return await load(self, outplan_ids, [], past)

    def under_its_version(record: Any) -> dict[str, Any]:
        document = write(record)
        return {**document, "_id": f"{document['_id']} {document['version']}"}

    _patch(Transaction, "load", forgetful)
    _patch(store, "event_document", under_its_version)


def no_version_guard() -> None:
    """Write over whatever is there; and without its two further nets, to be seen at all."""
    prepare = Store.prepare

    def unguarded(event: Any, _: Any) -> Any:
        document = outplan_document(event)
        return ReplaceOne({"_id": document["_id"]}, document, upsert=True)

    async def without_index(self: Store) -> None:
        await prepare(self)
        with suppress(OperationFailure):  # Another worker has dropped it.
            await self._client[self._database.name][EVENTS].drop_index(VERSION_INDEX)

    async def unheld(_: Transaction, fence: Fence) -> None:
        return None

    async def save(self: Transaction, records: Any, known: Any) -> None:
        if not records:
            return
        await self._write(EVENTS, [InsertOne(event_document(r)) for r in records])
        latest = {record.event.data.id: record.event for record in records}
        await self._write(OUTPLANS, [unguarded(event, None) for event in latest.values()])

    _patch(Store, "prepare", without_index)
    _patch(Transaction, "hold", unheld)
    _patch(Transaction, "save", save)


def lost_on_a_nack() -> None:
    """Take the broker's no for a yes."""
    publish_once = Publisher._publish_once

    async def careless(self: Publisher, publications: Sequence[Publication]) -> list[int]:
        await publish_once(self, publications)
        return []

    _patch(Publisher, "_publish_once", careless)


def repeats_differ() -> None:
    """Write a repeat's members in another order."""
    publications = codec.publications

    def shuffled(outcome: Outcome, layout: Any, now: str) -> list[Publication]:
        found = publications(outcome, layout, now)
        if not outcome.duplicate:
            return found
        return [
            replace(p, body=orjson.dumps(orjson.loads(p.body), option=orjson.OPT_SORT_KEYS))
            if p.exchange
            else p
            for p in found
        ]

    _patch(worker, "publications", shuffled)


def two_active() -> None:
    """Let every worker consume at the same time, with no fence between them."""
    command_queue = topology._command_queue

    def shared(name: str, rejected: topology.Queue) -> topology.Queue:
        queue = command_queue(name, rejected)
        arguments = {k: v for k, v in queue.arguments.items() if k != "x-single-active-consumer"}
        return topology.Queue(name, arguments)

    async def unheld(_: Transaction, fence: Fence) -> None:
        return None

    _patch(topology, "_command_queue", shared)
    _patch(Transaction, "hold", unheld)


def reply_to_another() -> None:
    """Give each reply of a batch to the command after its own."""
    publish = Session.publish

    async def shifted(self: Session, messages: Sequence[Publication]) -> None:
        replies = [m for m in messages if m.best_effort]
        ids = [m.correlation_id for m in replies]
        others = iter([*ids[1:], *ids[:1]])
        await publish(
            self,
            [replace(m, correlation_id=next(others)) if m.best_effort else m for m in messages],
        )

    _patch(Session, "publish", shifted)


PLANTS: Final[dict[str, Callable[[], None]]] = {
    each.__name__: each
    for each in (
        ack_before_commit,
        publish_before_commit,
        ack_before_publish,
        no_inbox,
        no_version_guard,
        lost_on_a_nack,
        repeats_differ,
        two_active,
        reply_to_another,
    )
}


def plant(name: str | None) -> None:
    """Put a fault into this process' service; nothing for None."""
    if name:
        PLANTS[name]()


def _patch(owner: Any, name: str, value: Any) -> None:
    assert hasattr(owner, name)
    setattr(owner, name, value)


def _nothing(*_: Any) -> Awaitable[None]:
    return asyncio.sleep(0)


def _open_sessions() -> list[Session]:
    """The session that is open, kept up to date."""
    found: list[Session] = []
    start = Session.start

    async def noted(self: Session, *connections: Any) -> None:
        found[:] = [self]
        await start(self, *connections)

    _patch(Session, "start", noted)
    return found


def _current_session() -> Callable[[], Session]:
    sessions = _open_sessions()
    return lambda: sessions[0]
