"""Open plain AMQP connections, watch over them, and translate the driver's exceptions.

A connection is never repaired: whoever needs another one opens another one.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from time import monotonic
from typing import Any, Final, NoReturn, TypeVar

import aiormq.connection
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from aiormq.exceptions import (
    AMQPError,
    ChannelPreconditionFailed,
    ConnectionClosed,
)
from yarl import URL

from outplan.errors import BrokerRefused, BrokerUnavailable, OutplanError
from outplan.rabbitmq.reader import FrameHandler, FrameReaderFactory, OnClose
from outplan.rabbitmq.refusals import Arrivals, explain_failed_opening, translate

T = TypeVar("T")

CONNECT_SECONDS: Final = 10
_CLOSE_SECONDS: Final = 3
HEARTBEAT_SECONDS: Final = 10
_BLOCKED_SECONDS: Final = 0.05
# aiormq also raises EOFError, StopAsyncIteration and a bare Exception when a connection ends.
_DRIVER_ERRORS: Final = (
    AMQPError, OSError, RuntimeError, TimeoutError, EOFError, StopAsyncIteration,
)  # fmt: skip


class ConnectionGuard:
    """End every wait once a connection or channel that it watches has ended.

    ``lost`` resolves to the BrokerUnavailable that says why.
    """

    def __init__(self) -> None:
        self.lost: asyncio.Future[BrokerUnavailable] = asyncio.get_running_loop().create_future()
        self._watched: dict[aiormq.connection.Connection | Channel, asyncio.Future[Any]] = {}

    def fail(self, reason: str) -> None:
        """End all waits, now and later, with BrokerUnavailable for the first reason given."""
        if not self.lost.done():
            self.lost.set_result(BrokerUnavailable(reason))

    def raise_if_lost(self) -> None:
        """Raise the BrokerUnavailable, if there is one."""
        if self.lost.done():
            raise self.lost.result()

    async def raise_when_lost(self) -> NoReturn:
        """Wait for the end, then raise its BrokerUnavailable."""
        raise await asyncio.shield(self.lost)

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Return the result; raise BrokerUnavailable if the end comes first.

        The end also wins over a result of the same moment: a returned message fails the guard
        just before the broker confirms it.
        """
        waiting = asyncio.ensure_future(awaitable)
        # If the end comes first, nobody asks for the error.
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            futures: set[asyncio.Future[Any]] = {waiting, self.lost}
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            self.raise_if_lost()
            with translate_errors():
                return await waiting
        finally:
            waiting.cancel()

    def watch(self, part: "aiormq.connection.Connection | Channel", name: str) -> None:
        """Fail when this connection, or this channel of the connection ``name``, ends."""

        def on_closed(closing: "asyncio.Future[Any]") -> None:
            if part in self._watched:
                reason = None if closing.cancelled() else closing.exception()
                why = "" if reason is None else f": {translate(reason)}"
                self.fail(f"the {name} connection closed{why}")

        closing = part.closing  # A new future at each access.
        self._watched[part] = closing
        closing.add_done_callback(on_closed)

    def unwatch(self, part: "aiormq.connection.Connection | Channel") -> None:
        """Let this connection or channel end without failing."""
        del self._watched[part]


class Connection:
    """An open connection, from ``open_connection``. Its end is the end of its guard's waits.

    ``driver`` is the aiormq connection.
    """

    def __init__(
        self,
        driver: aiormq.connection.Connection,
        guard: ConnectionGuard,
        name: str,
        handlers: dict[int, FrameHandler],
        arrivals: Arrivals,
    ) -> None:
        self.driver = driver
        self.guard = guard
        self._name = name
        self._handlers = handlers
        self._arrivals = arrivals
        guard.watch(driver, name)

    @property
    def broker_version(self) -> str:
        """The broker's version; empty if it names none."""
        found = self.driver.server_properties or {}
        return str(found.get("version", ""))

    @property
    def frame_max(self) -> int:
        """The largest frame in bytes, as negotiated; 0 for no limit."""
        return self.driver.connection_tune.frame_max

    @property
    def overdue_seconds(self) -> float:
        """The seconds since the last byte from the broker, if a heartbeat is overdue; else 0."""
        silent = monotonic() - self._arrivals.last_at
        heartbeat = self.driver.heartbeat_timeout
        return silent if 0 < heartbeat < silent else 0

    async def open_channel(self, handler: FrameHandler | None = None) -> Channel:
        """Open a channel with confirms whose end, or cancelled consumer, fails the guard.

        The ``handler`` gets the channel's deliveries, confirms and returns. Without one they are
        the driver's, which cannot decode every message: consume nothing then.
        """
        channel = await self._open_channel()
        if handler is not None:
            self._handlers[channel.number] = handler
        self.guard.watch(channel, self._name)
        channel.on_consumer_cancel_callbacks.add(
            lambda frame: self.guard.fail(
                f"the broker cancelled the consumer {frame.consumer_tag}: its queue is gone, "
                "or deliveries were unacked for longer than the consumer timeout"
            )
        )
        return channel

    async def close_channel(self, channel: Channel) -> None:
        """Close a channel without failing the guard."""
        self.guard.unwatch(channel)
        await self.guard.wait(channel.close())
        self._handlers.pop(channel.number, None)

    @asynccontextmanager
    async def temporary_channel(self) -> AsyncIterator[Channel]:
        """Open a channel with confirms for the block; its end does not fail the guard."""
        channel = await self._open_channel()
        try:
            yield channel
        finally:
            await channel.close()

    async def write(self, frames: bytes) -> None:
        """Hand encoded frames to the driver's writer."""
        frame = ChannelFrame(frames, should_close=False)
        await self.guard.wait(self.driver.write_queue.put(frame))

    async def is_blocked(self, within: float = _BLOCKED_SECONDS) -> bool:
        """Return whether the broker blocks publishers, as it does in a memory or disk alarm.

        RabbitMQ reports alarms only to connections that have published.
        """
        try:
            async with asyncio.timeout(within):
                await self.driver.ready()
        except TimeoutError:
            return True
        return False

    async def _open_channel(self) -> Channel:
        opening = self.driver.channel(timeout=CONNECT_SECONDS, on_return_raises=True)
        channel = await self.guard.wait(opening)
        assert isinstance(channel, Channel)
        return channel


