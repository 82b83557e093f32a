"""Sessions with the broker: declare, consume, publish.

A session is a pair of plain connections. One consumes and one publishes, so that an alarm, which
blocks the publishing connection, does not hold up acks. A fault on either ends the session;
nothing is repaired in place. (A nack is not a fault: see ``publisher``.)
"""

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
    Set,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from aiormq.channel import Channel
from yarl import URL

from outplan.contract.amqp import Delivery, Publication
from outplan.contract.topology import (
    BARRIER,
    CONSUMER_TIMEOUT_MILLISECONDS,
    NO_PHASE,
    PREFETCH,
    Queue,
    Topology,
)
from outplan.errors import OutplanError
from outplan.rabbitmq.bindings import (
    LockTaken,
    bind_slots,
    declare_topology,
    hold_lock,
    remove_other_bindings,
)
from outplan.rabbitmq.connection import (
    Connection,
    ConnectionGuard,
    open_connection,
    translate_errors,
)
from outplan.rabbitmq.frames import write_publication
from outplan.rabbitmq.publisher import Confirms, OnError, Publisher
from outplan.rabbitmq.reader import FrameHandler, unused_callback
from outplan.rabbitmq.versions import find_known_defect

_START_SECONDS: Final = 30
_LOCK_SECONDS: Final = 0.1
_LOCK_ATTEMPTS: Final = 50
_BATCH_BYTES: Final = 16 * 1024 * 1024
# Headers are walked field by field: one byte of them costs as much time as many of a body.
_HEADER_WEIGHT: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """The ``queues`` to declare, and the names of those to consume.

    ``require_layout`` raises LayoutChanged once the plan is outdated. A session that
    ``asserts_slots`` binds them; if it ``is_first`` in its process, it also removes bindings that
    the layout does not have from its ``own`` queues.
    """

    topology: Topology
    queues: tuple[Queue, ...]
    consumed: Collection[str]
    own: Collection[str] = ()
    asserts_slots: bool = False
    is_first: bool = False
    require_layout: Callable[[], Awaitable[None]]


class Inbox(FrameHandler):
    """The deliveries that have arrived and no batch has taken yet.

    ``last_tag`` is the last delivery's tag, and ``queues`` those that have delivered.
    """

    def __init__(self) -> None:
        self.last_tag = 0
        self.queues: set[str] = set()
        self._deliveries: deque[Delivery] = deque()
        self._changed = asyncio.Event()
        self._is_closed = False

    def on_delivery(self, delivery: Delivery) -> None:
        self.last_tag = delivery.tag
        self.queues.add(delivery.queue)
        self._deliveries.append(delivery)
        self._changed.set()

    def close(self) -> None:
        """Let ``take`` return nothing from now on."""
        self._is_closed = True
        self._changed.set()

    async def take(self, most: int) -> list[Delivery]:
        """Return what has arrived, ``most`` at most; wait for the first, never for more."""
        deliveries = self._deliveries
        while not deliveries and not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
        if self._is_closed:
            return []
        batch = [deliveries.popleft()]
        size = _weigh(batch[0])
        while deliveries and len(batch) < most and size < _BATCH_BYTES:
            batch.append(deliveries.popleft())
            size += _weigh(batch[-1])
        return batch


class Session:
    """One pair of connections, from ``open_session``.

    Every call may raise BrokerUnavailable, after which the session is of no more use. Deliveries
    come in their queue's order. Not for concurrent use, except ``receive`` beside ``publish``.
    ``known_defect`` describes a defect of this version of RabbitMQ; None for no known one.
    ``other_consumers`` has, for each queue, the number of active consumers before this session's.
    """

    def __init__(
        self,
        consuming: Connection,
        publishing: Connection,
        inbox: Inbox,
        channel: Channel,
        publisher: Publisher,
        barriers: Channel,
        user: str,
        other_consumers: Mapping[str, int],
    ) -> None:
        self.known_defect = find_known_defect(consuming.broker_version)
        self.other_consumers = other_consumers
        self._publishing = publishing
        self._barriers = barriers
        self._user = user
        self._acked = 0
        self._guard = consuming.guard
        self._inbox = inbox
        self._channel = channel
        self._publisher = publisher

    @property
    def unacked(self) -> int:
        """The number of deliveries that are not acked, received or not."""
        return self._inbox.last_tag - self._acked

    @property
    def delivered(self) -> Set[str]:
        """The queues that have delivered a message."""
        return self._inbox.queues

    async def receive(self, most: int) -> list[Delivery]:
        """Return what has arrived, ``most`` at most; wait for the first, never for more.

        Returns nothing once ``stop_receiving`` was called. The consumer is not cancelled then: a
        cancelled single active consumer hands the queue over at once, while its messages are still
        unacked, and later messages would overtake them. Closing requeues them all in order.
        """
        return await self._inbox.take(most)

    def stop_receiving(self) -> None:
        """Let ``receive`` return nothing from now on."""
        self._inbox.close()

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish and await every confirm, as `Publisher.publish` does."""
        await self._publisher.publish(publications)

    async def ack(self, delivery: Delivery) -> None:
        """Ack this delivery and all before it.

        Waits until the ack is written: closing would lose what the driver still queues.
        """
        await self._guard.wait(self._channel.basic_ack(delivery.tag, multiple=True, wait=True))
        self._acked = delivery.tag

    async def confirm_ownership(self) -> None:
        """Return when the broker has answered on the consuming channel.

        Until then it has given nothing that was delivered on this channel to another consumer.
        """
        await self._guard.wait(self._channel.basic_qos(prefetch_count=PREFETCH))

    async def watch(self) -> None:
        """Wait for the session's end, then raise BrokerUnavailable with the reason."""
        await self._guard.raise_when_lost()

    async def is_blocked(self) -> bool:
        """Return whether the broker blocks publishers, as it does in a memory or disk alarm."""
        return await self._publisher.is_blocked()

    async def send_barriers(self, queues: Iterable[str]) -> None:
        """Send a barrier that belongs to no phase through each queue, to its active consumer."""
        number, frame_max = self._barriers.number, self._publishing.frame_max
        # Their confirms are not awaited: a full queue refuses one, and then delivers something else
        # soon.
        frames = [
            write_publication(
                number,
                Publication("", queue, b"", {}, message_id=NO_PHASE, type=BARRIER),
                frame_max,
                self._user,
            )
            for queue in queues
        ]
        if frames:
            await self._publishing.write(b"".join(frames))


