"""Read content from a connection's incoming frames; pass all other frames on to the driver.

Everything that consumes does it this way, the worker, the client and the commands: a message that
the driver cannot decode would end the connection, again at each redelivery.
"""

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final

from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import IncompatibleProtocolError
from yarl import URL

from outplan.contract.amqp import Delivery
from outplan.rabbitmq.frames import (
    ACK,
    BODY,
    CONNECTION_CLOSE,
    DELIVER,
    FRAME_HEAD,
    HEADER,
    HEARTBEAT,
    METHOD,
    NACK,
    RETURN,
    U32,
    WireProperties,
    read_close,
    read_confirm,
    read_content_header,
    read_deliver,
)
from outplan.rabbitmq.refusals import Arrivals

_CHUNK: Final = 1 << 18
_HEAD: Final = 7
# RabbitMQ greets before it looks at anything. A server that says nothing is another one.
GREETING_SECONDS: Final = 3
_OPEN: Final = bytes((METHOD,))

OnClose = Callable[[int, str], None]


class FrameHandler:
    """Receive what a FrameReader reads on a channel, in the task that reads the socket."""

    def on_delivery(self, delivery: Delivery) -> None:
        """Take a message for a consumer. Its ``queue`` is the consumer tag."""

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:
        """Take the broker's ack (``confirmed``) or nack of published messages."""

    def on_return(self, reason: str) -> None:
        """Take note of a mandatory message that no queue took; its confirm follows."""


class FrameReaderFactory(TransportFactory):
    """Open the socket for the driver and read it through a FrameReader.

    ``handlers`` maps the numbers of channels to their handlers; channels may be added at any time.
    """

    def __init__(
        self, handlers: Mapping[int, FrameHandler], on_close: OnClose, arrivals: Arrivals
    ) -> None:
        self._handlers = handlers
        self._on_close = on_close
        self._arrivals = arrivals

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **kwargs)
        self._arrivals.has_socket = True
        reading = FrameReader(reader, self._handlers, self._on_close, self._arrivals)
        return reading, writer  # type: ignore[return-value]


async def unused_callback(_message: Any) -> None:
    """Stand in for a consumer's callback: the FrameReader takes deliveries before the driver."""


class FrameReader:
    """The part of ``asyncio.StreamReader`` that the driver reads frames with.

    Hands a channel's deliveries, confirms and returns to its handler. Leaves the rest for the
    driver, including all that channels without a handler receive. ``on_close`` is called with the
    broker's reason for closing the connection, which the driver may lose. ``arrivals`` takes the
    server's first bytes, which RabbitMQ sends at once; without one, the connection is open already.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        handlers: Mapping[int, FrameHandler],
        on_close: OnClose,
        arrivals: Arrivals | None = None,
    ) -> None:
        self._arrivals = arrivals or Arrivals(first_bytes=_OPEN)
        self._reader = reader
        self._handlers = handlers
        self._on_close = on_close
        self._unread = b""
        self._passed = bytearray()
        self._contents: dict[int, _Content] = {}

    def at_eof(self) -> bool:
        # The driver ends an iteration at EOF, also while connecting, where it has none. The read
        # that follows reports the end instead.
        return False

    async def read(self, n: int = -1) -> bytes:
        return await self._reader.read(n)

    async def readexactly(self, n: int) -> bytes:
        while len(self._passed) < n:
            chunk = await self._read_chunk()
            self._arrivals.last_at = monotonic()
            if not chunk:
                raise asyncio.IncompleteReadError(bytes(self._passed), n)
            self._take(chunk)
        found = bytes(self._passed[:n])
        del self._passed[:n]
        return found

    async def _read_chunk(self) -> bytes:
        if self._arrivals.first_bytes:
            return await self._reader.read(_CHUNK)
        async with asyncio.timeout(GREETING_SECONDS):
            self._arrivals.first_bytes = await self._reader.read(_CHUNK)
        if self._arrivals.is_foreign:
            # Another protocol, or RabbitMQ's answer to a version of AMQP that it does not speak.
            raise IncompatibleProtocolError("no AMQP 0-9-1")
        return self._arrivals.first_bytes

    def _take(self, chunk: bytes) -> None:
        data = self._unread + chunk if self._unread else chunk
        at, length = 0, len(data)
        passed = len(self._passed)
        while at + _HEAD <= length:
            kind, channel, size = FRAME_HEAD.unpack_from(data, at)
            start = at + _HEAD
            end = start + size + 1
            if end > length:
                break
            if not self._handle(kind, channel, data[start : end - 1]):
                self._passed += data[at:end]
            at = end
        self._unread = data[at:]
        if at and len(self._passed) == passed:
            # The driver takes a connection without frames for dead: give it a heartbeat in place
            # of the frames taken.
            self._passed += HEARTBEAT

    def _handle(self, kind: int, channel: int, payload: bytes) -> bool:
        """Take a frame; return False to leave it to the driver."""
        if kind == METHOD:
            return self._handle_method(channel, payload)
        content = self._contents.get(channel)
        if content is None or kind not in (HEADER, BODY):
            return False
        if kind == HEADER:
            content.properties = read_content_header(payload)
            content.missing = content.properties.body_size
        else:
            content.parts.append(payload)
            content.missing -= len(payload)
        if content.properties is not None and content.missing == 0:
            del self._contents[channel]
            content.finish(content)
        return True

    def _handle_method(self, channel: int, payload: bytes) -> bool:
        (method,) = U32.unpack_from(payload)
        handler = self._handlers.get(channel)
        if handler is not None:
            if method == DELIVER:
                self._contents[channel] = _Content(handler, payload, _finish_delivery)
                return True
            if method in (ACK, NACK):
                tag, multiple = read_confirm(payload)
                handler.on_confirm(tag, multiple, method == ACK)
                return True
            if method == RETURN:
                self._contents[channel] = _Content(handler, payload, _finish_return)
                return True
        if method == CONNECTION_CLOSE:
            self._on_close(*read_close(payload))
        return False


class _Content:
    """A method that carries content, until all its frames have arrived on its channel."""

    __slots__ = ("finish", "handler", "method", "missing", "parts", "properties")

    def __init__(
        self, handler: FrameHandler, method: bytes, finish: Callable[["_Content"], None]
    ) -> None:
        self.handler = handler
        self.method = method
        self.finish = finish
        self.properties: WireProperties | None = None
        self.parts: list[bytes] = []
        self.missing = 0


def _finish_delivery(content: _Content) -> None:
    consumer, tag, redelivered, exchange, routing_key = read_deliver(content.method)
    assert content.properties is not None
    content.handler.on_delivery(
        Delivery(
            tag,
            consumer,
            exchange,
            routing_key,
            redelivered,
            content.properties,
            content.parts[0] if len(content.parts) == 1 else b"".join(content.parts),
        )
    )


def _finish_return(content: _Content) -> None:
    text = content.method[7 : 7 + content.method[6]]
    content.handler.on_return(text.decode("utf-8", "replace"))
