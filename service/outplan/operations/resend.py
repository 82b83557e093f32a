"""Rejected commands on their way again: as they were sent, but for where the outcome goes."""

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
from outplan.operations.rejected_message import command_name
from outplan.rabbitmq.connection import CONNECT_SECONDS, open_connection, translated
from outplan.rabbitmq.frames import PROPERTIES, U32, WireProperties, read_content_header, without
from outplan.rabbitmq.frames import write_publication as written
from outplan.rabbitmq.reader import FrameHandler

# What the rejection has added, the worker's or the broker's; the command is sent without it.
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


def resendable(copy: Delivery, exchange: str, user: str, reply_to: str | None = None) -> Delivery:
    """The command that a copy is of, as a delivery to be judged, or published.

    Body, message_id, type, correlation_id and the publisher's headers are byte for byte the same.
    ``user`` is the connection's own: the broker lets nobody else's ``user_id`` through.
    """
    properties = copy.properties
    assert isinstance(properties, WireProperties)
    table = without(properties.table, _ADDED)
    changes: dict[str, bytes | None] = {"table": U32.pack(len(table)) + table, "reply_to": None}
    if reply_to is not None:
        changes["reply_to"] = bytes((len(reply_to),)) + reply_to.encode()
    if properties.user_id != user:
        changes["user_id"] = None
    name = command_name(copy)
    key = name if len(name.encode("utf-8", "surrogateescape")) <= _LONGEST_KEY else ""
    return replace(
        copy,
        exchange=exchange,
        routing_key=key,
        redelivered=False,
        properties=_changed(properties, changes),
    )


def _changed(original: WireProperties, changes: Mapping[str, bytes | None]) -> WireProperties:
    """The properties with the bytes of some replaced, or left out."""
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


class Asking(FrameHandler):
    """One command at a time: published, confirmed, and its outcome heard."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.reply_queue = ""
        self._channel: AbstractChannel
        self._news = asyncio.Event()
        self._confirmed: bool | None = None
        self._returned = ""
        self._failed = ""
        self._reply: Reply | None = None
        self._command_id: str | None = None

    async def start(self, connection: aio_pika.Connection) -> None:
        assert connection.transport is not None
        underlying = connection.transport.connection
        # Returns and replies carry content, and come in on this one channel, as the tap wants it.
        self._channel = await underlying.channel(timeout=CONNECT_SECONDS)
        for part in (underlying, self._channel):
            part.closing.add_done_callback(self._closed)
        declared = await self._channel.queue_declare(exclusive=True)
        self.reply_queue = declared.queue or ""
        await self._channel.basic_consume(self.reply_queue, _untapped, no_ack=True)

    async def ask(self, command: Delivery, seconds: float) -> Reply:
        """Send it, and await its outcome.

        Raises TimeoutError or BrokerUnavailable where it is not known whether the command takes
        effect, and BrokerRefused where it is known that it does not.
        """
        self._confirmed, self._returned, self._reply = None, "", None
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
            return await self._outcome()

    async def _outcome(self) -> Reply:
        while self._confirmed is None or self._reply is None:
            if self._returned:
                raise BrokerRefused(f"no queue takes commands: {self._returned}")
            if self._confirmed is False:
                raise BrokerRefused("the broker refuses the command: a full queue?")
            if self._failed:
                raise BrokerUnavailable(self._failed)
            self._news.clear()
            await self._news.wait()
        return self._reply

    def on_delivery(self, delivery: Delivery) -> None:
        try:
            reply = Reply.model_validate_json(delivery.body)
        except ValueError:
            return
        if reply.command_id == self._command_id:
            self._reply = reply
            self._news.set()

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:  # noqa: ARG002
        self._confirmed = confirmed
        self._news.set()

    def on_return(self, reason: str) -> None:
        self._returned = reason
        self._news.set()

    def on_close(self, code: int, reason: str) -> None:
        self._fail(f"the broker closed the connection: {code} {reason}")

    def _closed(self, closing: "asyncio.Future[Any]") -> None:
        reason = None if closing.cancelled() else closing.exception()
        self._fail(f"connection closed: {reason!r}")

    def _fail(self, reason: str) -> None:
        self._failed = self._failed or reason
        self._news.set()


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[Asking]:
    """Connect. Raises BrokerUnavailable and BrokerRefused."""
    found = Asking(user_of(url))
    async with open_connection(url, "redrive", found) as connection:
        with translated():
            await found.start(connection)
        yield found


def user_of(url: str) -> str:
    """The user that connects by this URL."""
    return URL(url).user or "guest"


async def _untapped(_message: Any) -> None:
    """Never called: no delivery gets past the tap."""
