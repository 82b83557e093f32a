"""Sessions that publish commands and hear replies, and the link that always has one.

Two sessions of a link never overlap at the broker: both declare the same exclusive queue for the
replies, and the broker refuses the second until it has done with the first, whatever of it was
still on its way. So all that a lost session has published is in the command queue before the
first command of the next, or nowhere.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic

from outplan.client.connection import (
    Connection,
    TransientError,
    open_connection,
    retrying,
    translated,
)
from outplan.client.errors import ClientError, Refused, Unreachable
from outplan.contract.topology import topology

_log = logging.getLogger("outplan.client")

_START_SECONDS: Final = 10

OnReply = Callable[[str | None, bytes], None]


@dataclass(frozen=True, slots=True)
class Route:
    """Where commands go, and where their replies come."""

    url: str
    prefix: str
    reply_queue: str

    @property
    def exchange(self) -> str:
        return topology(self.prefix).commands.name


class CommandPublisher(Protocol):
    """What calls need of a session; ``outplan.testing`` has one without a broker.

    ``lost`` tells its end. ``publish`` returns a task that ends with the broker's confirm, or
    raises TransientError.
    """

    lost: "asyncio.Future[TransientError]"

    def publish(
        self, routing_key: str, body: bytes, properties: Basic.Properties
    ) -> "asyncio.Task[None]": ...


class SessionClosed(ClientError):
    """Raised when a link has ended, and there is no session to come."""


SessionOpener = Callable[[Route, OnReply], AbstractAsyncContextManager[CommandPublisher]]


class CommandSession:
    """One connection, from ``open_session``; ``lost`` tells its end."""

    def __init__(self, wire: Connection, route: Route) -> None:
        self.lost = wire.lost
        self._wire = wire
        self._route = route
        self._exchange = route.exchange
        self._channel: Channel
        self._publishing: dict[str, asyncio.Task[None]] = {}

    async def start(self, on_reply: OnReply) -> None:
        hearing = await self._wire.channel()
        await hearing.queue_declare(self._route.reply_queue, exclusive=True)

        async def hear(message: DeliveredMessage) -> None:
            on_reply(message.header.properties.correlation_id, message.body)

        await hearing.basic_consume(self._route.reply_queue, hear, no_ack=True)
        self._channel = await self._wire.channel()
        # Were it not there, each command would cost a session.
        await self._channel.exchange_declare(self._exchange, passive=True)

    def publish(
        self, routing_key: str, body: bytes, properties: Basic.Properties
    ) -> "asyncio.Task[None]":
        """Publish; the task ends with the broker's confirm, or raises TransientError."""
        id_ = properties.message_id or ""
        before = self._publishing.get(id_)
        task = asyncio.create_task(self._publish(routing_key, body, properties, before))
        self._publishing[id_] = task
        task.add_done_callback(lambda done: self._published(id_, done))
        return task

    async def _publish(
        self, routing_key: str, body: bytes, properties: Basic.Properties,
        before: "asyncio.Task[None] | None",
    ) -> None:  # fmt: skip
        if before is not None:
            # Of two with one id in flight the library would mix up who was returned.
            await asyncio.wait([before])
        if self.lost.done():
            raise self.lost.result()
        publish = partial(
            Channel.basic_publish, body=body, exchange=self._exchange, routing_key=routing_key,
            properties=properties, mandatory=True, wait=False,
        )  # fmt: skip
        with translated():
            if await _takes(publish(self._channel)):
                return
            # The queue is full; or the node that led it has died, and RabbitMQ 3.10 refuses what
            # this channel publishes until the node is back. Another channel tells.
            async with self._wire.passing_channel() as another:
                if not await _takes(publish(another)):
                    raise TransientError("the broker refuses commands: is their queue full?")
            self._wire.fail("the broker refused on one channel what it took on another")

    def _published(self, id_: str, done: "asyncio.Task[None]") -> None:
        if self._publishing.get(id_) is done:
            del self._publishing[id_]
        if not done.cancelled():
            done.exception()  # Whoever has its verdict already does not look.


async def _takes(publishing: Awaitable[Any]) -> bool:
    """Whether the broker confirms it, or refuses it by a nack."""
    try:
        await publishing
    except PublishError:
        raise  # Returned: there is no queue.
    except DeliveryError:
        return False
    return True


@asynccontextmanager
async def open_session(route: Route, on_reply: OnReply) -> AsyncIterator[CommandSession]:
    """Connect, declare, consume. Raises TransientError (try again) or Refused."""
    async with open_connection(route.url, "client") as wire:
        session = CommandSession(wire, route)
        with translated():
            async with asyncio.timeout(_START_SECONDS):
                await session.start(on_reply)
        yield session


class ReconnectingSession:
    """Has a session, and another when that is lost, for as long as ``run`` runs."""

    def __init__(
        self, route: Route, on_reply: OnReply, opening: SessionOpener = open_session
    ) -> None:
        self._route = route
        self._on_reply = on_reply
        self._opening = opening
        self._session: asyncio.Future[CommandPublisher] = asyncio.get_running_loop().create_future()
        self.trouble = "not connected yet"

    @property
    def connected(self) -> bool:
        """Whether there is a session; ``trouble`` says why not."""
        return self._session.done()

    async def session(self) -> CommandPublisher:
        """Wait for a session. Raises Refused where none ever was, SessionClosed after ``run``."""
        return await asyncio.shield(self._session)

    async def opened(self, seconds: float) -> None:
        """Await the first session. Raises Refused or Unreachable."""
        try:
            async with asyncio.timeout(seconds):
                await self.session()
        except TimeoutError:
            raise Unreachable(f"no session within {seconds:g} s: {self.trouble}") from None

    async def run(self) -> None:
        """Keep a session until it is cancelled, or refused at first."""
        try:
            await self._keep()
        except Refused as error:
            self._session.set_exception(error)
        except asyncio.CancelledError:
            self._session.set_exception(SessionClosed("the client was closed"))
            self._session.exception()  # There may be nobody who waits for it.
            raise

    async def _keep(self) -> None:
        # What is refused at first is a mistake; later, it may be a broker that starts up.
        unmended: tuple[type[Refused], ...] = ()
        while True:
            await retrying(self._on_error, *unmended)(self._once)
            unmended = (Refused,)

    async def _once(self) -> None:
        async with self._opening(self._route, self._on_reply) as session:
            self._session.set_result(session)
            try:
                await asyncio.wait([session.lost])
            finally:
                self._session = asyncio.get_running_loop().create_future()
            self._on_error(session.lost.result())

    def _on_error(self, error: BaseException) -> None:
        self.trouble = str(error)
        _log.info("no session with the broker: %s", error)
