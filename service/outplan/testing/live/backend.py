"""The harness on real servers: a worker process with a prefix and a database of its own."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from secrets import token_hex
from typing import Any, Final, TypeVar, Unpack
from uuid import UUID

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from outplan.client import CommandRejected, Event, Outplan, OutplanClient, Request, Result
from outplan.client.requests import CreateFields, Preconditions, UpdateFields
from outplan.contract.messages import EventType
from outplan.mongodb.documents import state_of
from outplan.testing.deployment import Deployment
from outplan.testing.harness import Document, Rejected
from outplan.testing.live.cleanup import open_folder
from outplan.testing.live.raw_command_publisher import RawCommandPublisher, open_publisher
from outplan.testing.live.recorder import EventRecorder, record_events
from outplan.testing.live.rejected import read_rejected
from outplan.testing.live.worker import Worker
from outplan.testing.raw_command import RawCommand
from outplan.testing.servers import RabbitServer, Servers
from outplan.testing.worker_exit import run_unless_exited

T = TypeVar("T")

# A reply may overtake the event or the rejected copy that was sent with it; not by much.
_BEHIND_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.02


class LiveService:
    """An `OutplanService` that is a worker process at ``place``.

    Its calls raise WorkerFailed, with the end of the worker's log, when that ended by itself.
    """

    def __init__(
        self,
        place: Deployment,
        within: float,
        worker: Worker,
        broker: "_Broker",
        client: OutplanClient,
        publisher: RawCommandPublisher,
        witness: EventRecorder,
        database: AsyncDatabase[dict[str, Any]],
    ) -> None:
        self.deployment = place
        self._within = within
        self._worker = worker
        self._broker = broker
        self._client = client
        self._publisher = publisher
        self._witness = witness
        self._database = database
        self._owed_events: Counter[str] = Counter()
        self._owed_rejects: set[str] = set()

    def log(self) -> str:
        """The end of the worker's log."""
        return self._worker.log()

    async def publish(
        self,
        name: str,
        body: Mapping[str, Any] | bytes,
        *,
        message_id: str | UUID | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        sent = RawCommand.of(name, body, message_id, headers)
        await self._unless_it_dies(self._publisher.publish(sent))
        return sent.message_id

    async def create(
        self, *, message_id: str | UUID | None = None, **fields: Unpack[CreateFields]
    ) -> Result:
        return await self._ask(Request.create(message_id=message_id, **fields))

    async def update(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[UpdateFields],
    ) -> Result:
        return await self._ask(Request.update(outplan_id, message_id=message_id, **fields))

    async def delete(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[Preconditions],
    ) -> Result:
        return await self._ask(Request.delete(outplan_id, message_id=message_id, **fields))

    async def next_event(
        self,
        kind: EventType | None = None,
        *,
        outplan_id: str | UUID | None = None,
        within: float = 10,
    ) -> Event:
        arriving = self._witness.buffer.next(kind, outplan_id, within)
        return await self._unless_it_dies(arriving)

    async def events(self) -> Sequence[Event]:
        await self._unless_it_dies(self._see_all())
        self._owed_events.clear()
        return tuple(self._witness.buffer.all)

    async def documents(self) -> Sequence[Document]:
        self._worker.check()
        found = await self._database["outplans"].find().sort({"tm_create": 1, "_id": 1}).to_list()
        states = [state_of(document) for document in found]
        return tuple(
            Document(Outplan.model_validate(state.outplan.model_dump()), state.version)
            for state in states
        )

    async def rejected(self) -> Sequence[Rejected]:
        found = await self._unless_it_dies(self._read_rejected())
        with suppress(TimeoutError):
            async with asyncio.timeout(_BEHIND_SECONDS):
                while self._owed_rejects - {copy.message_id for copy in found}:
                    await asyncio.sleep(_LOOK_SECONDS)
                    found = await self._read_rejected()
        self._owed_rejects.clear()
        return tuple(found)

    async def kill_worker(self) -> None:
        await self._worker.kill()

    async def start_worker(self) -> None:
        await self._worker.start()

    async def pause_worker(self) -> None:
        await self._worker.pause()

    async def resume_worker(self) -> None:
        await self._worker.resume()

    async def stop_broker(self) -> None:
        # What a call has returned is seen, as it is without servers.
        await self._see_all()
        await self._broker.stop()

    async def start_broker(self) -> None:
        await self._broker.start()

    async def _ask(self, request: Request) -> Result:
        request.encoded()  # What the client refuses itself is never sent, and so never rejected.
        try:
            result = await self._unless_it_dies(self._client.ask(request))
        except CommandRejected:
            self._owed_rejects.add(request.message_id)
            raise
        if result.status == "accepted":
            self._owed_events[request.message_id] += 1
        return result

    async def _unless_it_dies(self, call: Coroutine[Any, Any, T]) -> T:
        return await run_unless_exited(self._worker.death, call)

    async def _read_rejected(self) -> list[Rejected]:
        return await read_rejected(self.deployment.amqp_url, self.deployment.prefix, self._within)

    async def _see_all(self) -> None:
        with suppress(TimeoutError):
            await self._witness.until(self._all_seen, _BEHIND_SECONDS)

    def _all_seen(self) -> bool:
        return self._owed_events <= self._witness.times_seen


class _Broker:
    """The broker, which a test may stop, and which others may need after it."""

    def __init__(self, server: RabbitServer) -> None:
        self._server = server
        self._runs = True
        self._was_stopped = False

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.stop)
        self._was_stopped, self._runs = True, False

    async def start(self) -> None:
        await asyncio.to_thread(self._server.start)
        self._runs = True

    async def leave(self, place: Deployment, queues: Iterable[str]) -> None:
        """Leave it as it was found: it runs, and nothing of the test is in it."""
        if not self._runs:
            await self.start()
        # RabbitMQ 3.10: a queue deleted just after the broker's start ends the supervisor of all
        # dead-lettering by quorum queues, and from then on nobody can consume from a new one.
        # Queues in a broker that was stopped, and so is this run's own, are in nobody's way.
        if not self._was_stopped:
            await place.drop_queues(queues)


@asynccontextmanager
async def live_service(servers: Servers, *, within: float = 30) -> AsyncIterator[LiveService]:
    """A worker of the caller's own on these servers; nothing of it is left when the block ends.

    ``within`` is how many seconds a call may take that has to wait: where the worker is dead or
    paused, or the broker is stopped. create, update, delete and publish then raise OutcomeUnknown,
    rejected TimeoutError. Raises WorkerFailed when the worker does not become ready.
    """
    name = f"test-{token_hex(6)}"
    place = Deployment(servers.rabbitmq.url, servers.mongodb.url, name, name)
    queues = [f"{name}.witness"]
    async with AsyncExitStack() as stack:
        # The tests' own servers end with the tests, and all that is on them.
        on_servers = queues if servers.mode == "urls" else None
        worker = Worker(place, *stack.enter_context(open_folder(place, on_servers)))
        broker = _Broker(servers.rabbitmq)
        stack.push_async_callback(broker.leave, place, queues)
        stack.push_async_callback(place.drop_database)
        stack.push_async_callback(worker.kill)
        await worker.launch()
        seen = await stack.enter_async_context(record_events(place.amqp_url, name))
        mongo = await stack.enter_async_context(AsyncMongoClient[dict[str, Any]](place.mongo_url))
        await worker.ready()
        client = OutplanClient(place.amqp_url, prefix=name, timeout=within)
        await stack.enter_async_context(client)
        raw = await stack.enter_async_context(open_publisher(place.amqp_url, name, within))
        yield LiveService(place, within, worker, broker, client, raw, seen, mongo[name])
