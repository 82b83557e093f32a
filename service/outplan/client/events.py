"""Events as a stream that survives whatever happens to the connection."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from aiormq.abc import AbstractChannel, DeliveredMessage

from outplan.client.connection import (
    Connection,
    TransientError,
    open_connection,
    retrying,
    translated,
)
from outplan.client.errors import ClientError, Refused
from outplan.client.models import Event
from outplan.client.versions import Filter, Gap, Unreadable, Versions
from outplan.contract.messages import EventType
from outplan.contract.topology import NO_DELIVERY_LIMIT, topology

_log = logging.getLogger("outplan.client")

# Not the caller's to choose: what a lost connection gives back stays in order only while the next
# takes at once all that it had.
_PREFETCH: Final = 250
_START_SECONDS: Final = 10

Item = Event | Gap | Unreadable


@dataclass(frozen=True, slots=True)
class Reconnected:
    """Tells that the events come again.

    Not ``lossless``: the queue is temporary, or somebody had deleted it, and what was published
    meanwhile is gone. An outplan's next event shows that some are missing, but it may be long in
    coming: read the documents again, or use a durable queue.
    """

    lossless: bool


class Events:
    """A stream of events, from ``events``: iterate it, best in an ``async with`` block.

    Entering the block returns once the queue is bound. For one loop at a time, which ends when the
    stream is closed; one that is closed cannot be entered again (RuntimeError).
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
        self._arrivals: _Arrivals | None = None
        self._connecting: asyncio.Task[_Arrivals] | None = None
        self._was_open = False
        self._closed = False
        self._ready: deque[Item] = deque()
        self._unacked: DeliveredMessage | None = None

    async def __aenter__(self) -> Self:
        if self._closed:
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
        """Close the connection, which ends the loop. What it was given last is not acknowledged."""
        self._closed = True
        self._ready.clear()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        await self._stack.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        while not self._ready:
            await self.settle()
            await self._take()
        return self._ready.popleft()

    async def settle(self) -> None:
        """Acknowledge what the loop was given last, as taking the next would: for a loop's end."""
        message, self._unacked = self._unacked, None
        if message is not None and self._arrivals is not None:
            # Shielded: whoever gives up waiting for the next has still done with this one.
            await asyncio.shield(asyncio.create_task(self._arrivals.ack(message)))

    async def _take(self) -> None:
        arrivals = await self._open()
        try:
            self._unacked = await arrivals.next()
        except TransientError as error:
            _log.info("no events for now: %s", error)
            self._arrivals = None
        else:
            self._ready.extend(_read(self._unacked, self._versions))

    async def _open(self) -> "_Arrivals":
        """The open connection, or another: tried for ever once there has been one."""
        if self._closed:
            raise StopAsyncIteration
        if self._arrivals is not None:
            return self._arrivals
        arrivals = self._arrivals = await self._connected()
        if self._was_open and self._on_reconnect is not None:
            self._on_reconnect(Reconnected(lossless=arrivals.lossless))
        self._was_open = True
        return arrivals

    async def _connected(self) -> "_Arrivals":
        """Connect, with patience; StopAsyncIteration where the stream is closed meanwhile."""
        unmended = (Refused,) if self._was_open else ()
        connect: Coroutine[Any, Any, _Arrivals] = retrying(_on_error, *unmended)(self._connect)
        # A task of its own, for ``aclose`` to end.
        self._connecting = asyncio.create_task(connect)
        try:
            return await self._connecting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise StopAsyncIteration from None
        finally:
            self._connecting = None

    async def _connect(self) -> "_Arrivals":
        await self._stack.aclose()
        wire = await self._stack.enter_async_context(open_connection(self._source.url, "events"))
        arrivals = _Arrivals(wire)
        with translated():
            async with asyncio.timeout(_START_SECONDS):
                await arrivals.start(self._source)
        return arrivals


