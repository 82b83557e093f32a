"""See what a running service does: its workers, its queues and its subscribers' queues."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from outplan.contract.topology import Queue, Topology
from outplan.domain.layout import EXPIRY_SECONDS, Layout, Share, assign_shares
from outplan.errors import BrokerUnavailable, OutplanError
from outplan.mongodb.inspection import MongoInspector, QueueHolder, SeenWorker
from outplan.operations.probes import Probes, gather_by_name
from outplan.operations.rejected_queue import open_rejected_queue
from outplan.rabbitmq.connection import open_connection
from outplan.rabbitmq.management import (
    ManagedQueue,
    Management,
    default_management_url,
    open_management,
)
from outplan.settings import Settings
from outplan.urls import get_virtual_host

T = TypeVar("T")

_SECONDS: Final = 10
_MAX_REJECTED: Final = 10_000


@dataclass(frozen=True, slots=True)
class QueueView:
    """A command queue, or the queue of rejected commands.

    ``unacked`` comes from the management API and is None without it. ``holder`` is the worker that
    handled its commands last. Workers read the ``is_consumed`` ones in this phase.
    """

    name: str
    ready: int
    consumers: int
    unacked: int | None = None
    holder: QueueHolder | None = None
    is_consumed: bool = False


@dataclass(frozen=True, slots=True)
class Overview:
    """What a service does now. What a server did not tell is None, or an empty list.

    ``errors`` says by server what could not be read: ``mongodb``, ``rabbitmq`` or ``management``.
    ``workers`` has those of the last hour that did not stop cleanly, ``shares`` the live ones'.
    """

    topology: Topology
    layout: Layout | None
    workers: list[SeenWorker]
    shares: dict[str, Share]
    queues: list[QueueView]
    subscribers: list[ManagedQueue] | None
    errors: dict[str, str]

    @property
    def live(self) -> list[SeenWorker]:
        """The workers that share the queues now."""
        return [worker for worker in self.workers if worker.seconds <= EXPIRY_SECONDS]

    def list_seized(self) -> list[QueueView]:
        """List the queues whose active consumer is none of the live workers."""
        active = {queue for worker in self.live for queue in worker.report.active}
        return [
            queue
            for queue in self.queues
            if queue.is_consumed and queue.consumers and queue.name not in active
        ]

    def find_unacked(self, queue: QueueView) -> int | None:
        """Return a queue's unacked messages, from the management API or else from its workers."""
        if queue.unacked is not None or not queue.is_consumed:
            return queue.unacked
        active = [worker for worker in self.live if queue.name in worker.report.active]
        if any(len(worker.report.active) > 1 for worker in active):
            return None  # They report a sum.
        return sum(worker.report.unacked for worker in active)


class Observer:
    """Read overviews over connections that stay open, from ``open_observer``."""

    def __init__(
        self, settings: Settings, inspector: MongoInspector, management: Management
    ) -> None:
        self._settings = settings
        self._inspector = inspector
        self._management = management

    async def read(self) -> Overview:
        """Read an overview; a server that does not answer leaves its part empty."""
        errors: dict[str, str] = {}
        prefix = self._settings.prefix
        store = await _attempt("mongodb", self._read_store(), errors)
        layout, workers, holders = store or (None, [], {})
        effective = layout or Layout(0, "steady", self._settings.partitions or 1, 1)
        topology = effective.build_topology(prefix)
        consumed = {queue.name for queue in effective.list_consumed(prefix)}
        wanted = {q.name: q for q in (*topology.queues, *effective.list_consumed(prefix))}
        depths = await _attempt("rabbitmq", self._read_depths(wanted.values()), errors) or {}
        managed = await _attempt("management", self._read_managed(topology, list(depths)), errors)
        queues, subscribers = managed or ({}, None)
        live = [worker.name for worker in workers if worker.seconds <= EXPIRY_SECONDS]
        return Overview(
            topology,
            layout,
            workers,
            assign_shares(effective, prefix, live),
            [
                QueueView(
                    name,
                    ready,
                    consumers,
                    queues[name].unacked if name in queues else None,
                    holders.get(name),
                    name in consumed,
                )
                for name, (ready, consumers) in depths.items()
            ],
            subscribers,
            errors,
        )

    async def count_rejected(self, overview: Overview) -> dict[str, int] | None:
        """Count the rejected commands by code; None if there are too many to read each time."""
        name = overview.topology.rejected.name
        depth = sum(queue.ready for queue in overview.queues if queue.name == name)
        if depth > _MAX_REJECTED:
            return None
        if not depth:
            return {}
        url = self._settings.amqp_url
        async with open_rejected_queue(url, name, with_bodies=False) as queue:
            return dict(Counter(m.summary.code or "unknown" for m in queue.messages).most_common())

    async def _read_store(
        self,
    ) -> tuple[Layout | None, list[SeenWorker], dict[str, QueueHolder]]:
        prefix = self._settings.prefix
        layout = await self._inspector.open_registry(prefix).read_layout()
        workers = await self._inspector.list_seen_workers(prefix)
        # Workers consume no queue before there is a layout.
        queues = [] if layout is None else layout.list_consumed(prefix)
        holders = await self._inspector.list_holders(queue.name for queue in queues)
        return layout, workers, {holder.queue: holder for holder in holders}

    async def _read_depths(self, queues: Iterable[Queue]) -> dict[str, tuple[int, int]]:
        """Return the ready messages and the consumers of those queues that exist."""
        async with open_connection(self._settings.amqp_url, "status") as connection:
            probes = Probes(connection)
            found = await gather_by_name((queue.name, probes.inspect(queue)) for queue in queues)
        depths: dict[str, tuple[int, int]] = {}
        for name, answer in found.items():
            if answer.outcome == "done":
                depths[name] = answer.value.message_count, answer.value.consumer_count
            elif answer.outcome != "missing":
                raise BrokerUnavailable(f"queue {name}: {answer.text}")
        return depths

    async def _read_managed(
        self, topology: Topology, names: list[str]
    ) -> tuple[dict[str, ManagedQueue], list[ManagedQueue]]:
        subscribers = await self._management.list_bound_queues(topology.events.name)
        queues = await asyncio.gather(*(self._management.read_queue(name) for name in names))
        return {queue.name: queue for queue in queues if queue is not None}, subscribers


@asynccontextmanager
async def open_observer(settings: Settings) -> AsyncIterator[Observer]:
    """Observe the service that these settings name. Raises WrongSetting."""
    async with AsyncExitStack() as stack:
        inspector = MongoInspector(settings.mongo_url, settings.mongo_database)
        stack.push_async_callback(inspector.close)
        url = settings.management_url or default_management_url(settings.amqp_url)
        management = await stack.enter_async_context(
            open_management(url, get_virtual_host(settings.amqp_url))
        )
        yield Observer(settings, inspector, management)


async def _attempt(server: str, reading: Awaitable[T], errors: dict[str, str]) -> T | None:
    try:
        async with asyncio.timeout(_SECONDS):
            return await reading
    except TimeoutError:
        errors[server] = f"no answer within {_SECONDS} s"
    except OutplanError as error:
        errors[server] = str(error)
    return None
