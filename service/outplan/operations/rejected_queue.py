"""All copies of the queue in one hand: looked at, some acknowledged, the rest given back.

AMQP has no way to look at a queue: a message is taken, and given back by closing the channel. A
quorum queue puts what comes back in front of what was never taken, but behind what came back
before. So order holds only where all that is there is taken before anything is given back.
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
from outplan.operations.rejected_message import Summary, summary_of
from outplan.rabbitmq.connection import CONNECT_SECONDS, open_connection, translated
from outplan.rabbitmq.frames import WireProperties, read_content_header
from outplan.rabbitmq.reader import FrameHandler

# A consumer can't be sent more than 65,535 messages ahead; each further one doubles the sum. Up to
# 32 of them the broker gives back in the order of their tags, which is enough for 1.5 million.
_FIRST_CREDIT: Final = 1_000
_MOST_CREDIT: Final = 65_535
_MOST_CONSUMERS: Final = 30
_QUIET_SECONDS: Final = 10.0
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
_content_head: Final = struct.Struct(">HHQH")


@dataclass(frozen=True, slots=True)
class Held:
    """A copy in custody. ``number`` counts from the oldest, which is 1."""

    number: int
    summary: Summary
    tag: int
    routing_key: str
    place: tuple[int, int, int] = (0, 0, 0)


class Custody(FrameHandler):
    """The copies that were in the queue when it was taken, from ``custody``.

    ``others`` says how many other consumers the queue had then: what they hold is out of sight.
    ``missing`` says how many of those that were counted never came. Raises BrokerUnavailable.
    """

    def __init__(self, queue: str, spool: IO[bytes] | None) -> None:
        self._queue = queue
        self._spool = spool
        self._spooled = 0
        self._inbox: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._failed: BrokerUnavailable | None = None
        self._received = self._credit = self._consumers = 0
        self._channel: AbstractChannel
        self._asking: AbstractChannel
        self.copies: list[Held] = []
        self.others = self.missing = 0

    def on_delivery(self, delivery: Delivery) -> None:
        self._received += 1
        self._inbox.append(delivery)
        self._arrived.set()

    def on_close(self, code: int, reason: str) -> None:
        self._fail(f"the broker closed the connection: {code} {reason}")

    async def take(self, connection: aio_pika.Connection) -> Self:
        """Take all that is there, oldest first. Raises BrokerRefused."""
        assert connection.transport is not None
        underlying = connection.transport.connection
        self._asking = await underlying.channel(timeout=CONNECT_SECONDS)
        self._channel = await underlying.channel(timeout=CONNECT_SECONDS)
        for part in (underlying, self._channel):
            part.closing.add_done_callback(self._closed)
        self._channel.on_consumer_cancel_callbacks.add(
            lambda _: self._fail(f"queue {self._queue} is gone")
        )
        found = await self._ask()
        self.others = found.consumer_count or 0
        await self._take(found.message_count or 0)
        return self

    def delivery(self, held: Held) -> Delivery:
        """The copy as it came; only of a custody with bodies."""
        assert self._spool is not None
        start, head, body = held.place
        self._spool.seek(start)
        properties = read_content_header(self._spool.read(head))
        return Delivery(
            held.tag, self._queue, "", held.routing_key, True, properties, self._spool.read(body)
        )

    async def acknowledge(self, copies: Iterable[Held]) -> None:
        """Take these out of the queue for ever; returns when the broker has done it."""
        if self._failed:
            raise self._failed
        with translated():
            for held in copies:
                await self._channel.basic_ack(held.tag, wait=False)
            # Answered in turn on one channel: what was sent before it has been done.
            await self._channel.basic_qos(prefetch_count=_FIRST_CREDIT)
            await self._ask()

    async def give_back(self) -> None:
        """Let the broker have the rest."""
        with suppress(OutplanError), translated():
            await self._channel.close()

    async def _ask(self) -> Queue.DeclareOk:
        try:
            return await self._asking.queue_declare(self._queue, passive=True)
        except ChannelNotFoundEntity as error:
            raise BrokerRefused(
                f"there is no queue {self._queue}: has a worker run with this prefix?"
            ) from error

    async def _take(self, expected: int) -> None:
        found: list[Held] = []
        latest = _LONG_AGO
        order: list[tuple[datetime, int]] = []
        while len(found) < expected and await self._more():
            copy = self._inbox.popleft()
            summary = summary_of(copy)
            latest = summary.rejected_at or latest
            order.append((latest, len(found)))
            found.append(Held(0, summary, copy.tag, copy.routing_key, self._keep(copy)))
        self.missing = expected - len(found)
        # Whoever was killed while it took them has left them in another order.
        self.copies = [replace(found[n], number=k) for k, (_, n) in enumerate(sorted(order), 1)]

    def _keep(self, copy: Delivery) -> tuple[int, int, int]:
        if self._spool is None:
            return (0, 0, 0)
        assert isinstance(copy.properties, WireProperties)
        head = _content_head.pack(60, 0, len(copy.body), copy.properties.flags)
        head += copy.properties.raw
        self._spool.write(head + copy.body)
        place = (self._spooled, len(head), len(copy.body))
        self._spooled += len(head) + len(copy.body)
        return place

    async def _more(self) -> bool:
        """Whether another has come; not, when the queue has no more."""
        while not self._inbox:
            if self._failed:
                raise self._failed
            self._arrived.clear()
            if self._received >= self._credit and not await self._consume():
                return False
            try:
                # Long, since a broker under load counts as given what it is yet to send.
                await asyncio.wait_for(self._arrived.wait(), _QUIET_SECONDS)
            except TimeoutError:
                if (await self._ask()).message_count:
                    raise BrokerUnavailable(f"queue {self._queue} gives nothing out") from None
                return bool(self._inbox)
        return True

    async def _consume(self) -> bool:
        if self._consumers == _MOST_CONSUMERS:
            return False
        credit = min(max(self._credit, _FIRST_CREDIT), _MOST_CREDIT)
        self._consumers += 1
        self._credit += credit
        await self._channel.basic_qos(prefetch_count=credit)
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
async def custody(url: str, queue: str, *, with_bodies: bool) -> AsyncIterator[Custody]:
    """Take all copies there are; what is not acknowledged goes back with the block, in order.

    Only summaries stay in memory; ``with_bodies`` keeps the rest in an unnamed file. Raises
    BrokerUnavailable and BrokerRefused.
    """
    with TemporaryFile() if with_bodies else nullcontext() as spool:
        taken = Custody(queue, spool)
        async with open_connection(url, "operator", taken) as connection:
            try:
                with translated():
                    await taken.take(connection)
                yield taken
            finally:
                await taken.give_back()


async def _untapped(_message: Any) -> None:
    """Never called: no delivery gets past the tap."""