class _Driver(aiormq.connection.Connection):
    # The broker gives up a connection that is silent for two to three heartbeats. So does this
    # side, or a lost connection would be noticed twice as late here.
    HEARTBEAT_GRACE_MULTIPLIER = 2


@asynccontextmanager
async def open_connection(
    url: str,
    name: str,
    guard: ConnectionGuard | None = None,
    on_close: OnClose | None = None,
    heartbeat: int = HEARTBEAT_SECONDS,
) -> AsyncIterator[Connection]:
    """Connect as ``outplan <name>``; close when the block ends.

    ``heartbeat`` in seconds holds unless the URL has one.
    Several connections may share a ``guard``. ``on_close`` is called with the code and the text
    with which the broker closes the connection. Raises BrokerUnavailable (try again) or
    BrokerRefused.
    """
    guard = guard or ConnectionGuard()
    target = URL(url)
    if "heartbeat" not in target.query:
        target = target.update_query(heartbeat=heartbeat)
    arrivals = Arrivals()

    def note_close(code: int, reason: str) -> None:
        arrivals.close = code, reason
        guard.fail(f"the broker closed the {name} connection: {code} {reason}")
        if on_close is not None:
            on_close(code, reason)

    handlers: dict[int, FrameHandler] = {}
    driver = _Driver(
        target,
        transport_factory=FrameReaderFactory(handlers, note_close, arrivals),
        client_properties={"connection_name": f"outplan {name}"},
        **_socket_options(target),
    )
    try:
        with translate_errors(name):
            async with asyncio.timeout(CONNECT_SECONDS):
                await driver.connect()
                await driver.ready()
    except (BrokerRefused, BrokerUnavailable) as error:
        why = explain_failed_opening(error, arrivals, target, driver.vhost)
        raise why from error.__cause__
    try:
        yield Connection(driver, guard, name, handlers, arrivals)
    finally:
        # The connection may be closing because it is broken.
        with suppress(OutplanError), translate_errors():
            async with asyncio.timeout(_CLOSE_SECONDS):
                await driver.close(ConnectionClosed(0, "normal closed"))


def _socket_options(target: URL) -> dict[str, Any]:
    """Read what the URL may say about opening the socket, as aio-pika does."""
    options: dict[str, Any] = {}
    for name, parse in (("happy_eyeballs_delay", float), ("interleave", int)):
        with suppress(KeyError, ValueError):
            options[name] = parse(target.query[name])
    return options


@contextmanager
def explain_conflicts(what: str) -> Iterator[None]:
    """Raise BrokerRefused that says what to do if a declaration of ``what`` is refused."""
    try:
        yield
    except ChannelPreconditionFailed as error:
        differs = "inequivalent" in str(error)
        how = "exists with other arguments" if differs else "cannot be declared"
        raise BrokerRefused(f"{what} {how}: {translate(error)}") from error


@contextmanager
def translate_errors(name: str = "AMQP") -> Iterator[None]:
    """Raise BrokerUnavailable or BrokerRefused for what the driver raises.

    ``name`` is the connection's, for the message.
    """
    try:
        yield
    except (*_DRIVER_ERRORS, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # While a connection ends, the driver may raise its own error for our cancellation.
            raise asyncio.CancelledError from error
        # The driver cancels its own calls when a connection ends.
        if isinstance(error, asyncio.CancelledError):
            raise BrokerUnavailable(f"the {name} connection ended") from error
        raise translate(error) from error
