"""A long outage of the broker ends many sessions, and no command is rejected for it."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pamqp.commands import Basic

from outplan.contract.amqp import Publication
from outplan.contract.times import utc_now
from outplan.contract.topology import build_topology
from outplan.domain.poison import MAX_ATTEMPTS
from outplan.errors import BrokerUnavailable
from outplan.testing.memory.broker import MemoryBroker, Message, WorkerSession
from outplan.testing.memory.registry import MemoryRegistry
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


async def test_no_command_is_rejected_because_of_a_long_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("outplan.worker.worker.uniform", lambda *_: 0.0)
    outage, store = Outage(), FaultyStore()
    metrics, registry = Metrics(), MemoryRegistry()
    parts = Dependencies(
        name="me",
        prefix="outplan",
        store=store,
        registry=registry,
        membership=Membership(
            registry=registry,
            prefix="outplan",
            worker="me",
            partitions=None,
            count_unordered=metrics.count_unordered,
        ),
        open_session=lambda *_: outage.session(),
        clock=utc_now,
        health=Health(metrics),
        metrics=metrics,
    )
    outage.send("c-1", "outplan_create", create_body())
    # It leaves no event; only its rejected copy shows its outcome.
    outage.send("c-2", "outplan_delete", {"id": ID, "expected_version": 9})
    for n in range(3, 6):
        outage.send(f"c-{n}", "outplan_update", {"id": ID, "dial_timeout": 1_000 + n})
    outage.expected = 4

    worker = Worker(parts, batch_size=500, drain_seconds=1)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(30):
        await outage.heard.wait()
        worker.stop()
        await running

    assert outage.sessions == OUTAGE + 1
    assert [event.headers["version"] for event in outage.events] == [1, 2, 3, 4]
    codes = [copy.headers["x-problem-code"] for copy in outage.broker.rejected]
    assert codes == ["version_conflict"]
