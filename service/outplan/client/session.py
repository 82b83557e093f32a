"""Publish commands and receive replies, over one session after the other.

Two sessions of a ReconnectingSession never overlap at the broker. Both declare the same exclusive
reply queue, and the broker refuses the second until it has finished with the first, including
everything still in its sockets. So whatever a lost session has published is in the command queue
before the first command of the next session, or nowhere.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity, DeliveryError, PublishError
from pamqp.commands import Basic

from outplan.client.connection import open_connection, translate_errors
from outplan.client.errors import ClientError, NoExchange, Refused, Unreachable
from outplan.contract.amqp import Delivery
from outplan.contract.topology import build_topology
from outplan.errors import BrokerUnavailable
from outplan.rabbitmq.connection import Connection
from outplan.rabbitmq.reader import FrameHandler, unused_callback
from outplan.rabbitmq.refusals import translate
from outplan.retry import SPREAD_BACKOFF, SessionBackoff, retrying

_log = logging.getLogger("outplan.client")

_START_SECONDS: Final = 10

OnReply = Callable[[str | None, bytes], None]


@dataclass(frozen=True, slots=True)
class Route:
    """The exchange that commands go to, and the queue that their replies come to."""

    url: str
    prefix: str
    reply_queue: str

    @property
    def exchange(self) -> str:
        return build_topology(self.prefix).commands.name


class CommandPublisher(Protocol):
    """A session as the client needs it; ``outplan.testing`` has one without a broker.

    ``lost`` resolves at its end, to the reason. ``publish`` returns a task that ends with the
    broker's confirm, or raises BrokerUnavailable or Refused. ``explain_delay`` says why nothing
    comes, as far as it is known; else it is empty.
    """

    @property
    def lost(self) -> "asyncio.Future[BrokerUnavailable]": ...

    def publish(
        self, routing_key: str, body: bytes, properties: Basic.Properties
    ) -> "asyncio.Task[None]": ...

    async def explain_delay(self) -> str: ...


class SessionClosed(ClientError):
    """Raised when a ReconnectingSession has ended: there will be no other session."""


OpenSession = Callable[[Route, OnReply], AbstractAsyncContextManager[CommandPublisher]]


class CommandSession:
    """A CommandPublisher over one connection, from ``open_session``."""

    def __init__(self, connection: Connection, channel: Channel, exchange: str) -> None:
        self.lost = connection.guard.lost
        self._connection = connection
        self._channel = channel
        self._exchange = exchange
        self._publishing: dict[str, asyncio.Task[None]] = {}

    def publish(
        self, routing_key: str, body: bytes, properties: Basic.Properties
    ) -> "asyncio.Task[None]":
        """Publish; the task ends with the broker's confirm, or raises as the Protocol says."""
        id_ = properties.message_id or ""
        before = self._publishing.get(id_)
        task = asyncio.create_task(self._publish(routing_key, body, properties, before))
        self._publishing[id_] = task
        task.add_done_callback(lambda done: self._forget(id_, done))
        return task

    async def explain_delay(self) -> str:
        """Say whether the broker is silent, or blocks publishers in an alarm."""
        if silent := self._connection.overdue_seconds:
            return (
                f"nothing has come from the broker for {silent:.0f} s, not even a heartbeat: the "
                "connection is cut, or the broker stands still"
            )
        if await self._connection.is_blocked():
            return "the broker blocks publishers: a memory or disk alarm"
        return ""

    async def _publish(
        self,
        routing_key: str,
        body: bytes,
        properties: Basic.Properties,
        before: "asyncio.Task[None] | None",
    ) -> None:
        if before is not None:
            # With two messages of one id in flight, the driver mixes up which one was returned.
            await asyncio.wait([before])
        self._connection.guard.raise_if_lost()
        publish = partial(
            Channel.basic_publish, body=body, exchange=self._exchange, routing_key=routing_key,
            properties=properties, mandatory=True, wait=False,
        )  # fmt: skip
        with translate_errors():
            if await _is_confirmed(publish(self._channel)):
                return
            # The queue is full; or the node that led it has died, and RabbitMQ 3.10 nacks what
            # this channel publishes until the node is back. Another channel shows which.
            async with self._connection.temporary_channel() as another:
                if not await _is_confirmed(publish(another)):
                    raise BrokerUnavailable(
                        "the broker nacked the command: find the full queue with rabbitmqctl "
                        "list_queues; empty it or raise its limit"
                    )
            self._connection.guard.fail("the broker nacked on one channel what it took on another")

    def _forget(self, id_: str, done: "asyncio.Task[None]") -> None:
        if self._publishing.get(id_) is done:
            del self._publishing[id_]
        if not done.cancelled():
            done.exception()  # Nobody looks at it once the command has its outcome.