@asynccontextmanager
async def open_session(plan: SessionPlan, url: str, on_error: OnError) -> AsyncIterator[Session]:
    """Connect twice, declare, consume. Raises BrokerUnavailable (try again) or BrokerRefused.

    ``on_error`` is called with each Nacked that is not about replies alone. Raises LayoutChanged.
    """
    guard, inbox = ConnectionGuard(), Inbox()
    confirms = Confirms(guard, plan.topology.rejected.name)
    user = URL(url).user or "guest"
    async with (
        open_connection(url, "consume", guard) as consuming,
        open_connection(url, "publish", guard) as publishing,
    ):
        with translate_errors():
            # A broker that has just started may take a declaration and never answer it.
            async with asyncio.timeout(_START_SECONDS):
                await _declare(consuming, plan)
                publisher = await Publisher.open(publishing, confirms, user, on_error)
                channel = await _open_consuming_channel(consuming, inbox)
                barriers = await publishing.open_channel(FrameHandler())
                others = await _consume(channel, plan.consumed)
        session = Session(consuming, publishing, inbox, channel, publisher, barriers, user, others)
        tidying = asyncio.create_task(_tidy_up(consuming, plan))
        try:
            yield session
        finally:
            tidying.cancel()
            await asyncio.wait({tidying})


async def _declare(connection: Connection, plan: SessionPlan) -> None:
    topology, channel = plan.topology, await connection.open_channel()
    await declare_topology(channel, topology, plan.queues)
    if plan.asserts_slots:
        await _assert_slots(connection, plan)


async def _assert_slots(connection: Connection, plan: SessionPlan) -> None:
    """Bind each slot to its partition, unless a change of the layout begins."""
    for _ in range(_LOCK_ATTEMPTS):
        try:
            async with hold_lock(connection, plan.topology):
                # Under the lock, because a change of the layout takes it first.
                await plan.require_layout()
                await bind_slots(connection, plan.topology)
                return
        except LockTaken:
            await plan.require_layout()
            await asyncio.sleep(_LOCK_SECONDS)
    # Another worker is asserting the same bindings, or hangs: the broker then ends its connection.


async def _tidy_up(connection: Connection, plan: SessionPlan) -> None:
    if plan.asserts_slots and plan.is_first:
        # The session's end, or its next one, says what is wrong.
        with suppress(OutplanError), translate_errors():
            await _remove_other_bindings(connection, plan)


async def _remove_other_bindings(connection: Connection, plan: SessionPlan) -> None:
    """Remove bindings that the layout does not have from the plan's own queues.

    There are hundreds of possible ones for each queue. So others get the lock between two queues.
    """
    for queue in plan.own:
        is_done = False
        while not is_done:
            with suppress(LockTaken):
                async with hold_lock(connection, plan.topology):
                    await plan.require_layout()
                    await remove_other_bindings(connection, plan.topology, queue)
                    is_done = True
            await asyncio.sleep(_LOCK_SECONDS)


async def _open_consuming_channel(connection: Connection, inbox: Inbox) -> Channel:
    channel = await connection.open_channel(inbox)
    await channel.basic_qos(prefetch_count=PREFETCH)
    return channel


async def _consume(channel: Channel, queues: Iterable[str]) -> dict[str, int]:
    """Consume queues; return how many active consumers each had before."""
    others: dict[str, int] = {}
    # Versions before 4.3 ignore it.
    arguments: dict[str, Any] = {"x-consumer-timeout": CONSUMER_TIMEOUT_MILLISECONDS}
    for queue in queues:
        declared = await channel.queue_declare(queue, passive=True)
        others[queue] = declared.consumer_count or 0
        # The frame reader learns a delivery's queue from its consumer tag.
        await channel.basic_consume(queue, unused_callback, consumer_tag=queue, arguments=arguments)
    return others


def _weigh(delivery: Delivery) -> int:
    return len(delivery.body) + _HEADER_WEIGHT * len(delivery.properties.raw)
