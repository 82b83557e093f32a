"""Plant faults in the service's code, one at a time, for the checker to find."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import orjson
from pymongo import InsertOne, ReplaceOne
from pymongo.errors import OperationFailure

from outplan.contract import topology
from outplan.contract.amqp import Delivery, Publication
from outplan.contract.times import utc_now
from outplan.domain import codec
from outplan.domain.codec import Outcome
from outplan.domain.records import Fence, Snapshot
from outplan.mongodb import store
from outplan.mongodb.documents import build_event_document, build_outplan_document
from outplan.mongodb.store import MongoStore, MongoTransaction
from outplan.mongodb.validators import EVENTS, OUTPLANS, VERSION_INDEX
from outplan.operations.partitions import LayoutChange
from outplan.rabbitmq import session as rabbitmq_session
from outplan.rabbitmq.publisher import Publisher
from outplan.rabbitmq.session import Session
from outplan.worker import pipeline


def ack_before_commit() -> None:
    """Ack messages as soon as they are received."""
    receive, ack = Session.receive, Session.ack

    async def receive_and_ack(self: Session, most: int) -> list[Delivery]:
        batch = await receive(self, most)
        if batch:
            await ack(self, batch[-1])
        return batch

    _patch(Session, "receive", receive_and_ack)
    _patch(Session, "ack", _do_nothing)


def publish_before_commit() -> None:
    """Publish a batch's events inside its transaction."""
    transact, publish, current_session = MongoStore.transact, Session.publish, _current_session()
    declared_topology = _declared_topology()
    turn = asyncio.Lock()

    async def one_at_a_time(self: Session, messages: Sequence[Publication]) -> None:
        async with turn:
            await publish(self, messages)

    async def publish_then_commit(self: MongoStore, work: Any) -> Any:
        async def publish_early(transaction: MongoTransaction) -> Any:
            result = await work(transaction)
            if isinstance(result, tuple):
                layout = declared_topology()
                early = [
                    p for o in result[0] for p in codec.build_publications(o, layout, utc_now())
                ]
                await current_session().publish([p for p in early if p.exchange])
            return result

        return await transact(self, publish_early)

    _patch(MongoStore, "transact", publish_then_commit)
    _patch(Session, "publish", one_at_a_time)


def ack_before_publish() -> None:
    """Ack a whole batch once it is committed, before it is published."""
    publish, ack = Session.publish, Session.ack
    last: dict[Session, Delivery] = {}
    publications = codec.build_publications

    def remember(outcome: Outcome, layout: Any, now: datetime) -> list[Publication]:
        for session in sessions:
            last[session] = outcome.delivery
        return publications(outcome, layout, now)

    sessions = _open_sessions()

    async def ack_then_publish(self: Session, messages: Sequence[Publication]) -> None:
        if self in last:
            await ack(self, last[self])
        await publish(self, messages)

    _patch(pipeline, "build_publications", remember)
    _patch(Session, "publish", ack_then_publish)
    _patch(Session, "ack", _do_nothing)


def skip_deduplication() -> None:
    """Skip the look-up of applied commands, and the unique event id that backs it."""
    load, write = MongoTransaction.load, build_event_document

    async def load_without_ids(
        self: MongoTransaction, outplan_ids: Any, _: Any, past: Any = ()
    ) -> Snapshot:
        return await load(self, outplan_ids, [], past)

    def event_document_by_version(record: Any) -> dict[str, Any]:
        document = write(record)
        return {**document, "_id": f"{document['_id']} {document['version']}"}

    _patch(MongoTransaction, "load", load_without_ids)
    _patch(store, "build_event_document", event_document_by_version)


def skip_version_guard() -> None:
    """Overwrite documents at any version; skip the version index and the fence too.

    Either of these would hide the fault.
    """
    prepare = MongoStore.prepare

    def replace_unguarded(event: Any, _: Any) -> Any:
        document = build_outplan_document(event)
        return ReplaceOne({"_id": document["_id"]}, document, upsert=True)

    async def prepare_without_index(self: MongoStore) -> None:
        await prepare(self)
        with suppress(OperationFailure):  # Another worker has dropped it.
            await self._client[self._database.name][EVENTS].drop_index(VERSION_INDEX)

    async def save(self: MongoTransaction, records: Any, *_: Any) -> None:
        if not records:
            return
        await self._write(EVENTS, [InsertOne(build_event_document(r)) for r in records])
        latest = {record.event.data.id: record.event for record in records}
        await self._write(OUTPLANS, [replace_unguarded(event, None) for event in latest.values()])

    _patch(MongoStore, "prepare", prepare_without_index)
    _patch(MongoTransaction, "save", save)


