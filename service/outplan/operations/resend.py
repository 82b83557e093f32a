"""Publish rejected commands again, as they were sent, and await their replies."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from aiormq.channel import Channel
from yarl import URL

from outplan.client.models import Reply
from outplan.contract.amqp import Delivery, Publication
from outplan.errors import BrokerRefused
from outplan.operations.rejected_message import find_command_name, find_route
from outplan.rabbitmq.connection import Connection, open_connection, translate_errors
from outplan.rabbitmq.frames import U32, WireProperties, drop_headers, write_publication
from outplan.rabbitmq.reader import FrameHandler, unused_callback

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
_LONGEST_KEY: Final = 255


def restore_command(
    message: Delivery, exchange: str, user: str, reply_to: str | None = None
) -> Delivery:
    """Rebuild the command that a rejected message holds, to validate or to publish it.

    Body, message_id, type, correlation_id and the publisher's headers keep their bytes, and the
    routing key its slot. ``user`` is the connection's user: the broker refuses a ``user_id`` that
    names another.
    """
    properties = message.properties
    assert isinstance(properties, WireProperties)
    table = drop_headers(properties.table, _ADDED)
    changes: dict[str, bytes | None] = {"table": U32.pack(len(table)) + table, "reply_to": None}
    if reply_to is not None:
        changes["reply_to"] = bytes((len(reply_to),)) + reply_to.encode()
    if properties.user_id != user:
        changes["user_id"] = None
    former_exchange, key = find_route(message)
    if not former_exchange:
        # Through the default exchange, the key was the queue's name.
        key = find_command_name(message)
    if len(key.encode("utf-8", "surrogateescape")) > _LONGEST_KEY:
        key = ""
    return replace(
        message,
        exchange=exchange,
        routing_key=key,
        redelivered=False,
        properties=properties.replace(changes),
    )


class _Outcome(FrameHandler):
    """Collect what the broker and the worker say about one command at a time."""

    def __init__(self) -> None:
        self._command_id: str | None = None
        self._is_confirmed = False
        self._reply: Reply | None = None
        self._done: asyncio.Future[Reply] | None = None

    def expect(self, command_id: str | None) -> "asyncio.Future[Reply]":
        """Await the confirm and the reply of the next command; BrokerRefused if it goes nowhere."""
        self._command_id, self._is_confirmed, self._reply = command_id, False, None
        self._done = asyncio.get_running_loop().create_future()
        return self._done

    def on_delivery(self, delivery: Delivery) -> None:
        try:
            reply = Reply.model_validate_json(delivery.body)
        except ValueError:
            return
        if reply.command_id == self._command_id:
            self._reply = reply
            self._finish()

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:  # noqa: ARG002
        if confirmed:
            self._is_confirmed = True
            self._finish()
        else:
            self._refuse("the broker nacked the command; see whether a queue is full")

    def on_return(self, reason: str) -> None:
        self._refuse(
            f"the broker returned the command ({reason}); "
            "check --prefix, or start a worker, which binds its queues"
        )

    def _finish(self) -> None:
        if self._done is None or self._done.done():
            return
        if self._is_confirmed and self._reply is not None:
            self._done.set_result(self._reply)

    def _refuse(self, reason: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(BrokerRefused(reason))
            self._done.exception()  # Nobody may wait for it any more.


class ReplyClient:
    """Publish one command at a time, and await its confirm and its reply.

    From ``open_reply_client``. Commands need ``reply_queue`` as their ``reply_to``; ``user`` is the
    only ``user_id`` that they may carry.
    """

    def __init__(
        self,
        connection: Connection,
        channel: Channel,
        outcome: _Outcome,
        user: str,
        reply_queue: str,
    ) -> None:
        self.user = user
        self.reply_queue = reply_queue
        self._connection = connection
        self._channel = channel
        self._outcome = outcome

    async def ask(self, command: Delivery, seconds: float) -> Reply:
        """Publish a command and return its reply.

        Raises BrokerRefused if the command takes no effect, and TimeoutError or
        BrokerUnavailable if it may take effect.
        """
        publication = Publication(
            command.exchange,
            command.routing_key,
            command.body,
            {},
            original=command,
            mandatory=True,
        )
        frame_max = self._connection.frame_max
        frames = write_publication(self._channel.number, publication, frame_max, self.user)
        outcome, lost = self._outcome.expect(command.command_id), self._connection.guard.lost
        async with asyncio.timeout(seconds):
            await self._connection.write(frames)
            futures: set[asyncio.Future[Any]] = {outcome, lost}
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        # A reply that has arrived counts, even if the connection has ended since.
        if outcome.done():
            return outcome.result()
        raise lost.result()


@asynccontextmanager
async def open_reply_client(url: str) -> AsyncIterator[ReplyClient]:
    """Connect; close when the block ends. Raises BrokerUnavailable and BrokerRefused."""
    outcome = _Outcome()
    async with open_connection(url, "redrive") as connection:
        with translate_errors():
            channel = await connection.open_channel(outcome)
            declared = await channel.queue_declare(exclusive=True)
            reply_queue = declared.queue or ""
            await channel.basic_consume(reply_queue, unused_callback, no_ack=True)
        yield ReplyClient(connection, channel, outcome, user_of(url), reply_queue)


def user_of(url: str) -> str:
    """Return the user that connects by this URL."""
    return URL(url).user or "guest"
