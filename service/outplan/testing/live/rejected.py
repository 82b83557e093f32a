"""The queue of rejected commands, read without taking anything out of it."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from outplan.client.connection import open_connection, translate_errors
from outplan.contract.messages import Problem
from outplan.contract.topology import topology
from outplan.errors import BrokerUnavailable
from outplan.rabbitmq.connection import Connection
from outplan.retry import SPREAD_BACKOFF, retrying
from outplan.testing.harness import Rejected

_LOOK_SECONDS: Final = 0.01
_SECONDS: Final = 10
_MOST: Final = 65_535


async def read_rejected(amqp_url: str, prefix: str, within: float) -> list[Rejected]:
    """All that stands there, in order. While it reads, others find the queue empty.

    TimeoutError where that takes more than so many seconds.
    """
    troubles: list[BaseException] = []

    async def attempt() -> list[Rejected]:
        async with open_connection(amqp_url, "rejected") as wire:
            with translate_errors():
                return await _looked_through(wire, topology(prefix).rejected.name)

    try:
        async with asyncio.timeout(within):
            found: list[Rejected] = await retrying(
                BrokerUnavailable, on_error=troubles.append, wait=SPREAD_BACKOFF
            )(attempt)
    except TimeoutError:
        said = "".join(f": {trouble}" for trouble in troubles[-1:])
        raise TimeoutError(f"the rejected commands cannot be read{said}") from None
    return found


async def _looked_through(wire: Connection, queue: str) -> list[Rejected]:
    asking, channel = await wire.open_channel(), await wire.open_channel()
    arrived: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    there = await _depth(asking, queue)
    # What a consumer has goes back in order; what is got one by one in any, if it is more than 32.
    await channel.basic_qos(prefetch_count=_MOST)
    await channel.basic_consume(queue, arrived.put)
    async with asyncio.timeout(_SECONDS):
        found = [_rejected(await arrived.get()) for _ in range(there)]
    await channel.close()
    while await _depth(asking, queue) < len(found):  # noqa: ASYNC110 - the broker tells nobody
        await asyncio.sleep(_LOOK_SECONDS)
    return found


async def _depth(channel: Channel, queue: str) -> int:
    return (await channel.queue_declare(queue, passive=True)).message_count or 0


def _rejected(message: DeliveredMessage) -> Rejected:
    properties = message.header.properties
    headers: Mapping[str, Any] = properties.headers or {}
    key = headers.get("x-original-routing-key", message.routing_key)
    name = properties.message_type or str(key or "")
    return Rejected(properties.message_id, name, message.body, _problem(headers, properties))


def _problem(headers: Mapping[str, Any], properties: Any) -> Problem:
    said = headers.get("x-problem")
    if said is None:
        detail = "the broker gave it up: too many workers ended on it"
        return Problem.of("delivery_limit", detail, properties.message_id)
    return Problem.model_validate_json(said)
