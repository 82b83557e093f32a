"""Connections to the broker for programs outside the service; the driver's errors, translated.

A connection is plain, and never repaired: whoever needs another opens another.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

import aio_pika
from aiormq.channel import Channel
from aiormq.exceptions import (
    AuthenticationError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    IncompatibleProtocolError,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_never,
    wait_random_exponential,
)
from yarl import URL

from outplan.client.errors import ClientError, Refused

CONNECT_SECONDS: Final = 10
_CLOSE_SECONDS: Final = 3
_HEARTBEAT_SECONDS: Final = 10
_FIRST_WAIT: Final = 0.1
_LONGEST_WAIT: Final = 2.0
_REFUSALS: Final = (
    AuthenticationError,
    ProbableAuthenticationError,
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    IncompatibleProtocolError,
)


class TransientError(ClientError):
    """Raised when something is in the way that time may mend."""


class Connection:
    """One open connection: it makes channels, and tells when anything about them is over."""

    def __init__(self, connection: aio_pika.abc.AbstractConnection) -> None:
        assert connection.transport is not None
        self._underlying = connection.transport.connection
        self.lost: asyncio.Future[TransientError] = asyncio.get_running_loop().create_future()
        self._underlying.closing.add_done_callback(self._closed)

    async def channel(self) -> Channel:
        """Open a channel with confirms, whose end is the wire's end."""
        channel = await self._open()
        channel.closing.add_done_callback(self._closed)
        channel.on_consumer_cancel_callbacks.add(
            lambda _: self.fail("the broker cancelled the consumer: its queue is gone")
        )
        return channel

    @asynccontextmanager
    async def passing_channel(self) -> AsyncIterator[Channel]:
        """Open a channel with confirms for the block, whose end is not the wire's."""
        channel = await self._open()
        try:
            yield channel
        finally:
            await channel.close()

    async def has_queue(self, name: str) -> bool:
        """Ask whether there is such a queue."""
        # A channel of its own, for the broker closes it where there is none.
        async with self.passing_channel() as asking:
            try:
                await asking.queue_declare(name, passive=True)
            except ChannelNotFoundEntity:
                return False
            return True

    def fail(self, reason: str) -> None:
        """End the wire's use."""
        if not self.lost.done():
            self.lost.set_result(TransientError(reason))

    async def _open(self) -> Channel:
        channel = await self._underlying.channel(timeout=CONNECT_SECONDS, on_return_raises=True)
        assert isinstance(channel, Channel)
        return channel

    def _closed(self, closing: "asyncio.Future[Any]") -> None:
        reason = None if closing.cancelled() else closing.exception()
        self.fail(f"the connection was closed: {reason!r}")


@asynccontextmanager
async def open_connection(url: str, purpose: str) -> AsyncIterator[Connection]:
    """Connect; close with the block. Raises TransientError (try again) or Refused."""
    target = _target(url)
    with translated(), _opening(target.path):
        connection = await aio_pika.connect(
            target,
            timeout=CONNECT_SECONDS,
            client_properties={"connection_name": f"outplan {purpose}"},
        )
    try:
        yield Connection(connection)
    finally:
        # It is being closed because it is broken, as likely as not.
        with suppress(ClientError), translated():
            async with asyncio.timeout(_CLOSE_SECONDS):
                await connection.close()


def _target(url: str) -> URL:
    """The address with a heartbeat. Raises Refused for what is none, without quoting it."""
    target = URL()
    with suppress(ValueError):
        target = URL(url)
    if target.scheme not in ("amqp", "amqps") or not target.host:
        raise Refused("an address should be amqp://user:password@host:port/vhost, escaped")
    if "heartbeat" in target.query:
        return target
    return target.update_query(heartbeat=_HEARTBEAT_SECONDS)


@contextmanager
def _opening(virtual_host: str) -> Iterator[None]:
    """Say what the library does not: the broker closed the connection instead of opening it."""
    try:
        yield
    except InvalidFrameError as error:
        raise TransientError(
            f"the broker does not open the virtual host {virtual_host!r}: is there one?"
        ) from error


@contextmanager
def translated() -> Iterator[None]:
    """Let no exception of the driver's out."""
    try:
        yield
    except _REFUSALS as error:
        raise Refused(f"RabbitMQ refuses: {error}") from error
    except ClientError:
        raise
    # Of a connection that goes the library also lets out EOFError, and a bare Exception.
    except Exception as error:
        raise TransientError(f"{type(error).__name__}: {error}") from error
    except asyncio.CancelledError as error:
        # The library cancels its own calls when a connection goes.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise TransientError("the connection went away") from error


def retrying(
    on_error: Callable[[BaseException], None], *errors: type[ClientError]
) -> AsyncRetrying:
    """Retry for ever on TransientError (and ``errors``), backing off with jitter."""

    def before_sleep(state: RetryCallState) -> None:
        if state.outcome and (error := state.outcome.exception()):
            on_error(error)

    return AsyncRetrying(
        retry=retry_if_exception_type((TransientError, *errors)),
        wait=wait_random_exponential(_FIRST_WAIT, _LONGEST_WAIT),
        stop=stop_never,
        before_sleep=before_sleep,
        reraise=True,
    )
