"""Probe RabbitMQ for objects and permissions without changing anything.

AMQP has no method that asks for a permission. But RabbitMQ checks the permission before it checks
the arguments, so a request with invalid arguments tells which one it lacks: an access error means
no permission, an argument error means the permission is there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final, Literal
from uuid import uuid4

from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionCommandInvalid,
)
from pamqp.commands import Basic

from outplan.contract.topology import Exchange, Queue
from outplan.errors import OutplanError
from outplan.rabbitmq.connection import Connection, translate_errors
from outplan.rabbitmq.reader import unused_callback

SECONDS: Final = 5
_CHANNELS: Final = 8
# The protocol's limit, for a broker that sets none.
_CHANNEL_MAX: Final = 65_535

ProbeOutcome = Literal["done", "missing", "refused", "wrong", "failed"]
_OUTCOMES: Final[dict[type[Exception], ProbeOutcome]] = {
    ChannelNotFoundEntity: "missing",
    ChannelAccessRefused: "refused",
    # RabbitMQ checks the permission first. Another connection holds this exclusive queue.
    ChannelLockedResource: "wrong",
    ChannelPreconditionFailed: "wrong",
    ConnectionCommandInvalid: "wrong",
}


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Report how the broker answered; ``text`` is its error message."""

    outcome: ProbeOutcome
    text: str = ""
    value: Any = None


class Probes:
    """Send probes, each on its own channel, since an error closes the channel.

    Concurrent probes take turns on a few channels.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection.driver
        channel_max = self._connection.connection_tune.channel_max or _CHANNEL_MAX
        self._turns = asyncio.Semaphore(min(_CHANNELS, channel_max))
        self._numbers = cycle(range(1, channel_max + 1))

    @property
    def version(self) -> str:
        """Return the broker's version, or an empty string."""
        found = self._connection.server_properties or {}
        return str(found.get("version", ""))

    async def is_blocked(self) -> bool:
        """Tell whether an alarm blocks publishers; call it after a first publish."""
        try:
            async with asyncio.timeout(0.3):
                # The broker sends connection.blocked right after it answers the publish.
                await asyncio.sleep(0.1)
                await self._connection.ready()
        except TimeoutError:
            return True
        return False

    async def inspect(self, thing: Exchange | Queue) -> ProbeResult:
        """Declare passively; a queue's result has its message and consumer counts."""
        if isinstance(thing, Queue):
            return await self._send(lambda c: c.queue_declare(thing.name, passive=True))
        return await self._send(lambda c: c.exchange_declare(thing.name, passive=True))

    async def compare(self, thing: Exchange | Queue) -> ProbeResult:
        """Declare an object that exists as the worker does: ``wrong`` if it differs."""
        arguments: dict[str, Any] = dict(thing.arguments)
        if isinstance(thing, Queue):
            return await self._send(
                lambda c: c.queue_declare(thing.name, durable=True, arguments=arguments)
            )
        return await self._send(
            lambda c: c.exchange_declare(
                thing.name, exchange_type=thing.type, durable=True, arguments=arguments
            )
        )

    async def probe_configure(self, thing: Exchange | Queue) -> ProbeResult:
        """Declare with an invalid argument, which takes the configure permission."""
        if isinstance(thing, Queue):
            wrong: dict[str, Any] = {"x-expires": "no number"}
            return await self._send(
                lambda c: c.queue_declare(thing.name, durable=True, arguments=wrong)
            )
        return await self._declare_invalid_exchange(thing.name, "topic")

    async def probe_write(self, exchange: str) -> ProbeResult:
        """Publish with an invalid expiration, which takes the write permission."""

        async def publish(channel: AbstractChannel) -> None:
            await channel.basic_publish(
                b"",
                exchange=exchange,
                routing_key=f"check-{uuid4()}",
                properties=Basic.Properties(expiration="no number"),
            )
            await asyncio.shield(channel.closing)

        return await self._send(publish)

    async def probe_bind(self, source: str, destination: str, *, to_exchange: bool) -> ProbeResult:
        """Remove a binding that does not exist, which takes the same permissions as a bind."""
        key = f"check-{uuid4()}"
        if to_exchange:
            return await self._send(lambda c: c.exchange_unbind(destination, source, key))
        return await self._send(lambda c: c.queue_unbind(destination, source, key))

    async def probe_read(self, queue: str) -> ProbeResult:
        """Consume with an invalid argument, which takes the read permission."""
        wrong: dict[str, Any] = {"x-priority": "no number"}
        return await self._send(lambda c: c.basic_consume(queue, unused_callback, arguments=wrong))

    async def _declare_invalid_exchange(self, name: str, type_: str) -> ProbeResult:
        wrong: dict[str, Any] = {"alternate-exchange": 1}
        return await self._send(
            lambda c: c.exchange_declare(name, exchange_type=type_, durable=True, arguments=wrong)
        )

    async def _send(self, request: Callable[[AbstractChannel], Awaitable[Any]]) -> ProbeResult:
        async with self._turns:
            return await self._send_in_turn(request)

    async def _send_in_turn(
        self, request: Callable[[AbstractChannel], Awaitable[Any]]
    ) -> ProbeResult:
        # By itself the driver takes the number of a channel that the broker has just closed,
        # before it has answered the close.
        number = next(n for n in self._numbers if n not in self._connection.channels)
        try:
            async with asyncio.timeout(SECONDS):
                with translate_errors():
                    channel = await self._connection.channel(number, publisher_confirms=False)
                    value = await request(channel)
                    await channel.close()
        except TimeoutError:
            return ProbeResult("failed", f"no answer within {SECONDS} s")
        except OutplanError as error:
            cause = error.__cause__
            outcome = (
                _OUTCOMES.get(type(cause), "failed") if isinstance(cause, Exception) else "failed"
            )
            return ProbeResult(outcome, str(cause if outcome != "failed" else error))
        return ProbeResult("done", value=value)


async def gather_by_name(
    probes: Iterable[tuple[str, Awaitable[ProbeResult]]],
) -> dict[str, ProbeResult]:
    """Await named probes at the same time; return their results by name."""
    named = list(probes)
    results = await asyncio.gather(*(probe for _, probe in named))
    return {name: result for (name, _), result in zip(named, results, strict=True)}
