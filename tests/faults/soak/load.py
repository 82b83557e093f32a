"""A soak's load: commands of every kind at a steady rate, and all that comes of them taken in."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from outplan.contract.amqp import Delivery
from outplan.contract.topology import Binding, Queue, Topology, topology
from outplan.rabbitmq.session import Session, open_session
from tests.support.command_generator import Draft, Generator, Outplans
from tests.support.raw_message import Properties, RawMessage, encode_content_header
from tests.support.raw_publisher import RawPublisher, raw_publisher

_TICK: Final = 0.02
_FULL: Final = 2_000  # in flight while the maximum is measured: four batches
_OUTPLANS: Final = 5_000
_TAKEN: Final = 1_000


class Load:
    """Sends, and knows of each command when it was sent until its reply is there.

    Nothing is kept of a command that is done: ``latencies`` (seconds from publish to event) are
    for whoever samples to take and clear.
    """

    def __init__(self, amqp_url: str, prefix: str, seed: int) -> None:
        self._url = amqp_url
        self._layout = topology(prefix)
        self._replies = f"{prefix}.replies"
        self._witness = f"{prefix}.witness"
        self._generator = Generator(seed, "soak", Outplans(seed, _OUTPLANS))
        self._publisher: RawPublisher
        self._open: dict[str, float] = {}
        self._done = asyncio.Event()
        self.sent = 0
        self.replied = 0
        self.events = 0
        self.rejected = 0
        self.unexpected = 0
        self.latencies: list[float] = []

    @property
    def queues(self) -> list[str]:
        """Those that are not the service's own."""
        return [self._replies, self._witness]

    @property
    def in_flight(self) -> int:
        """How many commands were sent and have no reply."""
        return len(self._open)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connected, and taking in whatever comes, while the block runs."""
        async with (
            open_session(self._url, self._turned_round(), print) as session,
            raw_publisher(self._url) as publisher,
        ):
            self._publisher = publisher
            taking = asyncio.create_task(self._take(session))
            try:
                yield
            finally:
                taking.cancel()
                await asyncio.wait({taking})

    async def maximum(self, seconds: float) -> float:
        """Replies a second with as much in flight as does any good; the first quarter warms up."""
        end, start = time.monotonic() + seconds, 0
        warm = end - 0.75 * seconds
        while (now := time.monotonic()) < end:
            if not start and now >= warm:
                start = self.replied
            await self._send(min(_FULL - self.in_flight, 250))
            if self.in_flight >= _FULL - 100:
                self._done.clear()
                await self._done.wait()
        return (self.replied - start) / (0.75 * seconds)

    async def steady(self, rate: float, seconds: float) -> None:
        """Send at ``rate`` commands a second, evenly; what was missed is not made up for."""
        end = time.monotonic() + seconds
        due = time.monotonic()
        while (now := time.monotonic()) < end:
            due = max(due, now - 1.0)
            count = int((now - due) * rate)
            due += count / rate
            await self._send(count)
            await asyncio.sleep(_TICK)

    async def settled(self, seconds: float) -> bool:
        """Wait until every command has its reply; False where that takes longer."""
        try:
            async with asyncio.timeout(seconds):
                while self._open:
                    self._done.clear()
                    await self._done.wait()
        except TimeoutError:
            return False
        return True

    async def _send(self, count: int) -> None:
        if count <= 0:
            return
        messages = [self._message(self._generator.draft()) for _ in range(count)]
        await self._publisher.publish(self._layout.commands.name, messages)

    def _message(self, draft: Draft) -> RawMessage:
        self.sent += 1
        serial = str(self.sent)
        self._open[serial] = time.monotonic()
        properties: Properties = {
            "delivery_mode": 2,
            "correlation_id": serial.encode(),
            "reply_to": self._replies.encode(),
            "timestamp": int(time.time()),
            "message_type": draft.name.encode(),
        }
        if draft.message_id:
            properties["message_id"] = draft.message_id.encode()
        id_ = draft.outplan_id.encode()
        table = [(b"outplan_id", b"S" + len(id_).to_bytes(4, "big") + id_)]
        header = encode_content_header(properties, table, len(draft.body))
        return RawMessage(draft.name, header, draft.body)

    async def _take(self, session: Session) -> None:
        while batch := await session.receive(_TAKEN):
            now = time.monotonic()
            for delivery in batch:
                self._note(delivery, now)
            await session.ack(batch[-1])
            self._done.set()

    def _note(self, delivery: Delivery, now: float) -> None:
        serial = delivery.properties.correlation_id or ""
        if delivery.queue == self._replies:
            self.replied += 1
            if self._open.pop(serial, None) is None:
                self.unexpected += 1
        elif delivery.queue == self._witness:
            self.events += 1
            if (since := self._open.get(serial)) is not None:
                self.latencies.append(now - since)
        else:
            self.rejected += 1

    def _turned_round(self) -> Topology:
        """The service's topology, with what it publishes to for what is consumed."""
        own = tuple(Queue(name, {"x-queue-type": "quorum"}) for name in self.queues)
        bindings = (Binding(self._layout.events.name, self._witness, "#"),)
        return replace(
            self._layout, command_queues=(*own, self._layout.rejected), bindings=bindings
        )
