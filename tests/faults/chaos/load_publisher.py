"""Publishers: bursts of commands, each noted with the broker's verdict on it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aio_pika
from aiormq.abc import AbstractChannel
from aiormq.exceptions import PublishError
from pamqp.commands import Basic

from tests.faults.chaos.record import Record, Sent, Verdict
from tests.support.command_generator import Draft, Generator

_CONFIRM_SECONDS: Final = 30
_BURST: Final = 200


class Publisher:
    """One publisher: what it sends on one connection stays in order.

    It speaks to a broker that may come and go at ``url``. ``pace`` is its commands a second.
    """

    def __init__(
        self, name: str, generator: Generator, url: str, prefix: str, record: Record, pace: float
    ) -> None:
        self.name = name
        self._generator = generator
        self._url = url
        self._exchange = f"{prefix}.commands"
        self._replies = f"{prefix}.replies"
        self._record = record
        self._pace = pace
        self._count = 0
        self._luck = random.Random(name)

    async def run(self, until: asyncio.Event) -> None:
        """Publish until the event; connect again whenever something goes wrong."""
        while not until.is_set():
            try:
                async with self._channel() as channel:
                    while not until.is_set() and not channel.is_closed:
                        await self._burst(channel)
            # The library lets out whatever went wrong below it; all of it means: connect again.
            except Exception:
                await asyncio.sleep(self._luck.uniform(0.05, 0.5))

    async def send_last(self) -> str:
        """Send one more command until it is confirmed, each time noted: its message_id."""
        draft = self._generator.last()
        verdict: Verdict = "unknown"
        while verdict != "confirmed":
            try:
                async with self._channel() as channel:
                    sending = asyncio.create_task(self._publish(channel, draft))
                    verdict = await asyncio.create_task(_verdict(sending))
                    self._note(draft, sending.get_name(), verdict)
            # The broker may not be all there yet.
            except Exception:
                await asyncio.sleep(0.5)
        return draft.message_id

    async def _burst(self, channel: AbstractChannel) -> None:
        """Some commands in flight together; a pause makes up for being faster than the pace."""
        loop = asyncio.get_running_loop()
        size = self._luck.choice([1, 5, 20, _BURST])
        due = loop.time() + size / self._pace
        drafts = [self._generator.draft() for _ in range(size)]
        sending = [asyncio.create_task(self._publish(channel, draft)) for draft in drafts]
        verdicts = await asyncio.gather(*(asyncio.create_task(_verdict(s)) for s in sending))
        for draft, task, verdict in zip(drafts, sending, verdicts, strict=True):
            self._note(draft, task.get_name(), verdict)
        if "unknown" in verdicts:
            raise ConnectionError("some of a burst are unknown")
        await asyncio.sleep(max(0, due - loop.time()))

    async def _publish(self, channel: AbstractChannel, draft: Draft) -> None:
        self._count += 1
        send_id = f"{self.name}-{self._count}"
        task = asyncio.current_task()
        assert task is not None
        task.set_name(send_id)
        properties = Basic.Properties(
            message_id=draft.message_id,
            correlation_id=send_id,
            reply_to=self._replies,
            delivery_mode=2,
            headers={"outplan_id": draft.outplan_id},
        )
        await channel.basic_publish(
            draft.body, exchange=self._exchange, routing_key=draft.name,
            properties=properties, mandatory=True, timeout=_CONFIRM_SECONDS,
        )  # fmt: skip

    def _note(self, draft: Draft, send_id: str, verdict: Verdict) -> None:
        sent = Sent(
            send_id=send_id,
            publisher=self.name,
            name=draft.name,
            message_id=draft.message_id,
            outplan_id=draft.outplan_id,
            body=draft.body.decode("latin-1"),
            verdict=verdict,
            wrong=draft.wrong,
        )
        self._record.add(sent)

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[AbstractChannel]:
        connection = await aio_pika.connect(self._url, timeout=10)
        try:
            assert connection.transport is not None
            yield await connection.transport.connection.channel(timeout=10, on_return_raises=True)
        finally:
            await closed(connection)


async def closed(connection: Any) -> None:
    """Close a connection that may be broken in whatever way."""
    try:
        async with asyncio.timeout(3):
            await connection.close()
    except Exception:
        pass


async def _verdict(sending: "asyncio.Task[None]") -> Verdict:
    try:
        await sending
    except PublishError:
        return "returned"
    except asyncio.CancelledError:
        # The library cancels its own calls when a connection goes.
        if not sending.cancelled():
            raise
        return "unknown"
    except Exception:
        # A nack too: it says that somebody did not take it, not that nobody did.
        return "unknown"
    return "confirmed"