def events(
    amqp_url: str,
    *,
    prefix: str = "outplan",
    kinds: Collection[EventType] = (),
    customer_id: str | UUID | None = None,
    outplan_id: str | UUID | None = None,
    queue: str | None = None,
    seen: Mapping[str, int] | None = None,
    on_reconnect: Callable[[Reconnected], None] | None = None,
) -> Events:
    """Subscribe to what becomes of outplans; iterating yields Event, Gap and Unreadable.

    Without ``queue`` a temporary one is used, and events published while the connection is lost
    are missed; with it a durable quorum queue of that name, which collects them also while nobody
    runs (two processes on one queue: one is active, the other stands by). An event is acknowledged
    when the loop takes the next. ``seen`` says up to which version the caller knows which outplan.
    It waits for a broker, or a service, that is not there yet; raises Refused where RabbitMQ
    refuses the first connection. ValueError for a filter that no event fits, and an empty name.
    """
    if queue == "":
        raise ValueError("a durable queue has a name; without one, leave queue out")
    wanted = Filter.of(kinds, customer_id, outplan_id)
    source = _Source(amqp_url, topology(prefix).events.name, queue, wanted.binding_keys)
    return Events(source, Versions(wanted, seen or {}), on_reconnect)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the events come from."""

    url: str
    exchange: str
    queue: str | None
    binding_keys: tuple[str, ...]

    @property
    def durable(self) -> bool:
        return self.queue is not None

    async def declared(self, channel: AbstractChannel) -> str:
        """Declare and bind the queue: its name."""
        name = await (self._durable(channel) if self.durable else _temporary(channel))
        for key in self.binding_keys:
            await channel.queue_bind(name, self.exchange, key)
        return name

    async def _durable(self, channel: AbstractChannel) -> str:
        name = self.queue or ""
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            # RabbitMQ 4 would drop an event that a dialer died on 20 times.
            "x-delivery-limit": NO_DELIVERY_LIMIT,
        }
        await channel.queue_declare(name, durable=True, arguments=arguments)
        return name


async def _temporary(channel: AbstractChannel) -> str:
    declared = await channel.queue_declare(exclusive=True)
    assert declared.queue is not None
    return declared.queue


class _Arrivals:
    """What one connection delivers, in order; what has arrived is had even when it is lost."""

    def __init__(self, wire: Connection) -> None:
        self._wire = wire
        self._messages: asyncio.Queue[DeliveredMessage | None] = asyncio.Queue()
        self._channel: AbstractChannel
        self.lossless = False

    async def start(self, source: _Source) -> None:
        self.lossless = source.queue is not None and await self._wire.has_queue(source.queue)
        self._channel = await self._wire.channel()
        queue = await source.declared(self._channel)
        await self._channel.basic_qos(prefetch_count=_PREFETCH)
        await self._channel.basic_consume(queue, self._arrived)
        self._wire.lost.add_done_callback(lambda _: self._messages.put_nowait(None))

    async def next(self) -> DeliveredMessage:
        """Await the next message. Raises TransientError after the last."""
        message = await self._messages.get()
        if message is None:
            raise self._wire.lost.result()
        return message

    async def ack(self, message: DeliveredMessage) -> None:
        """Acknowledge it; where that fails it comes again, and is dropped as a repeat."""
        assert message.delivery_tag is not None
        try:
            with translated():
                await self._channel.basic_ack(message.delivery_tag, wait=True)
        except ClientError as error:
            self._wire.fail(str(error))

    async def _arrived(self, message: DeliveredMessage) -> None:
        self._messages.put_nowait(message)


def _read(message: DeliveredMessage, versions: Versions) -> list[Item]:
    try:
        event = Event.read(message.body)
    except ValueError as error:
        return [Unreadable(message.routing_key or "", message.body, str(error))]
    return list(versions.judge(event))


def _on_error(error: BaseException) -> None:
    _log.info("no events for now: %s", error)
