"""Subscribe to events, over one connection after the other."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity
from pydantic import ValidationError

from outplan.client.connection import open_connection, translate_errors
from outplan.client.errors import ClientError, Refused
from outplan.client.loop_guard import LoopGuard
from outplan.client.models import Event
from outplan.client.versions import Filter, Gap, Unreadable, Versions
from outplan.contract.amqp import Delivery, escape_surrogates
from outplan.contract.invalid import describe_invalid
from outplan.contract.messages import EventType
from outplan.contract.topology import NO_DELIVERY_LIMIT, build_topology
from outplan.errors import BrokerUnavailable
from outplan.rabbitmq.connection import Connection
from outplan.rabbitmq.delivery_queue import DeliveryQueue
from outplan.rabbitmq.reader import unused_callback
from outplan.retry import SPREAD_BACKOFF, SessionBackoff, retrying

_log = logging.getLogger("outplan.client")

# Fixed: messages requeued by a lost connection stay in order only if the next consumer takes them
# all at once.
_PREFETCH: Final = 250
_START_SECONDS: Final = 10
_DURABLE_QUEUE: Final[Mapping[str, str | int | bool]] = {
    "x-queue-type": "quorum",
    "x-single-active-consumer": True,
    # By default, RabbitMQ 4 would drop an event after 20 deliveries.
    "x-delivery-limit": NO_DELIVERY_LIMIT,
}

Item = Event | Gap | Unreadable


@dataclass(frozen=True, slots=True)
class Reconnected:
    """A report that events arrive again.

    Without ``lossless``, the queue is temporary or was deleted, and events published meanwhile are
    gone. The next event of an outplan shows which are missing, but it may come late: read the
    documents again, or use a durable queue.
    """

    lossless: bool


class Events:
    """A stream of events, from ``events``: iterate it, best in an ``async with`` block.

    Entering the block returns once the queue is bound. Only one loop may run at a time; it ends
    when the stream is closed. A closed stream cannot be entered again (RuntimeError), and only the
    event loop that opened the stream can use it (RuntimeError, also after a fork).
    """

    def __init__(
        self,
        source: "_Source",
        versions: Versions,
        on_reconnect: Callable[[Reconnected], None] | None,
    ) -> None:
        self._source = source
        self._versions = versions
        self._on_reconnect = on_reconnect
        self._stack = AsyncExitStack()
        self._consumer: _Consumer | None = None
        self._connecting: asyncio.Task[_Consumer] | None = None
        self._backoff = SessionBackoff()
        self._was_open = False
        self._is_closed = False
        self._ready: deque[Item] = deque()
        self._unacked: Delivery | None = None
        self._guard: LoopGuard | None = None

    async def __aenter__(self) -> Self:
        if self._is_closed:
            raise RuntimeError("the stream was closed: subscribe anew")
        try:
            await self._open()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection, which ends the loop. The last item stays unacked."""
        if self._guard is not None and not self._guard.is_forked:
            self._guard.check()
        self._is_closed = True
        self._ready.clear()
        if self._guard is None or self._guard.is_forked:
            return
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        await self._stack.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        self._check_loop()
        while not self._ready:
            await self.settle()
            await self._read_next()
        return self._ready.popleft()

    async def settle(self) -> None:
        """Ack the loop's last item, as taking the next one does. Call it when leaving the loop."""
        self._check_loop()
        message, self._unacked = self._unacked, None
        if message is not None and self._consumer is not None:
            # Shielded: a loop that gives up waiting for the next item is done with this one.
            await asyncio.shield(asyncio.create_task(self._ack(self._consumer, message)))

    def _check_loop(self) -> None:
        """Raise RuntimeError in any other event loop than the first one."""
        if self._guard is None:
            self._guard = LoopGuard("stream of events")
        self._guard.check()

    async def _ack(self, consumer: "_Consumer", message: Delivery) -> None:
        if await consumer.ack(message):
            self._backoff.note_progress()

    async def _read_next(self) -> None:
        consumer = await self._open()
        try:
            self._unacked = await consumer.next()
        except BrokerUnavailable as error:
            _log.info("no events for now: %s", error)
            self._consumer = None
        else:
            self._ready.extend(parse_message(self._unacked, self._versions))

    async def _open(self) -> "_Consumer":
        """Return the open consumer, or reconnect: forever once there has been one."""
        self._check_loop()
        if self._is_closed:
            raise StopAsyncIteration
        if self._consumer is not None:
            return self._consumer
        consumer = self._consumer = await self._reconnect()
        if self._was_open and self._on_reconnect is not None:
            self._on_reconnect(Reconnected(lossless=consumer.is_lossless))
        self._was_open = True
        return consumer

    async def _reconnect(self) -> "_Consumer":
        """Connect, retrying; StopAsyncIteration if the stream is closed meanwhile."""
        refused = (Refused,) if self._was_open else ()
        attempts = retrying(BrokerUnavailable, *refused, on_error=_log_error, wait=SPREAD_BACKOFF)

        async def connect() -> _Consumer:
            await self._backoff.wait()
            consumer: _Consumer = await attempts(self._connect)
            return consumer

        # In a task of its own, so that ``aclose`` can cancel it.
        self._connecting = asyncio.create_task(connect())
        try:
            return await self._connecting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise StopAsyncIteration from None
        finally:
            self._connecting = None

    async def _connect(self) -> "_Consumer":
        await self._stack.aclose()
        connection = await self._stack.enter_async_context(
            open_connection(self._source.url, "events")
        )
        with translate_errors():
            async with asyncio.timeout(_START_SECONDS):
                return await _Consumer.start(connection, self._source)


