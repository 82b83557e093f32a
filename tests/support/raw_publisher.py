"""Publish raw messages with confirms: most clients refuse to write what the fuzzer sends."""

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


class _Confirms(FrameHandler):
    """The delivery tags that wait for a confirm, or the reason why none will come."""

    def __init__(self) -> None:
        self.pending: set[int] = set()
        self.close_reason = ""
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Wait until all are confirmed. Raises ConnectionError with the broker's reason."""
        while self.pending:
            self._changed.clear()
            async with asyncio.timeout(_STALLED_SECONDS):
                await self._changed.wait()
            if self.close_reason:
                raise ConnectionError(self.close_reason)

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:
        assert confirmed, "the broker nacked a message"
        self.pending -= {n for n in self.pending if n <= tag} if multiple else {tag}
        self._changed.set()

    def on_close(self, code: int, reason: str) -> None:
        self.fail(f"{code} {reason}")

    def fail(self, reason: str) -> None:
        self.close_reason = self.close_reason or reason
        self._changed.set()


class RawPublisher:
    """Publish raw messages on a channel. Use ``open_raw_publisher``."""

    def __init__(self, channel: AbstractChannel, confirms: _Confirms) -> None:
        self._channel = channel
        self._confirms = confirms
        self._last_tag = 0

    async def publish(self, exchange: str, messages: Sequence[RawMessage]) -> None:
        """Publish messages and wait for their confirms.

        Raises ConnectionError with the broker's reason.
        """
        data = b"".join(_frames(self._channel.number, exchange, message) for message in messages)
        first = self._last_tag + 1
        self._last_tag += len(messages)
        self._confirms.pending = set(range(first, self._last_tag + 1))
        await self._channel.connection.write_queue.put(ChannelFrame(data, should_close=False))
        await self._confirms.wait()


@asynccontextmanager
async def open_raw_publisher(url: str) -> AsyncIterator[RawPublisher]:
    """Open a publisher on a connection of its own."""
    confirms = _Confirms()
    async with open_connection(url, "raw publisher", confirms) as connection:
        assert connection.transport is not None
        channel = await connection.transport.connection.channel()
        channel.closing.add_done_callback(
            lambda closing: confirms.fail(f"channel closed: {_reason(closing)}")
        )
        yield RawPublisher(channel, confirms)


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
