"""A tap on a connection's incoming frames: content is read here, the rest goes to the library."""

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


class FrameHandler:
    """What the tap hands over, each called from the reading task."""

    close_code: int = 0

    def on_delivery(self, delivery: Delivery) -> None:
        """A message for a consumer. Its ``queue`` is the consumer tag."""

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:
        """The broker's verdict on published messages."""

    def on_return(self, reason: str) -> None:
        """A mandatory message that no queue took; its confirm follows."""

    def on_close(self, code: int, reason: str) -> None:
        """The broker closes the connection; the library hears it too, and may lose the reason."""


class FrameReaderFactory(TransportFactory):
    """Opens the socket for the library and reads it through a ``FrameReader``."""

    def __init__(self, incoming: FrameHandler) -> None:
        self._incoming = incoming

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **kwargs)
        return FrameReader(reader, self._incoming), writer  # type: ignore[return-value]


class FrameReader:
    """The part of ``asyncio.StreamReader`` that the library reads frames with."""

    def __init__(self, reader: asyncio.StreamReader, incoming: FrameHandler) -> None:
        self._reader = reader
        self._incoming = incoming
        self._unread = b""
        self._passed = bytearray()
        self._content: _Content | None = None
        self._foreign = False

    def at_eof(self) -> bool:
        # At the end of a stream the library stops an iteration, also where none goes on, as in
        # the middle of connecting. The read that follows says what has happened.
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
        at, length = 0, len(data)
        # No frame, but the broker's answer to a version that it doesn't speak.
        self._foreign = self._foreign or data.startswith(b"A")
        if self._foreign:
            self._passed += data
            self._unread = b""
            return
        passed = len(self._passed)
        while at + _HEAD <= length:
            kind, _, size = FRAME_HEAD.unpack_from(data, at)
            end = at + _HEAD + size + 1
            if end > length:
                break
            if not self._tapped(kind, data[at + _HEAD : end - 1]):
                self._passed += data[at:end]
            at = end
        self._unread = data[at:]
        if at and len(self._passed) == passed:
            # The library takes a connection without a frame for dead, and has just been robbed
            # of all there were.
            self._passed += HEARTBEAT

    def _tapped(self, kind: int, payload: bytes) -> bool:
        if kind == METHOD:
            return self._method(payload)
        content = self._content
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

    def _method(self, payload: bytes) -> bool:
        (method,) = U32.unpack_from(payload)
        if method == DELIVER:
            self._content = _Content(payload, self._delivered)
        elif method in (ACK, NACK):
            tag, multiple = read_confirm(payload)
            self._incoming.on_confirm(tag, multiple, method == ACK)
        elif method == RETURN:
            self._content = _Content(payload, self._returned)
        else:
            if method == CONNECTION_CLOSE:
                self._incoming.close_code, reason = read_close(payload)
                self._incoming.on_close(self._incoming.close_code, reason)
            return False
        return True

    def _delivered(self, content: "_Content") -> None:
        consumer, tag, redelivered, exchange, routing_key = read_deliver(content.method)
        assert content.properties is not None
        self._incoming.on_delivery(
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

    def _returned(self, content: "_Content") -> None:
        text = content.method[7 : 7 + content.method[6]]
        self._incoming.on_return(text.decode("utf-8", "replace"))


class _Content:
    """A method that carries content, until all its frames are there.

    One at a time is enough: the connection has one channel that content comes in on.
    """

    __slots__ = ("finish", "method", "missing", "parts", "properties")

    def __init__(self, method: bytes, finish: Callable[["_Content"], None]) -> None:
        self.method = method
        self.finish = finish
        self.properties: WireProperties | None = None
        self.parts: list[bytes] = []
        self.missing = 0
