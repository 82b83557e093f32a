"""Outages end sessions, however long they are; the worker goes on and rejects no command."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from pamqp.commands import Basic

from outplan.contract.amqp import Publication
from outplan.contract.times import utc_now
from outplan.contract.topology import build_topology
from outplan.domain.poison import MAX_ATTEMPTS
from outplan.errors import BrokerUnavailable, StoreUnavailable
from outplan.testing.memory.broker import MemoryBroker, Message, WorkerSession
from outplan.testing.memory.registry import MemoryRegistry
from outplan.worker.activity import Activity
from outplan.worker.membership import Membership
from outplan.worker.pipeline import SUSPICIOUS_DELIVERIES
from outplan.worker.telemetry import Health, Metrics
from outplan.worker.worker import Dependencies, Worker
from tests.support.memory import FaultyStore
from tests.support.samples import ID, create_body

OUTAGE = SUSPICIOUS_DELIVERIES + MAX_ATTEMPTS + 2


class Outage:
    """A broker whose first sessions end at the first publish, and whose last one does not."""

    def __init__(self) -> None:
        self.events: list[Publication] = []
        self.broker = MemoryBroker(build_topology(), self._take)
        self.heard = asyncio.Event()
        self.sessions = 0
        self.expected = 0

    def _take(self, event: Publication) -> None:
        self.events.append(event)
        if len(self.events) == self.expected:
            self.heard.set()

    def send(self, message_id: str, name: str, body: dict[str, Any]) -> None:
        properties = Basic.Properties(message_id=message_id)
        self.broker.send(Message(name, properties, json.dumps(body).encode()))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[WorkerSession]:
        awake = asyncio.Event()
        awake.set()
        self.sessions += 1
        async with self.broker.worker_session(awake) as session:
            if self.sessions <= OUTAGE:
                session.publish = _refuse  # type: ignore[method-assign, assignment]
            yield session


async def _refuse(_: Sequence[Publication]) -> None:
    raise BrokerUnavailable("delivery acknowledgement timed out")


def build_worker(open_session: Callable[[], AbstractAsyncContextManager[WorkerSession]]) -> Worker:
    metrics, registry = Metrics(), MemoryRegistry()
    health = Health(metrics)
    activity = Activity(health, metrics)
    parts = Dependencies(
        name="me",
        prefix="outplan",
        place={},
        store=FaultyStore(),
        registry=registry,
        membership=Membership(
            registry=registry,
            prefix="outplan",
            worker="me",
            partitions=None,
            report=activity.report,
        ),
        open_session=lambda *_: open_session(),
        clock=utc_now,
        health=health,
        metrics=metrics,
        activity=activity,
    )
    return Worker(parts, batch_size=500, drain_seconds=1)


async def run_until_heard(worker: Worker, outage: Outage) -> None:
    running = asyncio.create_task(worker.run())
    hearing = asyncio.create_task(outage.heard.wait())
    async with asyncio.timeout(30):
        await asyncio.wait({running, hearing}, return_when=asyncio.FIRST_COMPLETED)
        worker.stop()
        await running


async def test_no_command_is_rejected_because_of_a_long_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("outplan.retry.uniform", lambda *_: 0.0)
    outage = Outage()
    outage.send("c-1", "outplan_create", create_body())
    # It leaves no event; only its rejected copy shows its outcome.
    outage.send("c-2", "outplan_delete", {"id": ID, "expected_version": 9})
    for n in range(3, 6):
        outage.send(f"c-{n}", "outplan_update", {"id": ID, "dial_timeout": 1_000 + n})
    outage.expected = 4

    await run_until_heard(build_worker(outage.session), outage)

    assert outage.sessions == OUTAGE + 1
    assert [event.headers["version"] for event in outage.events] == [1, 2, 3, 4]
    codes = [copy.headers["x-problem-code"] for copy in outage.broker.rejected]
    assert codes == ["version_conflict"]


async def test_a_worker_outlives_a_store_that_goes_away_while_a_session_opens() -> None:
    """A session asks for the layout once it has the lock of the bindings."""
    outage, attempts = Outage(), 0
    outage.sessions = OUTAGE

    @asynccontextmanager
    async def open_session() -> AsyncIterator[WorkerSession]:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise StoreUnavailable("not primary")
        async with outage.session() as session:
            yield session

    outage.send("c-1", "outplan_create", create_body())
    outage.expected = 1
    await run_until_heard(build_worker(open_session), outage)

    assert [event.headers["version"] for event in outage.events] == [1]
    assert attempts == 2
