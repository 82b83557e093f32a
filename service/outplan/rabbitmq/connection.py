"""Connections to the broker, tapped; and the driver's exceptions, translated."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, TypeVar

import aio_pika
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    ConnectionCommandInvalid,
    IncompatibleProtocolError,
    ProbableAuthenticationError,
)
from yarl import URL

from outplan.errors import BrokerRefused, BrokerUnavailable, OutplanError
from outplan.rabbitmq.reader import FrameHandler, FrameReaderFactory

T = TypeVar("T")

CONNECT_SECONDS: Final = 10
_CLOSE_SECONDS: Final = 3
_HEARTBEAT_SECONDS: Final = 10
_NOT_ALLOWED: Final = 530
_UNKNOWN_TYPE: Final = "unknown exchange type"


class _FrameReaderConnection(aio_pika.Connection):
    def __init__(self, url: URL, incoming: FrameHandler, **kwargs: Any) -> None:
        super().__init__(url, **kwargs)
        self.kwargs = {**self.kwargs, "transport_factory": FrameReaderFactory(incoming)}


@asynccontextmanager
async def open_connection(
    url: str, purpose: str, incoming: FrameHandler
) -> AsyncIterator[aio_pika.Connection]:
    """Connect; close with the block. Raises BrokerUnavailable (try again) or BrokerRefused."""
    target = URL(url)
    if "heartbeat" not in target.query:
        target = target.update_query(heartbeat=_HEARTBEAT_SECONDS)
    connection = _FrameReaderConnection(
        target, incoming, client_properties={"connection_name": f"outplan {purpose}"}
    )
    try:
        with translated():
            await connection.connect(timeout=CONNECT_SECONDS)
    except BrokerUnavailable as error:
        if incoming.close_code == _NOT_ALLOWED:
            raise BrokerRefused(
                f"RabbitMQ refuses the virtual host {target.path!r} in OUTPLAN_AMQP_URL"
            ) from error
        raise
    try:
        yield connection
    finally:
        # It is being closed because it is broken, as likely as not.
        with suppress(OutplanError), translated():
            async with asyncio.timeout(_CLOSE_SECONDS):
                await connection.close()


class ConnectionGuard:
    """What a session hangs on: the end of any of its connections or channels ends all of it."""

    def __init__(self) -> None:
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watched: dict[AbstractConnection | AbstractChannel, asyncio.Future[Any]] = {}

    def fail(self, reason: str) -> None:
        """End it; whatever is held goes no further."""
        if not self._end.done():
            self._end.set_exception(BrokerUnavailable(reason))
            self._end.exception()  # Not every session is still watched when it fails.

    async def end(self) -> None:
        """Wait for the end; raises BrokerUnavailable with the reason."""
        await asyncio.shield(self._end)

    async def hold(self, awaitable: Awaitable[T]) -> T:
        """The result, or BrokerUnavailable should the end come first."""
        waiting = asyncio.ensure_future(awaitable)
        try:
            futures: set[asyncio.Future[Any]] = {waiting, self._end}
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            if self._end.done():
                await self._end
            with translated():
                return await waiting
        finally:
            waiting.cancel()

    async def channel(self, connection: AbstractConnection) -> AbstractChannel:
        """Open a channel with confirms, whose end, like its connection's, is the end."""
        self._watch(connection)
        channel = await self.hold(connection.channel(timeout=CONNECT_SECONDS))
        self._watch(channel)
        return channel

    async def close(self, channel: AbstractChannel) -> None:
        """Close a channel, which is not the end."""
        closing = self._watched.pop(channel)
        closing.remove_done_callback(self._closed)
        await self.hold(channel.close())

    def _watch(self, each: AbstractConnection | AbstractChannel) -> None:
        if each not in self._watched:
            # The library gives each who asks a future of its own.
            self._watched[each] = each.closing
            self._watched[each].add_done_callback(self._closed)

    def _closed(self, closing: "asyncio.Future[Any]") -> None:
        reason = None if closing.cancelled() else closing.exception()
        self.fail(f"connection closed: {reason!r}")


@contextmanager
def declaring(what: str) -> Iterator[None]:
    """Say what was refused, and what to do, where a declaration is."""
    try:
        yield
    # The first is what RabbitMQ 3 says of an exchange type that it does not know, 4 the other.
    except (ConnectionCommandInvalid, ChannelPreconditionFailed) as error:
        if _UNKNOWN_TYPE in str(error):
            raise BrokerRefused(
                f"{what}: {error}. Enable the plugin rabbitmq_consistent_hash_exchange, or set "
                "OUTPLAN_PARTITIONS=1"
            ) from error
        raise BrokerRefused(
            f"{what} exists with other arguments: {error}. Delete it once it is empty, or set "
            "OUTPLAN_PREFIX"
        ) from error


@contextmanager
def translated() -> Iterator[None]:
    """No driver exception leaves this module."""
    try:
        yield
    except (AMQPError, OSError, RuntimeError, TimeoutError) as error:
        raise translation(error) from error
    except asyncio.CancelledError as error:
        # The library cancels its own calls when a connection goes.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise BrokerUnavailable("the connection went away") from error


def translation(error: Exception) -> OutplanError:
    """The service's exception for one of the driver's."""
    if isinstance(error, ProbableAuthenticationError | AuthenticationError):
        return BrokerRefused(f"RabbitMQ refuses the credentials in OUTPLAN_AMQP_URL: {error}")
    if isinstance(error, ChannelAccessRefused):
        return BrokerRefused(f"RabbitMQ refuses the permission: {error}")
    if isinstance(error, IncompatibleProtocolError):
        return BrokerRefused(f"what answers at OUTPLAN_AMQP_URL is no AMQP 0-9-1: {error}")
    return BrokerUnavailable(f"{type(error).__name__}: {str(error) or 'no answer in time'}")
