"""Publish raw messages with confirms: most clients refuse to write what the fuzzer sends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiormq.channel import Channel

from outplan.errors import BrokerUnavailable
from outplan.rabbitmq.connection import Connection, open_connection
from outplan.rabbitmq.frames import BODY, FRAME_HEAD, HEADER, METHOD, PUBLISH, U32
from outplan.rabbitmq.reader import FrameHandler
from tests.support.raw_message import RawMessage
from tests.support.wire import FRAME_MAX

_STALLED_SECONDS: Final = 60


class _Confirms(FrameHandler):
    """The delivery tags that wait for a confirm."""

    def __init__(self) -> None:
        self.pending: set[int] = set()
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Wait until all are confirmed."""
        while self.pending:
            self._changed.clear()
            await self._changed.wait()

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:
        assert confirmed, "the broker nacked a message"
        self.pending -= {n for n in self.pending if n <= tag} if multiple else {tag}
        self._changed.set()


class RawPublisher:
    """Publish raw messages on a channel. Use ``open_raw_publisher``."""

    def __init__(self, connection: Connection, channel: Channel, confirms: _Confirms) -> None:
        self._connection = connection
        self._channel = channel
        self._confirms = confirms
        self._last_tag = 0

    async def publish(self, exchange: str, messages: Sequence[RawMessage]) -> None:
        """Publish all and await their confirms. Raises ConnectionError with the broker's reason."""
        data = b"".join(_frames(self._channel.number, exchange, message) for message in messages)
        first = self._last_tag + 1
        self._last_tag += len(messages)
        self._confirms.pending = set(range(first, self._last_tag + 1))
        try:
            await self._connection.write(data)
            async with asyncio.timeout(_STALLED_SECONDS):
                await self._connection.guard.wait(self._confirms.wait())
        except BrokerUnavailable as error:
            raise ConnectionError(str(error)) from error


@asynccontextmanager
async def open_raw_publisher(url: str) -> AsyncIterator[RawPublisher]:
    """Open a raw publisher on a connection of its own."""
    confirms = _Confirms()
    async with open_connection(url, "raw publisher") as connection:
        yield RawPublisher(connection, await connection.open_channel(confirms), confirms)


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