async def _is_confirmed(publishing: Awaitable[Any]) -> bool:
    """Return whether the broker acks the message; False for a nack."""
    try:
        await publishing
    except PublishError:
        raise  # Returned: there is no queue.
    except DeliveryError:
        return False
    return True


class _Replies(FrameHandler):
    """Hand on what arrives in the reply queue, which anybody may send to."""

    def __init__(self, on_reply: OnReply) -> None:
        self._on_reply = on_reply

    def on_delivery(self, delivery: Delivery) -> None:
        self._on_reply(delivery.properties.correlation_id, delivery.body)


@asynccontextmanager
async def open_session(route: Route, on_reply: OnReply) -> AsyncIterator[CommandSession]:
    """Connect, declare, consume. Raises BrokerUnavailable (try again) or Refused."""

    async with open_connection(route.url, "client") as connection:
        with translate_errors():
            async with asyncio.timeout(_START_SECONDS):
                consuming = await connection.open_channel(_Replies(on_reply))
                await consuming.queue_declare(route.reply_queue, exclusive=True)
                await consuming.basic_consume(route.reply_queue, unused_callback, no_ack=True)
                publishing = await connection.open_channel()
                await _require_exchange(publishing, route.exchange)
        yield CommandSession(connection, publishing, route.exchange)


async def _require_exchange(channel: Channel, exchange: str) -> None:
    # Without the exchange, each command would cost a session.
    try:
        await channel.exchange_declare(exchange, passive=True)
    except ChannelNotFoundEntity as error:
        raise NoExchange(str(translate(error))) from error


class ReconnectingSession:
    """Keep one session open at a time, reconnecting for as long as ``run`` runs.

    ``trouble`` says why there is no session.
    """

    def __init__(
        self, route: Route, on_reply: OnReply, open_session: OpenSession = open_session
    ) -> None:
        self._route = route
        self._on_reply = on_reply
        self._open_session = open_session
        self._session: asyncio.Future[CommandPublisher] = asyncio.get_running_loop().create_future()
        self._backoff = SessionBackoff()
        self.trouble = "not connected yet; check that RabbitMQ runs there, and the AMQP URL"

    async def session(self) -> CommandPublisher:
        """Wait for a session.

        Raises Refused or NoExchange if that ended the first one, and SessionClosed after ``run``.
        """
        return await asyncio.shield(self._session)

    async def explain(self, trouble: str) -> str:
        """Say why a call that is in this ``trouble`` has no outcome yet."""
        if not self._session.done() or self._session.exception():
            return self.trouble
        delay = await self._session.result().explain_delay()
        return f"{trouble}; {delay}" if delay else trouble

    def note_progress(self) -> None:
        """Note that the session has taken a command, so that the next one may follow at once."""
        self._backoff.note_progress()

    async def wait_until_open(self, seconds: float) -> None:
        """Wait for the first session. Raises Refused, NoExchange or Unreachable."""
        try:
            async with asyncio.timeout(seconds):
                await self.session()
        except TimeoutError:
            raise Unreachable(f"no session within {seconds:g} s: {self.trouble}") from None

    async def run(self) -> None:
        """Keep a session until cancelled, or until the first one is refused or of no use."""
        try:
            await self._reconnect_forever()
        except (Refused, NoExchange) as error:
            self._session.set_exception(error)
        except asyncio.CancelledError:
            self._session.set_exception(SessionClosed("the client was closed"))
            self._session.exception()  # Nobody may wait for it.
            raise

    async def _reconnect_forever(self) -> None:
        # A first refusal is a mistake; a later one may be a broker that is starting.
        errors: tuple[type[Exception], ...] = (BrokerUnavailable,)
        while True:
            await self._backoff.wait()
            await retrying(*errors, on_error=self._on_error, wait=SPREAD_BACKOFF)(self._run_session)
            errors = (BrokerUnavailable, Refused, NoExchange)

    async def _run_session(self) -> None:
        async with self._open_session(self._route, self._on_reply) as session:
            self._session.set_result(session)
            try:
                await asyncio.wait([session.lost])
            finally:
                self._session = asyncio.get_running_loop().create_future()
            self._on_error(session.lost.result())

    def _on_error(self, error: BaseException) -> None:
        self.trouble = str(error)
        _log.info("no session with the broker: %s", error)
