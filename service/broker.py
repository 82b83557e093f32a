"""Sessions with the broker: declaring, consuming, publishing.

A session is a pair of plain connections, one that consumes and one that publishes, so that an
alarm which blocks the publishing one does not hold up acknowledgements. Anything wrong on either
ends the session; nothing is repaired in place.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import aio_pika
from aiormq.abc import AbstractChannel, ChannelFrame
from yarl import URL

from service.codec import Delivery, Publication
from service.connection import CONNECT_SECONDS, declaring, tapped_connection, translated
from service.errors import BrokerUnavailable, Nacked
from service.frames import write_publication
from service.retry import retrying
from service.tap import Incoming
from service.topology import PREFETCH, Topology

T = TypeVar("T")
Notice = Callable[[BaseException], None]

_START_SECONDS: Final = 30
_BATCH_BYTES: Final = 16 * 1024 * 1024
# A byte of headers takes the time of many of a body: they are walked field by field, here.
_HEADER_WEIGHT: Final = 8


class Session(Incoming):
    """One pair of connections, from ``open_session``.

    Every call may raise BrokerUnavailable, after which the session is of no more use. Deliveries
    come in their queue's order. Not for concurrent use, but for ``receive`` beside ``publish``.
    """

    def __init__(self, topology: Topology, user: str, notice: Notice) -> None:
        self._topology = topology
        self._user = user
        self._inbox: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._leaving = False
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._confirms = _Confirms()
        self._retrying = retrying(Nacked, notice=notice)
        self._consuming: AbstractChannel
        self._publishing: AbstractChannel

    async def receive(self, most: int) -> list[Delivery]:
        """Whatever has arrived, up to ``most``; waits for the first, never for more.

        Nothing once ``stop_receiving`` was called. The consumer is not cancelled then: a single
        active consumer that is cancelled hands the queue over at once, with its messages still
        unsettled, and the next one would overtake them. Closing gives all back in order.
        """
        while not self._inbox and not self._leaving:
            self._arrived.clear()
            await self._arrived.wait()
        if self._leaving:
            return []
        batch = [self._inbox.popleft()]
        size = _weight(batch[0])
        while self._inbox and len(batch) < most and size < _BATCH_BYTES:
            batch.append(self._inbox.popleft())
            size += _weight(batch[-1])
        return batch

    def stop_receiving(self) -> None:
        """Let ``receive`` return nothing from now on."""
        self._leaving = True
        self._arrived.set()

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish and await every confirm; the events of an outplan in their order.

        What is refused, a reply apart, is sent again for ever. Of one outplan no event is sent
        before the one before it is confirmed: a subscriber's queue that was full might refuse the
        first and have room for the second.
        """
        for wave in waves(publications):
            await self._publish_wave(wave)

    async def _publish_wave(self, publications: Sequence[Publication]) -> None:
        waiting = list(publications)

        async def attempt() -> None:
            nonlocal waiting
            refused = await self._publish_once(waiting)
            if needed := [waiting[n] for n in refused if not waiting[n].dispensable]:
                waiting = needed
                raise Nacked(f"the broker refuses messages to {_target(waiting[0])}: a full queue?")

        await self._retrying(attempt)

    async def ack(self, delivery: Delivery) -> None:
        """Acknowledge this delivery and all before it.

        Waits until that is written: closing would leave unsent what the library still queues.
        """
        await self._unless_failed(self._consuming.basic_ack(delivery.tag, multiple=True, wait=True))

    async def attached(self) -> None:
        """Return when the broker has answered on the channel that consumes.

        So until then nothing that was delivered on it has been given to anybody else.
        """
        await self._unless_failed(self._consuming.basic_qos(prefetch_count=PREFETCH))

    async def watch(self) -> None:
        """Wait for the session's end; raises BrokerUnavailable with the reason."""
        await asyncio.shield(self._failed)

    async def blocked(self) -> bool:
        """Whether the broker holds publishers up, as it does in a memory or disk alarm."""
        try:
            async with asyncio.timeout(0.05):
                await self._publishing.connection.ready()
        except TimeoutError:
            return True
        return False

    def on_delivery(self, delivery: Delivery) -> None:
        self._inbox.append(delivery)
        self._arrived.set()

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:
        self._confirms.settle(tag, multiple, confirmed)

    def on_return(self, reason: str) -> None:
        # Only rejected copies are mandatory: their queue has gone. The next session declares it.
        self.fail(f"queue {self._topology.rejected.name} is gone: {reason}")

    def on_close(self, code: int, reason: str) -> None:
        self.fail(f"the broker closed the connection: {code} {reason}")

    def fail(self, reason: str) -> None:
        """End the session; what it was told to do goes no further."""
        if not self._failed.done():
            self._failed.set_exception(BrokerUnavailable(reason))
            self._failed.exception()  # Not every session is still watched when it fails.

    async def start(
        self, consuming: aio_pika.abc.AbstractConnection,
        publishing: aio_pika.abc.AbstractConnection,
    ) -> None:  # fmt: skip
        """Declare everything, then consume. Raises BrokerRefused."""
        await self._declare(await self._channel(consuming))
        self._publishing = await self._channel(publishing)
        self._consuming = await self._channel(consuming)
        self._consuming.on_consumer_cancel_callbacks.add(
            lambda frame: self.fail(f"queue {frame.consumer_tag} is gone")
        )
        await self._consuming.basic_qos(prefetch_count=PREFETCH)
        for queue in self._topology.command_queues:
            # The tap takes the deliveries; the consumer tag tells it their queue.
            await self._consuming.basic_consume(queue.name, _untapped, consumer_tag=queue.name)

    async def _channel(self, connection: aio_pika.abc.AbstractConnection) -> AbstractChannel:
        assert connection.transport is not None
        underlying = connection.transport.connection
        channel = await underlying.channel(timeout=CONNECT_SECONDS)
        for part in (underlying, channel):
            part.closing.add_done_callback(self._closed)
        return channel

    def _closed(self, closing: "asyncio.Future[Any]") -> None:
        reason = None if closing.cancelled() else closing.exception()
        self.fail(f"connection closed: {reason!r}")

    async def _declare(self, channel: AbstractChannel) -> None:
        for exchange in self._topology.exchanges:
            with declaring(f"exchange {exchange.name}"):
                await channel.exchange_declare(
                    exchange.name,
                    exchange_type=exchange.type,
                    durable=True,
                    arguments=dict(exchange.arguments),
                )
        for queue in self._topology.queues:
            with declaring(f"queue {queue.name}"):
                await channel.queue_declare(
                    queue.name, durable=True, arguments=dict(queue.arguments)
                )
        for b in self._topology.bindings:
            with declaring(f"binding {b.source} to {b.destination}"):
                bind = channel.exchange_bind if b.to_exchange else channel.queue_bind
                await bind(b.destination, b.source, b.routing_key)

    async def _publish_once(self, publications: Sequence[Publication]) -> list[int]:
        """Publish all, in flight together; returns the places of those that were refused."""
        channel = self._publishing
        frame_max = channel.connection.connection_tune.frame_max
        frames = [write_publication(channel.number, p, frame_max, self._user) for p in publications]
        confirmed = self._confirms.expect(len(frames))
        payload = ChannelFrame(b"".join(frames), should_close=False)
        await self._unless_failed(channel.connection.write_queue.put(payload))
        return await self._unless_failed(confirmed)

    async def _unless_failed(self, awaitable: Awaitable[T]) -> T:
        """The result, or BrokerUnavailable should the session end first."""
        waiting = asyncio.ensure_future(awaitable)
        try:
            futures: set[asyncio.Future[Any]] = {waiting, self._failed}
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                await self._failed
            with translated():
                return await waiting
        finally:
            waiting.cancel()


