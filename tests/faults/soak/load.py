"""Send commands at a steady rate, and consume everything that the worker publishes."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from outplan.contract.amqp import Delivery
from outplan.contract.topology import build_topology
from outplan.rabbitmq.session import Session
from tests.support.command_generator import Draft, Generator, Outplans
from tests.support.observer_queues import ObserverQueues
from tests.support.raw_message import Properties, RawMessage, encode_content_header
from tests.support.raw_publisher import RawPublisher, open_raw_publisher

_TICK: Final = 0.02
_MOST_IN_FLIGHT: Final = 2_000  # Four batches, while the maximum rate is measured.
_OUTPLANS: Final = 5_000
_PREFETCH: Final = 1_000


class Load:
    """Send commands, and time each one until its event and its reply. Use ``open_load``.

    It forgets a command at its reply. ``latencies`` are seconds from publish to event; the caller
    takes and clears them.
    """

    def __init__(self, publisher: RawPublisher, prefix: str, seed: int) -> None:
        self._publisher = publisher
        self._exchange = build_topology(prefix).commands.name
        self._queues = ObserverQueues(prefix)
        self._generator = Generator(seed, "soak", Outplans(seed, _OUTPLANS))
        self._sent_at: dict[str, float] = {}
        self._reply_received = asyncio.Event()
        self.sent = 0
        self.replied = 0
        self.events = 0
        self.rejected = 0
        self.unexpected_replies = 0
        self.latencies: list[float] = []

    @property
    def in_flight(self) -> int:
        """Count the commands without a reply."""
        return len(self._sent_at)

    async def measure_maximum(self, seconds: float) -> float:
        """Keep the worker busy and return its replies a second; the first quarter warms up."""
        end, replied_at_start = time.monotonic() + seconds, 0
        warm = end - 0.75 * seconds
        while (now := time.monotonic()) < end:
            if not replied_at_start and now >= warm:
                replied_at_start = self.replied
            await self._send(min(_MOST_IN_FLIGHT - self.in_flight, 250))
            if self.in_flight >= _MOST_IN_FLIGHT - 100:
                self._reply_received.clear()
                await self._reply_received.wait()
        return (self.replied - replied_at_start) / (0.75 * seconds)

    async def send_steadily(self, rate: float, seconds: float) -> None:
        """Send ``rate`` commands a second, evenly; skip what falls behind by over a second."""
        end = time.monotonic() + seconds
        due = time.monotonic()
        while (now := time.monotonic()) < end:
            due = max(due, now - 1.0)
            count = int((now - due) * rate)
            due += count / rate
            await self._send(count)
            await asyncio.sleep(_TICK)

    async def wait_for_replies(self, seconds: float) -> bool:
        """Return True once every command has its reply, False if that takes longer."""
        try:
            async with asyncio.timeout(seconds):
                while self._sent_at:
                    self._reply_received.clear()
                    await self._reply_received.wait()
        except TimeoutError:
            return False
        return True

    async def consume(self, session: Session) -> None:
        """Consume events, replies and rejected copies until cancelled."""
        while batch := await session.receive(_PREFETCH):
            now = time.monotonic()
            for delivery in batch:
                self._count(delivery, now)
            await session.ack(batch[-1])
            self._reply_received.set()

    async def _send(self, count: int) -> None:
        if count <= 0:
            return
        messages = [self._make_message(self._generator.draft()) for _ in range(count)]
        await self._publisher.publish(self._exchange, messages)

    def _make_message(self, draft: Draft) -> RawMessage:
        self.sent += 1
        serial = str(self.sent)
        self._sent_at[serial] = time.monotonic()
        properties: Properties = {
            "delivery_mode": 2,
            "correlation_id": serial.encode(),
            "reply_to": self._queues.replies.encode(),
            "timestamp": int(time.time()),
            "message_type": draft.name.encode(),
        }
        if draft.message_id:
            properties["message_id"] = draft.message_id.encode()
        id_ = draft.outplan_id.encode()
        table = [(b"outplan_id", b"S" + len(id_).to_bytes(4, "big") + id_)]
        header = encode_content_header(properties, table, len(draft.body))
        return RawMessage(draft.routing_key, header, draft.body)

    def _count(self, delivery: Delivery, now: float) -> None:
        serial = delivery.properties.correlation_id or ""
        if delivery.queue == self._queues.replies:
            self.replied += 1
            if self._sent_at.pop(serial, None) is None:
                self.unexpected_replies += 1
        elif delivery.queue == self._queues.events:
            self.events += 1
            if (since := self._sent_at.get(serial)) is not None:
                self.latencies.append(now - since)
        else:
            self.rejected += 1


@asynccontextmanager
async def open_load(amqp_url: str, prefix: str, seed: int) -> AsyncIterator[Load]:
    """Connect a load, and consume in the background while the block runs."""
    async with (
        ObserverQueues(prefix).open_session(amqp_url) as session,
        open_raw_publisher(amqp_url) as publisher,
    ):
        load = Load(publisher, prefix, seed)
        consuming = asyncio.create_task(load.consume(session))
        try:
            yield load
        finally:
            consuming.cancel()
            await asyncio.wait({consuming})
