"""Run a worker process on real servers, with a prefix and a database of its own."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Final

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from outplan.client import CommandRejected, OutplanClient, Request, Result
from outplan.domain.decider import State
from outplan.mongodb.documents import parse_state
from outplan.testing.deployment import Deployment
from outplan.testing.event_buffer import EventBuffer
from outplan.testing.harness import AsyncService, Rejected
from outplan.testing.live.cleanup import open_folder
from outplan.testing.live.raw_command_publisher import (
    RawCommandPublisher,
    open_raw_command_publisher,
)
from outplan.testing.live.recorder import EventRecorder, record_events, recorder_queue
from outplan.testing.live.rejected import read_rejected
from outplan.testing.live.worker import WorkerProcess
from outplan.testing.raw_command import RawCommand
from outplan.testing.servers import RabbitServer, Servers
from outplan.testing.worker_exit import run_unless_exited

# A reply may overtake the event or the rejected copy that was sent before it, though not by much.
_CATCH_UP_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02


class LiveBroker:
    """Stop and start the broker of a deployment."""

    def __init__(self, server: RabbitServer) -> None:
        self._server = server
        self._is_running = True
        self._was_stopped = False

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.stop)
        self._was_stopped, self._is_running = True, False

    async def start(self) -> None:
        await asyncio.to_thread(self._server.start)
        self._is_running = True

    async def restore(self, deployment: Deployment, further_queues: Iterable[str]) -> None:
        """Leave it running, without the deployment's queues."""
        if not self._is_running:
            await self.start()
        # RabbitMQ 3.10: deleting a queue just after the broker's start ends the supervisor of
        # dead-lettering by quorum queues; then no new one can be consumed. A broker that was
        # stopped is the tests' own, so its queues may stay.
        if not self._was_stopped:
            await deployment.drop_queues(further_queues)


@dataclass(frozen=True, kw_only=True)
class LiveBackend:
    """A `Backend` of a worker process and real servers."""

    deployment: Deployment
    within: float
    worker: WorkerProcess
    broker: LiveBroker
    client: OutplanClient
    publisher: RawCommandPublisher
    recorder: EventRecorder
    database: AsyncDatabase[dict[str, Any]]
    _expected_events: Counter[str] = field(default_factory=Counter)
    _expected_rejected: set[str] = field(default_factory=set)

    @property
    def events(self) -> EventBuffer:
        return self.recorder.buffer

    async def ask(self, request: Request) -> Result:
        try:
            result = await self.client.ask(request)
        except CommandRejected:
            self._expected_rejected.add(request.message_id)
            raise
        if result.status == "accepted":
            self._expected_events[request.message_id] += 1
        return result

    async def publish(self, command: RawCommand) -> None:
        await run_unless_exited(self.worker.exited, self.publisher.publish(command))

    async def catch_up(self) -> None:
        expected, seen = self._expected_events, self.recorder.times_seen
        with suppress(TimeoutError):
            await self.recorder.wait_for(lambda: expected <= seen, _CATCH_UP_SECONDS)

    async def read_states(self) -> Sequence[State]:
        return [parse_state(it) for it in await self.database["outplans"].find().to_list()]

    async def read_rejected(self) -> Sequence[Rejected]:
        rejected = await self._read_rejected()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                while self._expected_rejected - {copy.message_id for copy in rejected}:
                    await asyncio.sleep(_POLL_SECONDS)
                    rejected = await self._read_rejected()
        self._expected_rejected.clear()
        return rejected

    async def _read_rejected(self) -> list[Rejected]:
        return await read_rejected(self.deployment.amqp_url, self.deployment.prefix, self.within)


class LiveService(AsyncService):
    """An `AsyncService` of a worker process on real servers."""

    def __init__(self, backend: LiveBackend) -> None:
        super().__init__(backend)
        self._live = backend

    @property
    def deployment(self) -> Deployment:
        """Return the names that the worker has to itself."""
        return self._live.deployment

    def log(self) -> str:
        """Return the end of the worker's log."""
        return self._live.worker.log()


@asynccontextmanager
async def live_service(servers: Servers, *, within: float = 30) -> AsyncIterator[LiveService]:
    """Start a worker on these servers; remove it and all its data when the block ends.

    ``within`` limits, in seconds, the calls that need the worker or the broker. When it is over,
    create, update, delete and publish raise OutcomeUnknown and rejected raises TimeoutError.
    Raises WorkerFailed if the worker does not become ready.
    """
    name = f"test-{token_hex(6)}"
    deployment = Deployment(servers.rabbitmq.url, servers.mongodb.url, name, name)
    further_queues = [recorder_queue(name)]
    async with AsyncExitStack() as stack:
        # The tests' own servers end with the tests, and so does all on them.
        on_servers = further_queues if servers.mode == "urls" else None
        worker = WorkerProcess(
            deployment, *stack.enter_context(open_folder(deployment, on_servers))
        )
        broker = LiveBroker(servers.rabbitmq)
        stack.push_async_callback(broker.restore, deployment, further_queues)
        stack.push_async_callback(deployment.drop_database)
        stack.push_async_callback(worker.kill)
        await worker.launch()
        recorder = await stack.enter_async_context(record_events(deployment.amqp_url, name))
        mongo = await stack.enter_async_context(
            AsyncMongoClient[dict[str, Any]](deployment.mongo_url)
        )
        await worker.wait_until_ready()
        client = OutplanClient(deployment.amqp_url, prefix=name, timeout=within)
        await stack.enter_async_context(client)
        publisher = await stack.enter_async_context(
            open_raw_command_publisher(deployment.amqp_url, name, within)
        )
        yield LiveService(
            LiveBackend(
                deployment=deployment,
                within=within,
                worker=worker,
                broker=broker,
                client=client,
                publisher=publisher,
                recorder=recorder,
                database=mongo[name],
            )
        )
