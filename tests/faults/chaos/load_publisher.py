"""Publish bursts of commands, and record for each one whether the broker confirmed it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aio_pika
from aiormq.abc import AbstractChannel
from aiormq.exceptions import PublishError
from pamqp.commands import Basic
from yarl import URL

from tests.faults.chaos.history import History, PublishOutcome, SentCommand
from tests.support.command_generator import Draft, Generator

_CONFIRM_SECONDS: Final = 30
_LARGEST_BURST: Final = 200
# A larger backlog takes minutes on a slow machine when commands must be handled one by one.
_LARGEST_BACKLOG: Final = 5_000


@dataclass(slots=True)
class _Send:
    """One publish, with its times in the history."""

    draft: Draft
    send_id: str
    published_at: float = 0.0
    confirmed_at: float | None = None


class Backlog:
    """Count the confirmed commands of a history that have no reply yet."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._confirmed: set[str] = set()
        self._answered: set[str] = set()
        self._sent_count = 0
        self._reply_count = 0

    def count(self) -> int:
        sent, replies = self._history.sent, self._history.replies
        self._confirmed |= {s.send_id for s in sent[self._sent_count :] if s.outcome == "confirmed"}
        self._answered |= {r.send_id for r in replies[self._reply_count :]}
        self._sent_count, self._reply_count = len(sent), len(replies)
        # A reply may be recorded before its command is.
        self._confirmed -= self._answered
        return len(self._confirmed)


class LoadPublisher:
    """Publish a generator's commands in order on one connection; reconnect when it breaks.

    ``pace`` is commands a second. The publisher waits while the backlog is too large.
    """

    def __init__(
        self,
        name: str,
        generator: Generator,
        url: str,
        prefix: str,
        history: History,
        backlog: Backlog,
        pace: float,
    ) -> None:
        self.name = name
        self._generator = generator
        self._url = URL(url)
        self._exchange = f"{prefix}.commands"
        self._replies = f"{prefix}.replies"
        self._history = history
        self._backlog = backlog
        self._pace = pace
        self._count = 0
        self._connections = 0
        self._rng = random.Random(name)

    async def run(self, until: asyncio.Event) -> None:
        """Publish until the event is set."""
        while not until.is_set():
            try:
                async with self._connect() as channel:
                    while not until.is_set() and not channel.is_closed:
                        if self._backlog.count() > _LARGEST_BACKLOG:
                            await asyncio.sleep(0.1)
                        else:
                            await self._publish_burst(channel)
            # aio-pika lets any exception of the socket through; all mean: reconnect.
            except Exception:
                await asyncio.sleep(self._rng.uniform(0.05, 0.5))

    async def send_marker(self) -> str:
        """Create an outplan of its own, again until confirmed, and return the message_id.

        Its event shows that the service has handled what was sent before.
        """
        draft = self._generator.create_marker()
        outcome: PublishOutcome = "unknown"
        while outcome != "confirmed":
            try:
                async with self._connect() as channel:
                    (outcome,) = await self._publish_all(channel, [draft])
            # The broker may still be starting.
            except Exception:
                await asyncio.sleep(0.5)
        return draft.message_id

    async def _publish_burst(self, channel: AbstractChannel) -> None:
        """Publish several commands at once, then pause to keep to the pace."""
        loop = asyncio.get_running_loop()
        size = self._rng.choice([1, 5, 20, _LARGEST_BURST])
        due = loop.time() + size / self._pace
        outcomes = await self._publish_all(channel, [self._generator.draft() for _ in range(size)])
        if "unknown" in outcomes:
            raise ConnectionError("some of a burst are unknown")
        await asyncio.sleep(max(0, due - loop.time()))

    async def _publish_all(
        self, channel: AbstractChannel, drafts: list[Draft]
    ) -> list[PublishOutcome]:
        """Publish at once, in order; record each command with its outcome."""
        sends = [self._make_send(draft) for draft in drafts]
        publishing = [asyncio.create_task(self._publish(channel, send)) for send in sends]
        waiting = [asyncio.create_task(_wait_for_outcome(task)) for task in publishing]
        outcomes = await asyncio.gather(*waiting)
        connection = f"{self.name}.{self._connections}"
        for send, outcome in zip(sends, outcomes, strict=True):
            self._history.add(
                SentCommand.from_draft(
                    send.draft, send.send_id, connection, outcome,
                    send.published_at, send.confirmed_at,
                )
            )  # fmt: skip
        return outcomes

    async def _publish(self, channel: AbstractChannel, send: _Send) -> None:
        draft = send.draft
        properties = Basic.Properties(
            message_id=draft.message_id,
            correlation_id=send.send_id,
            reply_to=self._replies,
            delivery_mode=2,
            headers={"outplan_id": draft.outplan_id},
            # The worker takes the command's name from the type or from the routing key.
            message_type=self._rng.choice([draft.name, None]),
        )
        send.published_at = self._history.now()
        await channel.basic_publish(
            draft.body, exchange=self._exchange, routing_key=draft.routing_key,
            properties=properties, mandatory=True, timeout=_CONFIRM_SECONDS,
        )  # fmt: skip
        send.confirmed_at = self._history.now()

    def _make_send(self, draft: Draft) -> _Send:
        self._count += 1
        return _Send(draft, f"{self.name}-{self._count}")

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[AbstractChannel]:
        async with open_channel(self._url) as channel:
            self._connections += 1
            yield channel


@asynccontextmanager
async def open_channel(url: URL) -> AsyncIterator[AbstractChannel]:
    """Open a channel on a connection of its own; close both whatever state they are in."""
    connection = await aio_pika.connect(url, timeout=10)
    try:
        assert connection.transport is not None
        yield await connection.transport.connection.channel(timeout=10)
    finally:
        await _close(connection)


async def _close(connection: Any) -> None:
    try:
        async with asyncio.timeout(3):
            await connection.close()
    except Exception:
        pass


async def _wait_for_outcome(sending: "asyncio.Task[None]") -> PublishOutcome:
    try:
        await sending
    except PublishError:
        return "returned"
    except asyncio.CancelledError:
        # aiormq cancels its own calls when a connection breaks.
        if not sending.cancelled():
            raise
        return "unknown"
    except Exception:
        # A nack counts as unknown: one queue refused the message, another may have taken it.
        return "unknown"
    return "confirmed"