def take_nack_for_confirm() -> None:
    """Take the broker's nacks for confirms."""
    publish_once = Publisher._publish_once

    async def publish_ignoring_nacks(
        self: Publisher, publications: Sequence[Publication]
    ) -> list[int]:
        await publish_once(self, publications)
        return []

    _patch(Publisher, "_publish_once", publish_ignoring_nacks)


def change_repeats() -> None:
    """Publish a duplicate's event with its members in another order."""
    publications = codec.build_publications

    def publications_reordered(outcome: Outcome, layout: Any, now: datetime) -> list[Publication]:
        found = publications(outcome, layout, now)
        if not outcome.duplicate:
            return found
        return [
            replace(p, body=orjson.dumps(orjson.loads(p.body), option=orjson.OPT_SORT_KEYS))
            if p.exchange
            else p
            for p in found
        ]

    _patch(pipeline, "build_publications", publications_reordered)


def consume_twice() -> None:
    """Let all workers consume at once, without the fence."""
    command_queue = topology._command_queue

    def command_queue_shared(name: str, rejected: topology.Queue) -> topology.Queue:
        queue = command_queue(name, rejected)
        arguments = {k: v for k, v in queue.arguments.items() if k != "x-single-active-consumer"}
        return topology.Queue(name, arguments)

    async def skip_fence(_: MongoTransaction, fence: Fence) -> None:
        return None

    _patch(topology, "_command_queue", command_queue_shared)
    _patch(MongoTransaction, "_write_fence", skip_fence)


def swap_replies() -> None:
    """Send each reply of a batch to the next command's correlation id."""
    publish = Session.publish

    async def publish_shifted(self: Session, messages: Sequence[Publication]) -> None:
        replies = [m for m in messages if m.best_effort]
        ids = [m.correlation_id for m in replies]
        others = iter([*ids[1:], *ids[:1]])
        await publish(
            self,
            [replace(m, correlation_id=next(others)) if m.best_effort else m for m in messages],
        )

    _patch(Session, "publish", publish_shifted)


def skip_barrier() -> None:
    """Begin each phase of a layout change while the queues of the phase before have commands."""
    _patch(LayoutChange, "_wait_until_drained", _do_nothing)


PLANTS: Final[dict[str, Callable[[], None]]] = {
    each.__name__: each
    for each in (
        ack_before_commit,
        publish_before_commit,
        ack_before_publish,
        skip_deduplication,
        skip_version_guard,
        take_nack_for_confirm,
        change_repeats,
        consume_twice,
        swap_replies,
        skip_barrier,
    )
}
# These are in the command outplan partitions, not in the worker.
PLANTED_IN_COMMAND: Final = frozenset({skip_barrier.__name__})


def plant(name: str | None) -> None:
    """Plant a fault in this process; do nothing for None or ""."""
    if name:
        PLANTS[name]()


def _patch(owner: Any, name: str, value: Any) -> None:
    assert hasattr(owner, name)
    setattr(owner, name, value)


def _do_nothing(*_: Any) -> Awaitable[None]:
    return asyncio.sleep(0)


def _open_sessions() -> list[Session]:
    """Return a list that always holds the session opened last."""
    found: list[Session] = []
    init = Session.__init__

    def init_and_remember(self: Session, *parts: Any) -> None:
        found[:] = [self]
        init(self, *parts)

    _patch(Session, "__init__", init_and_remember)
    return found


def _declared_topology() -> Callable[[], topology.Topology]:
    """Return a function that returns the topology declared last."""
    found: list[topology.Topology] = []
    declare = rabbitmq_session._declare

    async def declare_and_remember(connection: Any, plan: rabbitmq_session.SessionPlan) -> None:
        found[:] = [plan.topology]
        await declare(connection, plan)

    _patch(rabbitmq_session, "_declare", declare_and_remember)
    return lambda: found[0]


def _current_session() -> Callable[[], Session]:
    sessions = _open_sessions()
    return lambda: sessions[0]
