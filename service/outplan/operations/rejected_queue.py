"""Read every message of the queue of rejected commands, ack some, and requeue the rest.

AMQP cannot peek at a queue: a consumer takes messages, and closing its channel requeues those that
it has not acked. A quorum queue puts requeued messages in front of those never delivered, but
behind those requeued before. So the queue keeps its order only if a consumer takes every
message before it requeues any.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import takewhile
from tempfile import TemporaryFile
from typing import IO, Final

from aiormq.abc import AbstractChannel
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Queue

from outplan.contract.amqp import Delivery
from outplan.errors import BrokerRefused, BrokerUnavailable, OutplanError
from outplan.operations.rejected_message import Summary, summarize
from outplan.rabbitmq.connection import (
    CONNECT_SECONDS,
    ConnectionGuard,
    open_connection,
    translate_errors,
)
from outplan.rabbitmq.frames import WireProperties, read_content_header, write_content_header
from outplan.rabbitmq.reader import FrameHandler, unused_callback

# A consumer's prefetch is at most 65,535, so one consumer after another is added, each with as many
# messages as all before it. The broker requeues the messages of up to 32 consumers in the order of
# their tags, which suffices for 1.5 million messages.
_FIRST_PREFETCH: Final = 1_000
_MAX_PREFETCH: Final = 65_535
_MAX_CONSUMERS: Final = 30
_QUIET_SECONDS: Final = 10.0
# RabbitMQ 3.10 keeps acks back in the channel while 32 of them are not in the queue's log yet, and
# drops them when the channel closes.
_ACKS_AT_A_TIME: Final = 16
_SYNCHRONIZING_TAG: Final = "operator-synchronizing"
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)


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


class _Inbox(FrameHandler):
    """Hold the deliveries that are not read yet; ``changed`` is set at each, and at the end."""

    def __init__(self, guard: ConnectionGuard) -> None:
        self.deliveries: deque[Delivery] = deque()
        self.received = 0
        self.changed = asyncio.Event()
        guard.lost.add_done_callback(lambda _: self.changed.set())

    def on_delivery(self, delivery: Delivery) -> None:
        self.received += 1
        self.deliveries.append(delivery)
        self.changed.set()


class RejectedQueue:
    """Hold the messages that were in the queue when it was opened.

    ``other_consumers`` counts the queue's other consumers then; their unacked messages are not
    included. ``missing`` counts messages that the queue reported and did not deliver. Open one with
    ``open_rejected_queue``. Its methods raise BrokerUnavailable.
    """

    def __init__(
        self,
        name: str,
        spool: IO[bytes] | None,
        guard: ConnectionGuard,
        inbox: _Inbox,
        channel: Channel,
        passive_channel: AbstractChannel,
    ) -> None:
        self.name = name
        self._spool = spool
        self._spooled = 0
        self._guard = guard
        self._inbox = inbox
        self._channel = channel
        self._passive_channel = passive_channel
        self._prefetched = self._consumers = 0
        self.messages: list[RejectedMessage] = []
        self._acked: set[int] = set()
        self.other_consumers = self.missing = 0

    async def take(self) -> None:
        """Take every message, the oldest first. Raises BrokerRefused."""
        found = await self._declare_passively()
        self.other_consumers = found.consumer_count or 0
        await self._take_messages(found.message_count or 0)

    def read(self, message: RejectedMessage) -> Delivery:
        """Return a message as the broker delivered it; requires ``with_bodies``."""
        assert self._spool is not None
        start, head, body = message.span
        self._spool.seek(start)
        properties = read_content_header(self._spool.read(head))
        return Delivery(
            message.tag,
            self.name,
            "",
            message.routing_key,
            True,
            properties,
            self._spool.read(body),
        )

    async def ack(self, messages: Iterable[RejectedMessage]) -> None:
        """Remove messages from the queue; return when the broker has removed them."""
        tags = {message.tag for message in messages}
        self._guard.raise_if_lost()
        with translate_errors():
            left = sorted(tags - await self._ack_front(tags))
            for at in range(0, len(left), _ACKS_AT_A_TIME):
                for tag in left[at : at + _ACKS_AT_A_TIME]:
                    await self._channel.basic_ack(tag, wait=False)
                await self._synchronize()
        self._acked |= tags

    async def _ack_front(self, tags: set[int]) -> set[int]:
        """Ack with one method those that no other unacked message precedes; return them."""
        if len(tags) <= _ACKS_AT_A_TIME:
            return set()
        unacked = sorted(m.tag for m in self.messages if m.tag not in self._acked)
        front = set(takewhile(tags.__contains__, unacked))
        if front:
            await self._channel.basic_ack(max(front), multiple=True, wait=False)
            await self._synchronize()
        return front

    async def _synchronize(self) -> None:
        """Wait until the queue has taken the acks.

        The channel's other replies do not wait for that. But a new consumer is entered in the
        queue's log, behind the acks.
        """
        await self._channel.basic_qos(prefetch_count=1)
        await self._channel.basic_consume(
            self.name, unused_callback, consumer_tag=_SYNCHRONIZING_TAG
        )
        await self._channel.basic_cancel(_SYNCHRONIZING_TAG)

    async def requeue(self) -> None:
        """Return the messages not acked to the queue."""
        with suppress(OutplanError), translate_errors():
            await self._channel.close()

    async def _declare_passively(self) -> Queue.DeclareOk:
        try:
            return await self._passive_channel.queue_declare(self.name, passive=True)
        except ChannelNotFoundEntity as error:
            raise BrokerRefused(
                f"there is no queue {self.name}; check --prefix, or start a worker, "
                "which declares it"
            ) from error

    async def _take_messages(self, expected: int) -> None:
        found: list[RejectedMessage] = []
        latest = _EARLIEST
        order: list[tuple[datetime, int]] = []
        while len(found) < expected and await self._has_more():
            message = self._inbox.deliveries.popleft()
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
        head = write_content_header(message.properties, len(message.body))
        self._spool.write(head + message.body)
        span = (self._spooled, len(head), len(message.body))
        self._spooled += len(head) + len(message.body)
        return span

    async def _has_more(self) -> bool:
        """Wait for another message; return False when the queue has no more."""
        inbox = self._inbox
        while not inbox.deliveries:
            self._guard.raise_if_lost()
            inbox.changed.clear()
            if inbox.received >= self._prefetched and not await self._add_consumer():
                return False
            try:
                # A broker under load counts messages as delivered that it is still about to send.
                await asyncio.wait_for(inbox.changed.wait(), _QUIET_SECONDS)
            except TimeoutError:
                if (await self._declare_passively()).message_count:
                    raise BrokerUnavailable(f"queue {self.name} delivers nothing") from None
                return bool(inbox.deliveries)
        return True

    async def _add_consumer(self) -> bool:
        if self._consumers == _MAX_CONSUMERS:
            return False
        prefetch = min(max(self._prefetched, _FIRST_PREFETCH), _MAX_PREFETCH)
        self._consumers += 1
        self._prefetched += prefetch
        await self._channel.basic_qos(prefetch_count=prefetch)
        await self._channel.basic_consume(
            self.name, unused_callback, consumer_tag=f"operator-{self._consumers:02}"
        )
        return True


@asynccontextmanager
async def open_rejected_queue(
    url: str, name: str, *, with_bodies: bool
) -> AsyncIterator[RejectedQueue]:
    """Take every message of the queue ``name``; requeue those not acked at the block's end.

    Requeued messages keep their order. Memory holds the summaries; ``with_bodies`` keeps the rest
    in an unnamed file. Raises BrokerUnavailable and BrokerRefused.
    """
    with TemporaryFile() if with_bodies else nullcontext() as spool:
        guard = ConnectionGuard()
        inbox = _Inbox(guard)
        async with open_connection(url, "operator", guard) as connection:
            with translate_errors():
                # Not guarded: the broker closes this channel if there is no queue.
                passive_channel = await connection.driver.channel(timeout=CONNECT_SECONDS)
                channel = await connection.open_channel(inbox)
            queue = RejectedQueue(name, spool, guard, inbox, channel, passive_channel)
            try:
                with translate_errors():
                    await queue.take()
                yield queue
            finally:
                await queue.requeue()
