"""A publisher of frames as they are: most clients can't write what it sends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiormq.abc import AbstractChannel, ChannelFrame

from outplan.rabbitmq.connection import open_connection
from outplan.rabbitmq.frames import BODY, FRAME_HEAD, HEADER, METHOD, PUBLISH, U32
from outplan.rabbitmq.reader import FrameHandler
from tests.support.raw_message import RawMessage
from tests.support.wire import FRAME_MAX

_STALLED_SECONDS: Final = 60


class RawPublisher(FrameHandler):
    """Publishes frames as they are, confirmed. Made by ``raw_publisher``."""

    def __init__(self) -> None:
        self.channel: AbstractChannel
        self.closed = ""
        self._open: set[int] = set()
        self._last = 0
        self._news = asyncio.Event()

    async def publish(self, exchange: str, messages: Sequence[RawMessage]) -> None:
        """Publish all and await their confirms. Raises ConnectionError with the broker's reason."""
        data = b"".join(_frames(self.channel.number, exchange, message) for message in messages)
        self._open = set(range(self._last + 1, self._last + len(messages) + 1))
        self._last += len(messages)
        await self.channel.connection.write_queue.put(ChannelFrame(data, should_close=False))
        while self._open:
            self._news.clear()
            async with asyncio.timeout(_STALLED_SECONDS):
                await self._news.wait()
            if self.closed:
                raise ConnectionError(self.closed)

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:
        assert confirmed, "the broker refuses a message"
        self._open -= {n for n in self._open if n <= tag} if multiple else {tag}
        self._news.set()

    def on_close(self, code: int, reason: str) -> None:
        self.fail(f"{code} {reason}")

    def fail(self, reason: str) -> None:
        self.closed = self.closed or reason
        self._news.set()


@asynccontextmanager
async def raw_publisher(url: str) -> AsyncIterator[RawPublisher]:
    """A connection of its own."""
    publisher = RawPublisher()
    async with open_connection(url, "hostile", publisher) as connection:
        assert connection.transport is not None
        publisher.channel = await connection.transport.connection.channel()
        publisher.channel.closing.add_done_callback(
            lambda closing: publisher.fail(f"channel closed: {_reason(closing)}")
        )
        yield publisher


def _reason(closing: "asyncio.Future[Any]") -> str:
    return "" if closing.cancelled() else repr(closing.exception())


def _frames(channel: int, exchange: str, message: RawMessage) -> bytes:
    key = message.routing_key.encode("utf-8", "surrogateescape")
    name = exchange.encode()
    method = b"".join(
        (U32.pack(PUBLISH), b"\0\0", bytes([len(name)]), name, bytes([len(key)]), key, b"\0")
    )
    size = FRAME_MAX - 8
    body = (message.body[at : at + size] for at in range(0, len(message.body), size))
    return b"".join(
        FRAME_HEAD.pack(kind, channel, len(payload)) + payload + b"\xce"
        for kind, payload in (
            (METHOD, method), (HEADER, message.header), *((BODY, part) for part in body)
        )
    )  # fmt: skip
