"""Publish rejected commands again, as they were sent, and await their replies."""

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import aio_pika
from aiormq.abc import AbstractChannel, ChannelFrame
from yarl import URL

from outplan.client.models import Reply
from outplan.contract.amqp import Delivery, Publication
from outplan.errors import BrokerRefused, BrokerUnavailable
from outplan.operations.rejected_message import find_command_name
from outplan.rabbitmq.connection import CONNECT_SECONDS, open_connection, translated
from outplan.rabbitmq.frames import PROPERTIES, U32, WireProperties, read_content_header, without
from outplan.rabbitmq.frames import write_publication as written
from outplan.rabbitmq.reader import FrameHandler

# Headers that the worker or the broker adds to a rejected command; redrive removes them.
_ADDED: Final = frozenset(
    {
        "x-problem-code", "x-problem", "x-rejected-at", "x-original-exchange",
        "x-original-routing-key", "x-original-user-id", "x-original-cc", "x-original-bcc",
        "x-headers-dropped", "x-death", "x-first-death-exchange", "x-first-death-queue",
        "x-first-death-reason", "x-last-death-exchange", "x-last-death-queue",
        "x-last-death-reason",
    }
)  # fmt: skip
_content_head: Final = struct.Struct(">HHQH")
_LONGEST_KEY: Final = 255


def restore_command(
    message: Delivery, exchange: str, user: str, reply_to: str | None = None
) -> Delivery:
    """Rebuild the command that a rejected message holds, to validate or to publish it.

    Body, message_id, type, correlation_id and the publisher's headers keep their bytes. ``user`` is
    the connection's user: the broker refuses a ``user_id`` that names another.
    """
    properties = message.properties
    assert isinstance(properties, WireProperties)
    table = without(properties.table, _ADDED)
    changes: dict[str, bytes | None] = {"table": U32.pack(len(table)) + table, "reply_to": None}
    if reply_to is not None:
        changes["reply_to"] = bytes((len(reply_to),)) + reply_to.encode()
    if properties.user_id != user:
        changes["user_id"] = None
    name = find_command_name(message)
    key = name if len(name.encode("utf-8", "surrogateescape")) <= _LONGEST_KEY else ""
    return replace(
        message,
        exchange=exchange,
        routing_key=key,
        redelivered=False,
        properties=_replace_bytes(properties, changes),
    )


def _replace_bytes(original: WireProperties, changes: Mapping[str, bytes | None]) -> WireProperties:
    """Return the properties with the bytes of some replaced or removed."""
    flags, parts = 0, []
    for flag, name, _ in PROPERTIES:
        span = original.spans.get(name)
        data = changes[name] if name in changes else original.raw[slice(*span)] if span else None
        if data is not None:
            flags |= flag
            parts.append(data)
    return read_content_header(
        _content_head.pack(60, 0, original.body_size, flags) + b"".join(parts)
    )


class ReplyClient(FrameHandler):
    """Publish one command at a time, and await its confirm and its reply."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.reply_queue = ""
        self._channel: AbstractChannel
        self._changed = asyncio.Event()
        self._confirmed: bool | None = None
        self._return_reason = ""
        self._failure = ""
        self._reply: Reply | None = None
        self._command_id: str | None = None

    async def start(self, connection: aio_pika.Connection) -> None:
        assert connection.transport is not None
        underlying = connection.transport.connection
        # The frame reader takes content on one channel, so returns and replies share this one.
        self._channel = await underlying.channel(timeout=CONNECT_SECONDS)
        for part in (underlying, self._channel):
            part.closing.add_done_callback(self._closed)
        declared = await self._channel.queue_declare(exclusive=True)
        self.reply_queue = declared.queue or ""
        await self._channel.basic_consume(self.reply_queue, _untapped, no_ack=True)

    async def ask(self, command: Delivery, seconds: float) -> Reply:
        """Publish a command and return its reply.

        Raises BrokerRefused where the command takes no effect, and TimeoutError or
        BrokerUnavailable where it may take effect.
        """
        self._confirmed, self._return_reason, self._reply = None, "", None
        self._command_id = command.command_id
        assert self._channel.connection is not None
        publication = Publication(
            command.exchange, command.routing_key, command.body, {}, original=command
        )
        frame_max = self._channel.connection.connection_tune.frame_max
        frames = written(self._channel.number, publication, frame_max, self.user)
        async with asyncio.timeout(seconds):
            with translated():
                await self._channel.connection.write_queue.put(ChannelFrame(frames, False))
            return await self._wait_for_reply()

    async def _wait_for_reply(self) -> Reply:
        while self._confirmed is None or self._reply is None:
            if self._return_reason:
                raise BrokerRefused(
                    f"the broker returned the command ({self._return_reason}); "
                    "check --prefix, or start a worker, which binds its queues"
                )
            if self._confirmed is False:
                raise BrokerRefused("the broker nacked the command; see whether a queue is full")
            if self._failure:
                raise BrokerUnavailable(self._failure)
            self._changed.clear()
            await self._changed.wait()
        return self._reply

    def on_delivery(self, delivery: Delivery) -> None:
        try:
            reply = Reply.model_validate_json(delivery.body)
        except ValueError:
            return
        if reply.command_id == self._command_id:
            self._reply = reply
            self._changed.set()

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:  # noqa: ARG002
        self._confirmed = confirmed
        self._changed.set()

    def on_return(self, reason: str) -> None:
        self._return_reason = reason
        self._changed.set()

    def on_close(self, code: int, reason: str) -> None:
        self._fail(f"the broker closed the connection: {code} {reason}")

    def _closed(self, closing: "asyncio.Future[Any]") -> None:
        reason = None if closing.cancelled() else closing.exception()
        self._fail(f"connection closed: {reason!r}")

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self._changed.set()


@asynccontextmanager
async def open_reply_client(url: str) -> AsyncIterator[ReplyClient]:
    """Connect. Raises BrokerUnavailable and BrokerRefused."""
    client = ReplyClient(user_of(url))
    async with open_connection(url, "redrive", client) as connection:
        with translated():
            await client.start(connection)
        yield client


def user_of(url: str) -> str:
    """Return the user that connects by this URL."""
    return URL(url).user or "guest"


async def _untapped(_message: Any) -> None:
    """Never called: no delivery gets past the tap."""
