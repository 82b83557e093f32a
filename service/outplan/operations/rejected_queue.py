"""Read every message of the queue of rejected commands, ack some, and requeue the rest.

AMQP cannot peek at a queue: a consumer takes messages, and closing its channel requeues those that
it has not acked. A quorum queue puts requeued messages in front of those never delivered, but
behind those requeued before. So the queue keeps its order only where a consumer takes every
message before it requeues any.
"""

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from tempfile import TemporaryFile
from typing import IO, Any, Final, Self

import aio_pika
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Queue

from outplan.contract.amqp import Delivery
from outplan.errors import BrokerRefused, BrokerUnavailable, OutplanError
from outplan.operations.rejected_message import Summary, summarize
from outplan.rabbitmq.connection import CONNECT_SECONDS, open_connection, translated
from outplan.rabbitmq.frames import WireProperties, read_content_header
from outplan.rabbitmq.reader import FrameHandler

# A consumer's prefetch is at most 65,535, so one consumer after another is added, each with as many
# messages as all before it. The broker requeues the messages of up to 32 consumers in the order of
# their tags, which suffices for 1.5 million messages.
_FIRST_PREFETCH: Final = 1_000
_MAX_PREFETCH: Final = 65_535
_MAX_CONSUMERS: Final = 30
_QUIET_SECONDS: Final = 10.0
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
_content_head: Final = struct.Struct(">HHQH")


@dataclass(frozen=True, slots=True)
class RejectedMessage:
    """Identify a message of the queue. ``number`` counts from 1, the oldest.

    ``span`` is where its body is kept: the offset, the header's length and the body's.
    """

    number: int
    summary: Summary
    tag: int
    routing_key: str
    span: tuple[int, int, int] = (0, 0, 0)


