"""Read content from a connection's incoming frames; pass all other frames on to the driver."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
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

_CHUNK: Final = 1 << 18
_HEAD: Final = 7

OnClose = Callable[[int, str], None]


class FrameHandler:
    """Receive what a FrameReader reads. Every method runs in the task that reads the socket."""

    def on_delivery(self, delivery: Delivery) -> None:
        """Take a message for a consumer. Its ``queue`` is the consumer tag."""

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:
        """Take the broker's ack (``confirmed``) or nack of published messages."""

    def on_return(self, reason: str) -> None:
        """Take note of a mandatory message that no queue took; its confirm follows."""

    def on_close(self, code: int, reason: str) -> None:
        """Take the broker's reason for closing the connection, which the driver may lose."""


class FrameReaderFactory(TransportFactory):
    """Open the socket for the driver and read it through a FrameReader."""

    def __init__(self, handler: FrameHandler, on_close: OnClose) -> None:
        self._handler = handler
        self._on_close = on_close

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **kwargs)
        return FrameReader(reader, self._handler, self._on_close), writer  # type: ignore[return-value]


async def unused_callback(_message: Any) -> None:
    """Stand in for a consumer's callback: the FrameReader takes deliveries before the driver."""


class FrameReader:
    """The part of ``asyncio.StreamReader`` that the driver reads frames with.

    Hands deliveries, confirms and returns to ``handler``, and leaves the rest for the driver.
    """

    def __init__(
        self, reader: asyncio.StreamReader, handler: FrameHandler, on_close: OnClose | None = None
    ) -> None:
        self._reader = reader
        self._handler = handler
        self._on_close = on_close or handler.on_close
        self._unread = b""
        self._passed = bytearray()
        self._content: _Content | None = None
        self._is_foreign = False

    def at_eof(self) -> bool:
        # The driver ends an iteration at EOF, also while connecting, where it has none. The read
        # that follows reports the end instead.
        return False

    async def read(self, n: int = -1) -> bytes:
        return await self._reader.read(n)

    async def readexactly(self, n: int) -> bytes:
        while len(self._passed) < n:
            chunk = await self._reader.read(_CHUNK)
            if not chunk:
                raise asyncio.IncompleteReadError(bytes(self._passed), n)
            self._take(chunk)
        found = bytes(self._passed[:n])
        del self._passed[:n]
        return found

    def _take(self, chunk: bytes) -> None:
        data = self._unread + chunk if self._unread else chunk
        # Instead of a frame: the broker's answer to a protocol version that it does not speak.
        self._is_foreign = self._is_foreign or data.startswith(b"A")
        if self._is_foreign:
            self._passed += data
            self._unread = b""
            return
        at, length = 0, len(data)
        passed = len(self._passed)
        while at + _HEAD <= length:
            kind, _, size = FRAME_HEAD.unpack_from(data, at)
            start = at + _HEAD
            end = start + size + 1
            if end > length:
                break
            if not self._handle(kind, data[start : end - 1]):
                self._passed += data[at:end]
            at = end
        self._unread = data[at:]
        if at and len(self._passed) == passed:
            # The driver takes a connection without frames for dead: give it a heartbeat in place
            # of the frames taken.
            self._passed += HEARTBEAT

    def _handle(self, kind: int, payload: bytes) -> bool:
        """Take a frame; return False to leave it to the driver."""
        content = self._content
        if kind == METHOD:
            return self._handle_method(payload)
        if content is None or kind not in (HEADER, BODY):
            return False
        if kind == HEADER:
            content.properties = read_content_header(payload)
            content.missing = content.properties.body_size
        else:
            content.parts.append(payload)
            content.missing -= len(payload)
        if content.properties is not None and content.missing == 0:
            self._content = None
            content.finish(content)
        return True

    def _handle_method(self, payload: bytes) -> bool:
        (method,) = U32.unpack_from(payload)
        if method == DELIVER:
            self._content = _Content(payload, self._finish_delivery)
        elif method in (ACK, NACK):
            tag, multiple = read_confirm(payload)
            self._handler.on_confirm(tag, multiple, method == ACK)
        elif method == RETURN:
            self._content = _Content(payload, self._finish_return)
        else:
            if method == CONNECTION_CLOSE:
                self._on_close(*read_close(payload))
            return False
        return True

    def _finish_delivery(self, content: "_Content") -> None:
        consumer, tag, redelivered, exchange, routing_key = read_deliver(content.method)
        assert content.properties is not None
        self._handler.on_delivery(
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

    def _finish_return(self, content: "_Content") -> None:
        text = content.method[7 : 7 + content.method[6]]
        self._handler.on_return(text.decode("utf-8", "replace"))


class _Content:
    """A method that carries content, until all its frames have arrived.

    One at a time is enough: a connection has one channel on which content arrives.
    """

    __slots__ = ("finish", "method", "missing", "parts", "properties")

    def __init__(self, method: bytes, finish: Callable[["_Content"], None]) -> None:
        self.method = method
        self.finish = finish
        self.properties: WireProperties | None = None
        self.parts: list[bytes] = []
        self.missing = 0
