"""Questions to RabbitMQ that change nothing.

AMQP has no word for "may I?". But the broker looks at the permission before it looks at the rest
of a request, so a request that is wrong in itself tells the two apart: refused, or found wrong.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import uuid4

import aio_pika
from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionCommandInvalid,
)
from pamqp.commands import Basic

from outplan.contract.topology import Exchange, Queue
from outplan.errors import OutplanError
from outplan.rabbitmq.connection import translated

SECONDS: Final = 5

Kind = Literal["done", "missing", "refused", "wrong", "failed"]
_KINDS: Final[dict[type[Exception], Kind]] = {
    ChannelNotFoundEntity: "missing",
    ChannelAccessRefused: "refused",
    ChannelPreconditionFailed: "wrong",
    ConnectionCommandInvalid: "wrong",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request went, in the broker's words where it did not do it."""

    kind: Kind
    text: str = ""
    value: Any = None


class Probes:
    """Requests, each on a channel of its own, since what is refused closes the channel."""

    def __init__(self, connection: aio_pika.Connection) -> None:
        assert connection.transport is not None
        self._connection = connection.transport.connection

    @property
    def version(self) -> str:
        found = self._connection.server_properties or {}
        return str(found.get("version", ""))

    async def held_up(self) -> bool:
        """Whether the broker holds up whoever publishes: known after the first publish."""
        try:
            async with asyncio.timeout(0.3):
                # The broker says it right behind the answer to what was published.
                await asyncio.sleep(0.1)
                await self._connection.ready()
        except TimeoutError:
            return True
        return False

    async def look(self, thing: Exchange | Queue) -> Answer:
        """Whether it is there: of a queue, how deep it is and how many consume."""
        if isinstance(thing, Queue):
            return await self._ask(lambda c: c.queue_declare(thing.name, passive=True))
        return await self._ask(lambda c: c.exchange_declare(thing.name, passive=True))

    async def compare(self, thing: Exchange | Queue) -> Answer:
        """Whether what is there is as the worker would declare it. Ask only of what is there."""
        arguments: dict[str, Any] = dict(thing.arguments)
        if isinstance(thing, Queue):
            return await self._ask(
                lambda c: c.queue_declare(thing.name, durable=True, arguments=arguments)
            )
        return await self._ask(
            lambda c: c.exchange_declare(
                thing.name, exchange_type=thing.type, durable=True, arguments=arguments
            )
        )

    async def configure(self, thing: Exchange | Queue) -> Answer:
        """Declare it with an argument that nothing can be declared with."""
        if isinstance(thing, Queue):
            wrong: dict[str, Any] = {"x-expires": "no number"}
            return await self._ask(
                lambda c: c.queue_declare(thing.name, durable=True, arguments=wrong)
            )
        return await self._impossible_exchange(thing.name, "topic")

    async def exchange_type(self, name: str, type_: str) -> Answer:
        """Whether exchanges of the type can be had: the type is looked at first of all."""
        return await self._impossible_exchange(name, type_)

    async def write(self, exchange: str) -> Answer:
        """Publish what can't be published."""

        async def publish(channel: AbstractChannel) -> None:
            await channel.basic_publish(
                b"",
                exchange=exchange,
                routing_key=f"check-{uuid4()}",
                properties=Basic.Properties(expiration="no number"),
            )
            await asyncio.shield(channel.closing)

        return await self._ask(publish)

    async def bind(self, source: str, destination: str, *, to_exchange: bool) -> Answer:
        """Remove a binding that is not there; it takes what making one does."""
        key = f"check-{uuid4()}"
        if to_exchange:
            return await self._ask(lambda c: c.exchange_unbind(destination, source, key))
        return await self._ask(lambda c: c.queue_unbind(destination, source, key))

    async def read(self, queue: str) -> Answer:
        """Consume in a way that can't be."""
        wrong: dict[str, Any] = {"x-priority": "no number"}
        return await self._ask(lambda c: c.basic_consume(queue, _never, arguments=wrong))

    async def _impossible_exchange(self, name: str, type_: str) -> Answer:
        wrong: dict[str, Any] = {"alternate-exchange": 1}
        return await self._ask(
            lambda c: c.exchange_declare(name, exchange_type=type_, durable=True, arguments=wrong)
        )

    async def _ask(self, request: Callable[[AbstractChannel], Awaitable[Any]]) -> Answer:
        try:
            async with asyncio.timeout(SECONDS):
                with translated():
                    channel = await self._connection.channel(publisher_confirms=False)
                    value = await request(channel)
                    await channel.close()
        except TimeoutError:
            return Answer("failed", f"no answer within {SECONDS} s")
        except OutplanError as error:
            cause = error.__cause__
            kind = _KINDS.get(type(cause), "failed") if isinstance(cause, Exception) else "failed"
            return Answer(kind, str(cause if kind != "failed" else error))
        return Answer("done", value=value)


async def _never(_message: Any) -> None:
    """Never called: nothing is consumed."""