def _weight(delivery: Delivery) -> int:
    return len(delivery.body) + _HEADER_WEIGHT * len(delivery.properties.raw)


def waves(publications: Iterable[Publication]) -> list[list[Publication]]:
    """What can be in flight together, one after the other: of each outplan one event at a time.

    A reply goes with what stands before it, which is what it tells of where there is such a thing.
    """
    found: list[list[Publication]] = []
    turns: Counter[str] = Counter()
    turn = 0
    for publication in publications:
        if outplan := publication.outplan_id:
            turn = turns[outplan]
            turns[outplan] += 1
        elif not publication.dispensable:
            turn = 0
        if turn == len(found):
            found.append([])
        found[turn].append(publication)
    return found


def _target(publication: Publication) -> str:
    return publication.exchange or publication.routing_key


class _Confirms:
    """The messages in flight on one channel, by the sequence numbers that both sides count."""

    def __init__(self) -> None:
        self._last = 0
        self._first = 1
        self._open: set[int] = set()
        self._refused: list[int] = []
        self._settled: asyncio.Future[list[int]]

    def expect(self, count: int) -> "asyncio.Future[list[int]]":
        """Await verdicts on the next ``count`` messages: the places of those refused."""
        self._first = self._last + 1
        self._last += count
        self._open = set(range(self._first, self._last + 1))
        self._refused = []
        self._settled = asyncio.get_running_loop().create_future()
        return self._settled

    def settle(self, tag: int, multiple: bool, confirmed: bool) -> None:
        if multiple:
            settled = {n for n in self._open if n <= tag}
            self._open -= settled
        else:
            settled = {tag} & self._open
            self._open.discard(tag)
        if not confirmed:
            self._refused += (n - self._first for n in settled)
        if settled and not self._open and not self._settled.done():
            self._settled.set_result(sorted(self._refused))


@asynccontextmanager
async def open_session(url: str, topology: Topology, notice: Notice) -> AsyncIterator[Session]:
    """Connect twice, declare, consume. Raises BrokerUnavailable (try again) or BrokerRefused."""
    session = Session(topology, URL(url).user or "guest", notice)
    async with (
        tapped_connection(url, "consume", session) as consuming,
        tapped_connection(url, "publish", session) as publishing,
    ):
        with translated():
            # A broker that has just come up may take a declaration and never answer it.
            async with asyncio.timeout(_START_SECONDS):
                await session.start(consuming, publishing)
        yield session


async def _untapped(_message: Any) -> None:
    """Never called: no delivery gets past the tap."""