def events(
    amqp_url: str,
    *,
    prefix: str = "outplan",
    kinds: Collection[EventType] = (),
    customer_id: str | UUID | None = None,
    outplan_id: str | UUID | None = None,
    queue: str | None = None,
    seen: Mapping[str, int] | Mapping[UUID, int] | None = None,
    on_reconnect: Callable[[Reconnected], None] | None = None,
) -> Events:
    """Subscribe to events; iterating yields Event, Gap and Unreadable.

    Without ``queue``, use a temporary queue and miss the events published while disconnected. With
    it, use a durable quorum queue of that name, which collects events also while nobody consumes
    (of two processes on one queue, one is active and the other stands by). The loop acks an event
    when it takes the next one. ``seen`` maps outplan ids to the last version that the caller knows.

    Iterating waits for a broker or a service that is not there yet, and raises Refused if
    RabbitMQ refuses the first connection. Raises ValueError for a filter that no event fits,
    for a key of ``seen`` that is no UUID, and for an empty queue name.
    """
    if queue == "":
        raise ValueError("a durable queue has a name; without one, leave queue out")
    wanted = Filter.of(kinds, customer_id, outplan_id)
    source = _Source(amqp_url, build_topology(prefix).events.name, queue, wanted.binding_keys)
    return Events(source, Versions(wanted, seen or {}), on_reconnect)


@dataclass(frozen=True, slots=True)
class _Source:
    """The queue that events come from; without ``queue``, a temporary one."""

    url: str
    exchange: str
    queue: str | None
    binding_keys: tuple[str, ...]

    async def declare(self, channel: Channel) -> str:
        """Declare and bind the queue; return its name."""
        if self.queue is not None:
            name = self.queue
            await channel.queue_declare(name, durable=True, arguments=dict(_DURABLE_QUEUE))
        else:
            name = (await channel.queue_declare(exclusive=True)).queue or ""
        for key in self.binding_keys:
            await channel.queue_bind(name, self.exchange, key)
        return name


class _Consumer:
    """A consumer over one connection.

    ``is_lossless``: the queue was there before, and collected what was published.
    """

    def __init__(
        self, connection: Connection, channel: Channel, messages: DeliveryQueue, is_lossless: bool
    ) -> None:
        self.is_lossless = is_lossless
        self.next = messages.take
        self._guard = connection.guard
        self._channel = channel

    @classmethod
    async def start(cls, connection: Connection, source: _Source) -> Self:
        """Declare the queue and consume."""
        is_lossless = source.queue is not None and await _has_queue(connection, source.queue)
        messages = DeliveryQueue(connection.guard)
        channel = await connection.open_channel(messages)
        queue = await source.declare(channel)
        await channel.basic_qos(prefetch_count=_PREFETCH)
        await channel.basic_consume(queue, unused_callback)
        return cls(connection, channel, messages, is_lossless)

    async def ack(self, message: Delivery) -> bool:
        """Ack the message; return whether the ack was written.

        If not, the message comes again and is dropped as a repeat.
        """
        try:
            with translate_errors():
                await self._channel.basic_ack(message.tag, wait=True)
        except (ClientError, BrokerUnavailable) as error:
            self._guard.fail(str(error))
            return False
        return True


async def _has_queue(connection: Connection, name: str) -> bool:
    # On a channel of its own: the broker closes it if there is no queue.
    async with connection.temporary_channel() as channel:
        try:
            await channel.queue_declare(name, passive=True)
        except ChannelNotFoundEntity:
            return False
        return True


def parse_message(message: Delivery, versions: Versions) -> list[Item]:
    """Return the items that a message stands for; none for a repeat.

    Only the body counts: other people may set any properties.
    """
    try:
        event = Event.read(message.body)
    except ValidationError as error:
        reason = f"this is no event: {describe_invalid(error)}"
        return [Unreadable(escape_surrogates(message.routing_key), message.body, reason)]
    return list(versions.judge(event))


def _log_error(error: BaseException) -> None:
    _log.info("no events for now: %s", error)