class RejectedQueue(FrameHandler):
    """Hold the messages that were in the queue when it was opened.

    ``other_consumers`` counts the queue's other consumers then; their unacked messages are not
    included. ``missing`` counts messages that the queue reported and did not deliver. Open one with
    ``open_rejected_queue``. Its methods raise BrokerUnavailable.
    """

    def __init__(self, queue: str, spool: IO[bytes] | None) -> None:
        self._queue = queue
        self._spool = spool
        self._spooled = 0
        self._inbox: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._failed: BrokerUnavailable | None = None
        self._received = self._prefetched = self._consumers = 0
        self._channel: AbstractChannel
        self._passive_channel: AbstractChannel
        self.messages: list[RejectedMessage] = []
        self.other_consumers = self.missing = 0

    def on_delivery(self, delivery: Delivery) -> None:
        self._received += 1
        self._inbox.append(delivery)
        self._arrived.set()

    def on_close(self, code: int, reason: str) -> None:
        self._fail(f"the broker closed the connection: {code} {reason}")

    async def take(self, connection: aio_pika.Connection) -> Self:
        """Take every message, the oldest first. Raises BrokerRefused."""
        assert connection.transport is not None
        underlying = connection.transport.connection
        self._passive_channel = await underlying.channel(timeout=CONNECT_SECONDS)
        self._channel = await underlying.channel(timeout=CONNECT_SECONDS)
        for part in (underlying, self._channel):
            part.closing.add_done_callback(self._closed)
        self._channel.on_consumer_cancel_callbacks.add(
            lambda _: self._fail(f"queue {self._queue} was deleted")
        )
        found = await self._declare_passively()
        self.other_consumers = found.consumer_count or 0
        await self._take_messages(found.message_count or 0)
        return self

    def read(self, message: RejectedMessage) -> Delivery:
        """Return a message as the broker delivered it; requires ``with_bodies``."""
        assert self._spool is not None
        start, head, body = message.span
        self._spool.seek(start)
        properties = read_content_header(self._spool.read(head))
        return Delivery(
            message.tag,
            self._queue,
            "",
            message.routing_key,
            True,
            properties,
            self._spool.read(body),
        )

    async def ack(self, messages: Iterable[RejectedMessage]) -> None:
        """Remove messages from the queue; return when the broker has removed them."""
        if self._failed:
            raise self._failed
        with translated():
            for message in messages:
                await self._channel.basic_ack(message.tag, wait=False)
            # The broker handles a channel's methods in order, so this reply follows the acks.
            await self._channel.basic_qos(prefetch_count=_FIRST_PREFETCH)
            await self._declare_passively()

    async def requeue(self) -> None:
        """Return the messages not acked to the queue."""
        with suppress(OutplanError), translated():
            await self._channel.close()

    async def _declare_passively(self) -> Queue.DeclareOk:
        try:
            return await self._passive_channel.queue_declare(self._queue, passive=True)
        except ChannelNotFoundEntity as error:
            raise BrokerRefused(
                f"there is no queue {self._queue}; check --prefix, or start a worker, "
                "which declares it"
            ) from error

    async def _take_messages(self, expected: int) -> None:
        found: list[RejectedMessage] = []
        latest = _EARLIEST
        order: list[tuple[datetime, int]] = []
        while len(found) < expected and await self._has_more():
            message = self._inbox.popleft()
            summary = summarize(message)
            latest = summary.rejected_at or latest
            order.append((latest, len(found)))
            span = self._store(message)
            found.append(RejectedMessage(0, summary, message.tag, message.routing_key, span))
        self.missing = expected - len(found)
        # A reader that was killed while it took messages leaves the queue in another order.
        self.messages = [replace(found[n], number=k) for k, (_, n) in enumerate(sorted(order), 1)]

    def _store(self, message: Delivery) -> tuple[int, int, int]:
        if self._spool is None:
            return (0, 0, 0)
        assert isinstance(message.properties, WireProperties)
        head = _content_head.pack(60, 0, len(message.body), message.properties.flags)
        head += message.properties.raw
        self._spool.write(head + message.body)
        span = (self._spooled, len(head), len(message.body))
        self._spooled += len(head) + len(message.body)
        return span

    async def _has_more(self) -> bool:
        """Wait for another message; return False when the queue has no more."""
        while not self._inbox:
            if self._failed:
                raise self._failed
            self._arrived.clear()
            if self._received >= self._prefetched and not await self._add_consumer():
                return False
            try:
                # A broker under load counts messages as delivered that it is still about to send.
                await asyncio.wait_for(self._arrived.wait(), _QUIET_SECONDS)
            except TimeoutError:
                if (await self._declare_passively()).message_count:
                    raise BrokerUnavailable(f"queue {self._queue} delivers nothing") from None
                return bool(self._inbox)
        return True

    async def _add_consumer(self) -> bool:
        if self._consumers == _MAX_CONSUMERS:
            return False
        prefetch = min(max(self._prefetched, _FIRST_PREFETCH), _MAX_PREFETCH)
        self._consumers += 1
        self._prefetched += prefetch
        await self._channel.basic_qos(prefetch_count=prefetch)
        await self._channel.basic_consume(
            self._queue, _untapped, consumer_tag=f"operator-{self._consumers:02}"
        )
        return True

    def _closed(self, closing: "asyncio.Future[Any]") -> None:
        reason = None if closing.cancelled() else closing.exception()
        self._fail(f"connection closed: {reason!r}")

    def _fail(self, reason: str) -> None:
        self._failed = self._failed or BrokerUnavailable(reason)
        self._arrived.set()


@asynccontextmanager
async def open_rejected_queue(
    url: str, name: str, *, with_bodies: bool
) -> AsyncIterator[RejectedQueue]:
    """Take every message of the queue ``name``; requeue those not acked at the block's end.

    Requeued messages keep their order. Memory holds the summaries; ``with_bodies`` keeps the rest
    in an unnamed file. Raises BrokerUnavailable and BrokerRefused.
    """
    with TemporaryFile() if with_bodies else nullcontext() as spool:
        queue = RejectedQueue(name, spool)
        async with open_connection(url, "operator", queue) as connection:
            try:
                with translated():
                    await queue.take(connection)
                yield queue
            finally:
                await queue.requeue()


async def _untapped(_message: Any) -> None:
    """Never called: no delivery gets past the tap."""
