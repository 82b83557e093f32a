"""Run the service in memory, for unit tests of the code around it.

Worker, handler, rules, contract, messages and client are the real ones. The stand-ins for
RabbitMQ and MongoDB pass the same contract suites as the real ones do.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from outplan.client import OutcomeUnknown, OutplanClient, Request, Result
from outplan.client.session import ReconnectingSession
from outplan.contract.amqp import Publication
from outplan.contract.messages import Problem
from outplan.contract.times import utc_now
from outplan.contract.topology import build_topology
from outplan.domain.decider import State
from outplan.testing.errors import WorkerFailed
from outplan.testing.event_buffer import EventBuffer
from outplan.testing.harness import AsyncService, Rejected
from outplan.testing.memory.broker import STOPPED, MemoryBroker, Message
from outplan.testing.memory.registry import MemoryRegistry
from outplan.testing.memory.store import MemoryStore
from outplan.testing.raw_command import RawCommand
from outplan.testing.worker_exit import WorkerExit
from outplan.worker.activity import Activity
from outplan.worker.membership import Membership
from outplan.worker.telemetry import Health, Metrics
from outplan.worker.worker import Dependencies, Worker


class MemoryWorker:
    """A worker that runs as a task in this event loop.

    ``exited`` is done when it has ended by itself, which only a bug makes it do.
    """

    def __init__(self, broker: MemoryBroker, store: MemoryStore) -> None:
        self.exited: WorkerExit = asyncio.get_running_loop().create_future()
        self._broker = broker
        self._store = store
        self._awake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._is_running:
            self._awake.set()
            return
        await self.kill()
        self._awake = asyncio.Event()
        self._awake.set()
        self.exited = asyncio.get_running_loop().create_future()
        worker = Worker(
            _compose(self._broker, self._store, self._awake), batch_size=500, drain_seconds=0
        )
        self._task = asyncio.create_task(worker.run())
        self._task.add_done_callback(self._report_exit)

    async def kill(self) -> None:
        """Cancel it. Raises the error that it ended with, if any."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()

    async def pause(self) -> None:
        self._require_running()
        self._awake.clear()

    async def resume(self) -> None:
        self._require_running()
        self._awake.set()

    @property
    def _is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def _require_running(self) -> None:
        if not self._is_running:
            raise WorkerFailed("the worker is not running")

    def _report_exit(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            error = WorkerFailed("the worker has exited by itself")
            error.__cause__ = task.exception()
            self.exited.set_result(error)


@dataclass(frozen=True, kw_only=True)
class MemoryBackend:
    """A `Backend` without servers."""

    within: float
    worker: MemoryWorker
    broker: MemoryBroker
    client: OutplanClient
    store: MemoryStore
    events: EventBuffer

    async def ask(self, request: Request) -> Result:
        return await self.client.ask(request)

    async def publish(self, command: RawCommand) -> None:
        if not await self._is_broker_running():
            raise OutcomeUnknown(command.message_id, STOPPED)
        self.broker.send(Message(command.routing_key, command.properties, command.body))

    async def catch_up(self) -> None:
        """Return at once: a published event is in the buffer."""

    async def read_states(self) -> Sequence[State]:
        return list(self.store.states.values())

    async def read_rejected(self) -> Sequence[Rejected]:
        if not await self._is_broker_running():
            raise TimeoutError(f"the rejected commands cannot be read: {STOPPED}")
        return [_to_rejected(copy) for copy in self.broker.rejected]

    async def _is_broker_running(self) -> bool:
        try:
            async with asyncio.timeout(self.within):
                await self.broker.wait_until_started()
        except TimeoutError:
            return False
        return True


@asynccontextmanager
async def memory_service(
    prefix: str = "outplan", *, within: float = 30
) -> AsyncIterator[AsyncService]:
    """Run a worker in this event loop; forget all that it has stored at the end.

    ``within`` limits the calls that need the worker or the broker, as in ``live_service``. The
    clock is the real one. If the worker ends by itself, which only a bug makes it do, calls raise
    WorkerFailed with the cause, and the block's end raises the cause.
    """
    events = EventBuffer()
    broker = MemoryBroker(build_topology(prefix), lambda publication: events.add(publication.body))
    store = MemoryStore()
    worker = MemoryWorker(broker, store)
    async with _MemoryClient(broker, prefix, within) as client:
        await worker.start()
        try:
            yield AsyncService(
                MemoryBackend(
                    within=within,
                    worker=worker,
                    broker=broker,
                    client=client,
                    store=store,
                    events=events,
                )
            )
        finally:
            await worker.kill()


class _MemoryClient(OutplanClient):
    """The client, with sessions of a broker in memory."""

    def __init__(self, broker: MemoryBroker, prefix: str, within: float) -> None:
        super().__init__("", prefix=prefix, timeout=within)
        self._broker = broker

    def _new_session(self) -> ReconnectingSession:
        return ReconnectingSession(
            self._route, self._pending_replies.on_reply, self._broker.client_session
        )


def _compose(broker: MemoryBroker, store: MemoryStore, awake: asyncio.Event) -> Dependencies:
    metrics, registry, prefix = Metrics(), MemoryRegistry(), broker.layout.events.name
    health = Health(metrics)
    activity = Activity(health, metrics)
    prefix = prefix.removesuffix(".events")
    return Dependencies(
        name="memory",
        prefix=prefix,
        place={},
        store=store,
        registry=registry,
        membership=Membership(
            registry=registry,
            prefix=prefix,
            worker="memory",
            partitions=None,
            report=activity.report,
        ),
        open_session=lambda *_: broker.worker_session(awake),
        clock=utc_now,
        health=health,
        metrics=metrics,
        activity=activity,
    )


def _to_rejected(copy: Publication) -> Rejected:
    original = copy.original
    assert original is not None
    problem = Problem.model_validate_json(copy.headers["x-problem"])
    return Rejected(original.properties.message_id, original.command_name, copy.body, problem)
