"""The service with no server at all, for unit tests of what stands around it.

Worker, handler, rules, contract, messages and client are the real ones. What stands in for
RabbitMQ and MongoDB passes the same contract suites as they do.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar, Unpack
from uuid import UUID

from outplan.client import Event, OutcomeUnknown, Outplan, OutplanClient, Result
from outplan.client.requests import CreateFields, Preconditions, UpdateFields
from outplan.client.session import ReconnectingSession
from outplan.contract.amqp import Publication
from outplan.contract.messages import EventType, Problem
from outplan.contract.times import utc_now
from outplan.contract.topology import topology
from outplan.testing.errors import WorkerFailed
from outplan.testing.event_buffer import EventBuffer
from outplan.testing.harness import Document, OutplanService, Rejected
from outplan.testing.memory.broker import STOPPED, MemoryBroker, Message
from outplan.testing.memory.store import MemoryStore
from outplan.testing.raw_command import RawCommand
from outplan.testing.worker_exit import WorkerExit, raise_if_exited, run_unless_exited
from outplan.worker.telemetry import Health, Metrics
from outplan.worker.worker import Dependencies, Worker

T = TypeVar("T")


@asynccontextmanager
async def memory_service(
    prefix: str = "outplan", *, within: float = 30
) -> AsyncIterator[OutplanService]:
    """A worker in this event loop, all that it has done forgotten at the end.

    ``within`` is how many seconds a call may take that has to wait, as for ``live_service``. The
    clock is the real one. Should the worker end by itself, which only a bug makes it do, its error
    is raised at the end, and by the calls before as the cause of WorkerFailed.
    """
    arrivals = EventBuffer()
    broker = MemoryBroker(topology(prefix), lambda publication: arrivals.add(publication.body))
    async with _Client(broker, prefix, within) as client:
        service = MemoryService(broker, client, arrivals, within)
        await service.start_worker()
        try:
            yield service
        finally:
            await service.kill_worker()


class MemoryService:
    """An ``OutplanService`` in memory, from ``memory_service``."""

    def __init__(
        self, broker: MemoryBroker, client: OutplanClient, arrivals: EventBuffer, within: float
    ) -> None:
        self._broker = broker
        self._client = client
        self._arrivals = arrivals
        self._within = within
        self._store = MemoryStore()
        self._awake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._death: WorkerExit = asyncio.get_running_loop().create_future()

    async def publish(
        self,
        name: str,
        body: Mapping[str, Any] | bytes,
        *,
        message_id: str | UUID | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        sent = RawCommand.of(name, body, message_id, headers)
        raise_if_exited(self._death)
        if not await self._broker_runs():
            raise OutcomeUnknown(sent.message_id, STOPPED)
        self._broker.send(Message(sent.name, sent.properties, sent.body))
        return sent.message_id

    async def create(
        self, *, message_id: str | UUID | None = None, **fields: Unpack[CreateFields]
    ) -> Result:
        return await self._unless_it_dies(self._client.create(message_id=message_id, **fields))

    async def update(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[UpdateFields],
    ) -> Result:
        call = self._client.update(outplan_id, message_id=message_id, **fields)
        return await self._unless_it_dies(call)

    async def delete(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[Preconditions],
    ) -> Result:
        call = self._client.delete(outplan_id, message_id=message_id, **fields)
        return await self._unless_it_dies(call)

    async def next_event(
        self,
        kind: EventType | None = None,
        *,
        outplan_id: str | UUID | None = None,
        within: float = 10,
    ) -> Event:
        return await self._unless_it_dies(self._arrivals.next(kind, outplan_id, within))

    async def events(self) -> Sequence[Event]:
        raise_if_exited(self._death)
        return tuple(self._arrivals.all)

    async def documents(self) -> Sequence[Document]:
        raise_if_exited(self._death)
        states = self._store.states.values()
        return tuple(
            Document(Outplan.model_validate(state.outplan.model_dump()), state.version)
            for state in sorted(states, key=lambda s: (s.outplan.tm_create, s.outplan.id))
        )

    async def rejected(self) -> Sequence[Rejected]:
        raise_if_exited(self._death)
        if not await self._broker_runs():
            raise TimeoutError(f"the rejected commands cannot be read: {STOPPED}")
        return tuple(_rejected(copy) for copy in self._broker.rejected)

    async def kill_worker(self) -> None:
        task, self._worker = self._worker, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()

    async def start_worker(self) -> None:
        if self._worker is not None and not self._worker.done():
            return self._awake.set()
        await self.kill_worker()
        self._awake = asyncio.Event()
        self._awake.set()
        self._death = asyncio.get_running_loop().create_future()
        worker = Worker(
            _compose(self._broker, self._store, self._awake), batch_size=500, drain_seconds=0
        )
        self._worker = asyncio.create_task(worker.run())
        self._worker.add_done_callback(partial(_tell, self._death))
        return None

    async def pause_worker(self) -> None:
        self._require_worker()
        self._awake.clear()

    async def resume_worker(self) -> None:
        self._require_worker()
        self._awake.set()

    async def stop_broker(self) -> None:
        self._broker.stop()

    async def start_broker(self) -> None:
        self._broker.start()

    async def _unless_it_dies(self, call: Coroutine[Any, Any, T]) -> T:
        return await run_unless_exited(self._death, call)

    async def _broker_runs(self) -> bool:
        try:
            async with asyncio.timeout(self._within):
                await self._broker.started()
        except TimeoutError:
            return False
        return True

    def _require_worker(self) -> None:
        if self._worker is None or self._worker.done():
            raise WorkerFailed("the worker is not running")


def _tell(death: WorkerExit, worker: asyncio.Task[None]) -> None:
    if worker.cancelled():
        return
    failure = WorkerFailed("the worker has ended by itself")
    failure.__cause__ = worker.exception()
    death.set_result(failure)


class _Client(OutplanClient):
    """The client, its sessions those of a broker in memory."""

    def __init__(self, broker: MemoryBroker, prefix: str, within: float) -> None:
        super().__init__("", prefix=prefix, timeout=within)
        self._broker = broker

    def _new_session(self) -> ReconnectingSession:
        return ReconnectingSession(
            self._route, self._pending_replies.on_reply, self._broker.client_session
        )


def _compose(broker: MemoryBroker, memory: MemoryStore, awake: asyncio.Event) -> Dependencies:
    metrics = Metrics()
    return Dependencies(
        name="memory",
        store=memory,
        open_session=lambda: broker.worker_session(awake),
        topology=broker.layout,
        clock=utc_now,
        health=Health(metrics),
        metrics=metrics,
    )


def _rejected(copy: Publication) -> Rejected:
    original = copy.original
    assert original is not None
    problem = Problem.model_validate_json(copy.headers["x-problem"])
    return Rejected(original.properties.message_id, original.command_name, copy.body, problem)
