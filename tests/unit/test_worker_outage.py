"""A broker that takes nothing for long ends session after session: that is no command's fault."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from pamqp.commands import Basic

from outplan.bootstrap import utc_now
from outplan.contract.amqp import Publication
from outplan.contract.topology import PREFETCH, topology
from outplan.domain.dedup import MAX_TRIALS
from outplan.errors import BrokerUnavailable
from outplan.testing.memory.broker import MemoryBroker, Message, WorkerSession
from outplan.worker.handler import Handler
from outplan.worker.telemetry import Health, Metrics
from outplan.worker.worker import SUSPICIOUS, Limits, Wiring, Worker
from tests.support.memory import Memory
from tests.support.samples import ID, create_body

OUTAGE = SUSPICIOUS + MAX_TRIALS + 2


class Outage:
    """A broker of some sessions that end at whatever they publish, and then of a whole one."""

    def __init__(self) -> None:
        self.events: list[Publication] = []
        self.broker = MemoryBroker(topology(), self._take)
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


async def test_no_command_is_given_up_in_a_long_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outplan.worker.worker.uniform", lambda *_: 0.0)
    outage, store = Outage(), Memory()
    health = Health(metrics := Metrics())
    handler = partial(Handler, store, "me", PREFETCH, utc_now, partial(health.trouble, "store"))
    wiring = Wiring(
        store=store,  # type: ignore[arg-type]
        open_session=outage.session,
        make_handler=handler,
        topology=outage.broker.layout,
        clock=utc_now,
        health=health,
        metrics=metrics,
    )
    outage.send("c-1", "outplan_create", create_body())
    # Nothing is stored of it: all that tells of it is a reply.
    outage.send("c-2", "outplan_delete", {"id": ID, "expected_version": 9})
    for n in range(3, 6):
        outage.send(f"c-{n}", "outplan_update", {"id": ID, "dial_timeout": 1_000 + n})
    outage.expected = 4

    worker = Worker(wiring, Limits(500, 1))
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(30):
        await outage.heard.wait()
        worker.stop()
        await running

    assert outage.sessions == OUTAGE + 1
    assert [event.headers["version"] for event in outage.events] == [1, 2, 3, 4]
    codes = [copy.headers["x-problem-code"] for copy in outage.broker.rejected]
    assert codes == ["version_conflict"]
