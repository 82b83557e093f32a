"""Change the number of partitions while commands are published and handled (ADR 0014).

Every step can be repeated. A run that is killed, or loses a server, goes on from the stored phase.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import Final

from aiormq.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic
from tenacity import AsyncRetrying

from outplan.contract.topology import BARRIER, Queue, build_topology
from outplan.domain.layout import MAX_PARTITIONS, Layout, Share, assign_shares, count_queues
from outplan.errors import (
    BrokerUnavailable,
    LayoutRefused,
    StoreConflict,
    StoreUnavailable,
)
from outplan.mongodb.registry import MongoRegistry
from outplan.mongodb.store import MongoStore
from outplan.operations.probes import Probes, gather_by_name
from outplan.rabbitmq.bindings import (
    LockTaken,
    bind_slots,
    declare_queues,
    declare_topology,
    hold_lock,
    unbind_slots,
)
from outplan.rabbitmq.connection import Connection, open_connection, translate_errors
from outplan.retry import retrying
from outplan.settings import Settings

# RabbitMQ writes a new quorum queue down only after about a second. A crash before that loses it.
_NEW_QUEUES_SECONDS: Final = 3.0
_HOLDER: Final = "outplan partitions"
_POLL_SECONDS: Final = 0.2
_LOCK_SECONDS: Final = 20
_PERSISTENT: Final = 2


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """A queue's messages that are ready, and its consumers."""

    queue: Queue
    messages: int
    consumers: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Report a change: its layout, what it waits for, and how many messages are ready there.

    ``seconds`` estimates how long these take; None while that cannot be told.
    """

    layout: Layout
    text: str
    messages: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class LayoutView:
    """The layout in force, and the share of each live worker."""

    layout: Layout
    shares: dict[str, Share]


Report = Callable[[Progress | str], None]


@asynccontextmanager
async def open_change(
    settings: Settings, report: Report, *, settle: float, retire: float
) -> AsyncIterator["LayoutChange"]:
    """Open a change of the system that these settings name; close its store with the block."""
    store = MongoStore(settings.mongo_url, settings.mongo_database, "pymongo")
    try:
        yield LayoutChange(
            store, settings.prefix, settings.amqp_url, report, settle=settle, retire=retire
        )
    finally:
        await store.close()


class LayoutChange:
    """Bring a system to another number of partitions, phase by phase.

    ``settle`` is how many seconds the nodes of a broker may take to learn of a binding, ``retire``
    how many seconds a queue without bindings is consumed before it is deleted. Servers that are
    away are waited for; ``report`` is called with that, and with the progress.
    """

    def __init__(
        self,
        store: MongoStore,
        prefix: str,
        amqp_url: str,
        report: Report,
        *,
        settle: float,
        retire: float,
    ) -> None:
        self._store = store
        self._registry: MongoRegistry = store.open_registry(prefix)
        self._prefix = prefix
        self._amqp_url = amqp_url
        self._report = report
        self._settle = settle
        self._retire = retire

    async def run(self, partitions: int) -> Layout:
        """Change to so many partitions, or continue such a change; return the steady layout.

        Also empties and deletes queues that the layout does not have. Raises LayoutRefused.
        """
        layout: Layout = await self._retrying()(self._run, partitions)
        return layout

    async def abort(self) -> Layout:
        """Lead a change in the phase divert back to the former number. Raises LayoutRefused."""
        former: int = await self._retrying()(self._turn_back)
        return await self.run(former)

    async def read_view(self) -> LayoutView:
        """Return the layout with the live workers' shares. Raises LayoutRefused."""
        layout, workers = await self.read_layout(), await self._registry.list_workers()
        return LayoutView(layout, assign_shares(layout, self._prefix, workers))

    async def read_layout(self) -> Layout:
        """Return the layout in force. Raises LayoutRefused on an empty system."""
        layout = await self._registry.read_layout()
        if layout is None:
            raise LayoutRefused(
                f"no worker has started with the prefix {self._prefix} on this database: set "
                "OUTPLAN_PARTITIONS for the first one"
            )
        return layout

    async def _turn_back(self) -> int:
        """Make the former number the target; return it."""
        async with self._open_locked():
            layout = await self.read_layout()
            if layout.is_steady:
                raise LayoutRefused("there is no change to abort")
            if layout.phase != "divert":
                raise LayoutRefused(
                    f"the change to {layout.partitions} partitions cannot be undone any more: "
                    f"finish it with outplan partitions {layout.partitions}, then change back"
                )
            if layout.partitions != layout.former:
                await self._registry.replace_layout(layout, layout.abort(token_hex(8)))
            return layout.former

    async def _run(self, partitions: int) -> Layout:
        _require_possible(await self.read_layout(), partitions)
        async with self._open_locked() as connection:
            layout = await self.read_layout()
            _require_possible(layout, partitions)
            layout = await self._begin(connection, layout, partitions)
            while not layout.is_steady:
                layout = await self._pass_phase(connection, layout)
            return await self._delete_stale_queues(connection, layout)

    @asynccontextmanager
    async def _open_locked(self) -> AsyncIterator[Connection]:
        """Connect, and hold the lock for the block. Raises LayoutRefused if somebody keeps it."""
        topology = build_topology(self._prefix)
        deadline = time.monotonic() + _LOCK_SECONDS
        async with open_connection(self._amqp_url, "partitions") as connection:
            while True:
                try:
                    async with hold_lock(connection, topology):
                        yield connection
                        return
                except LockTaken as error:
                    if time.monotonic() > deadline:
                        raise LayoutRefused(
                            f"{error}: another outplan partitions runs; wait for it, or stop it"
                        ) from error
                # A worker that starts holds it for a moment.
                await asyncio.sleep(_POLL_SECONDS)

    async def _begin(self, connection: Connection, layout: Layout, partitions: int) -> Layout:
        """Declare what the change leads to, and store its first phase if it is new."""
        following = layout
        if layout.is_steady and partitions != layout.partitions:
            following = layout.start(partitions, token_hex(8))
        if following.is_steady:
            return following
        topology = following.build_topology(self._prefix)
        with translate_errors():
            async with connection.temporary_channel() as channel:
                await declare_topology(channel, topology, topology.partitions)
        await self._wait(layout, "letting RabbitMQ write down the queues", _NEW_QUEUES_SECONDS)
        if following is not layout:
            await self._registry.replace_layout(layout, following)
        return following

    async def _pass_phase(self, connection: Connection, layout: Layout) -> Layout:
        """Carry a phase out from its beginning; return the next one, stored."""
        await self._fence_off(layout)
        if layout.phase == "divert":
            await unbind_slots(connection, build_topology(self._prefix, layout.former))
        elif layout.phase == "replay":
            await bind_slots(connection, layout.build_topology(self._prefix))
        if layout.phase == "retire":
            await self._wait(layout, "workers still consume the old queues", self._retire)
        else:
            await self._wait(layout, "letting all nodes learn of the bindings", self._settle)
        await self._publish_barriers(connection, layout)
        await self._wait_until_drained(connection, layout)
        following = layout.advance(token_hex(8))
        await self._registry.replace_layout(layout, following)
        return following

    async def _fence_off(self, layout: Layout) -> None:
        """Keep workers with an older layout from committing what this phase does not consume."""
        largest = build_topology(self._prefix, max(layout.partitions, layout.former))
        consumed = {queue.name for queue in layout.list_consumed(self._prefix)}
        for queue in largest.command_queues:
            if queue.name not in consumed:
                claim = await self._store.claim(queue.name, _HOLDER, layout.generation)
                await self._store.release([claim])

    async def _wait(self, layout: Layout, why: str, seconds: float) -> None:
        self._report(Progress(layout, why, seconds=seconds))
        await asyncio.sleep(seconds)

    async def _publish_barriers(self, connection: Connection, layout: Layout) -> None:
        properties = Basic.Properties(
            delivery_mode=_PERSISTENT, message_type=BARRIER, message_id=layout.token
        )
        with translate_errors():
            async with connection.temporary_channel() as channel:
                for queue in layout.list_awaited(self._prefix):
                    try:
                        await channel.basic_publish(
                            b"", routing_key=queue.name, properties=properties, mandatory=True
                        )
                    except (PublishError, DeliveryError) as error:
                        raise BrokerUnavailable(
                            f"queue {queue.name} did not take a message: {error}"
                        ) from error

    async def _wait_until_drained(self, connection: Connection, layout: Layout) -> None:
        """Wait until the barrier has come through each queue."""
        awaited = layout.list_awaited(self._prefix)
        since, at_first, reported = time.monotonic(), -1, 0.0
        while True:
            stored = await self.read_layout()
            if stored.generation != layout.generation:
                raise StoreConflict("another layout is in force by now")
            left = [queue for queue in awaited if queue.name not in stored.drained]
            if not left:
                return
            depths = await _read_depths(connection, left)
            messages = sum(depth.messages for depth in depths)
            at_first = messages if at_first < 0 else at_first
            if time.monotonic() - reported >= 1:
                reported = time.monotonic()
                text = f"waiting for {', '.join(queue.name for queue in left[:3])}"
                text += f" and {len(left) - 3} more" if len(left) > 3 else ""
                if not await self._registry.list_workers():
                    text = f"no worker is alive: start one; {text}"
                seconds = _estimate(at_first - messages, time.monotonic() - since, messages)
                self._report(Progress(layout, text, messages, seconds))
            await asyncio.sleep(_POLL_SECONDS)

    async def _delete_stale_queues(self, connection: Connection, layout: Layout) -> Layout:
        """Let workers empty the queues that the layout does not have, then delete them."""
        possible = build_topology(self._prefix, MAX_PARTITIONS).partitions
        first = count_queues(layout.partitions)
        stale = {depth.queue.name for depth in await _read_depths(connection, possible[first:])}
        if not stale:
            return layout
        former = max(n for n, queue in enumerate(possible) if queue.name in stale) + 1
        retiring = layout.retire(former, token_hex(8))
        with translate_errors():
            async with connection.temporary_channel() as channel:
                await declare_queues(channel, retiring.list_awaited(self._prefix))
        await self._registry.replace_layout(layout, retiring)
        steady = await self._pass_phase(connection, retiring)
        await self._delete_queues(connection, retiring.list_awaited(self._prefix), steady)
        return steady

    async def _delete_queues(
        self, connection: Connection, queues: Sequence[Queue], layout: Layout
    ) -> None:
        """Delete queues once no worker consumes them; raise LayoutRefused for one with messages."""
        while any(depth.consumers for depth in await _read_depths(connection, queues)):
            self._report(Progress(layout, "workers leave the old queues"))
            await asyncio.sleep(_POLL_SECONDS)
        for depth in await _read_depths(connection, queues):
            if depth.messages:
                raise LayoutRefused(
                    f"{depth.queue.name} got {depth.messages} messages though nothing routes to "
                    f"it: run outplan partitions {layout.partitions} again"
                )
            with translate_errors():
                async with connection.temporary_channel() as channel:
                    await channel.queue_delete(depth.queue.name)

    def _retrying(self) -> AsyncRetrying:
        return retrying(
            BrokerUnavailable,
            StoreUnavailable,
            StoreConflict,
            on_error=lambda error: self._report(f"trying again: {error}"),
        )


async def _read_depths(connection: Connection, queues: Sequence[Queue]) -> list[QueueDepth]:
    """Return the depths of those queues that exist."""
    probes = Probes(connection)
    inspected = await gather_by_name((queue.name, probes.inspect(queue)) for queue in queues)
    for name, answer in inspected.items():
        if answer.outcome not in ("done", "missing"):
            raise BrokerUnavailable(f"queue {name}: {answer.text}")
    found = ((queue, inspected[queue.name]) for queue in queues)
    return [
        QueueDepth(queue, answer.value.message_count, answer.value.consumer_count)
        for queue, answer in found
        if answer.outcome == "done"
    ]


def _estimate(handled: int, seconds: float, left: int) -> float | None:
    return left * seconds / handled if handled > 0 else None


def _require_possible(layout: Layout, partitions: int) -> None:
    """Raise LayoutRefused if a change to another number is under way."""
    if layout.is_steady or partitions == layout.partitions:
        return
    raise LayoutRefused(
        f"a change from {layout.former} to {layout.partitions} partitions is in its phase "
        f"{layout.phase}: finish it with outplan partitions {layout.partitions}"
        + (", or undo it with outplan partitions --abort" if layout.phase == "divert" else "")
    )
