"""Read the queue of rejected commands without removing any."""

import asyncio
from typing import Final

from aiormq.channel import Channel

from outplan.client.connection import open_connection, translate_errors
from outplan.contract.amqp import Delivery
from outplan.contract.messages import Problem
from outplan.contract.slots import split_routing_key
from outplan.contract.topology import DELIVERY_LIMIT, build_topology
from outplan.errors import BrokerUnavailable
from outplan.rabbitmq.connection import Connection
from outplan.rabbitmq.delivery_queue import DeliveryQueue
from outplan.rabbitmq.reader import unused_callback
from outplan.retry import SPREAD_BACKOFF, retrying
from outplan.testing.harness import Rejected

_POLL_SECONDS: Final = 0.01
_ANSWER_SECONDS: Final = 10
_LARGEST_PREFETCH: Final = 65_535


async def read_rejected(amqp_url: str, prefix: str, within: float = 30) -> list[Rejected]:
    """Return all rejected commands in order. Meanwhile other consumers find the queue empty.

    Raises TimeoutError if that takes more than ``within`` seconds.
    """
    errors: list[BaseException] = []

    async def attempt() -> list[Rejected]:
        async with open_connection(amqp_url, "rejected") as connection:
            with translate_errors():
                return await _read_and_requeue(connection, build_topology(prefix).rejected.name)

    retry = retrying(BrokerUnavailable, on_error=errors.append, wait=SPREAD_BACKOFF)
    try:
        async with asyncio.timeout(within):
            rejected: list[Rejected] = await retry(attempt)
    except TimeoutError:
        reason = "".join(f": {error}" for error in errors[-1:])
        raise TimeoutError(f"the rejected commands cannot be read{reason}") from None
    return rejected


async def _read_and_requeue(connection: Connection, queue: str) -> list[Rejected]:
    messages = DeliveryQueue(connection.guard)
    admin, consumer = await connection.open_channel(), await connection.open_channel(messages)
    count = await _count(admin, queue)
    # A consumer's messages are requeued in order. Those of basic.get are not, beyond 32.
    await consumer.basic_qos(prefetch_count=_LARGEST_PREFETCH)
    await consumer.basic_consume(queue, unused_callback)
    async with asyncio.timeout(_ANSWER_SECONDS):
        rejected = [_to_rejected(await messages.take()) for _ in range(count)]
    await consumer.close()
    while await _count(admin, queue) < count:  # noqa: ASYNC110 - the broker sends no event
        await asyncio.sleep(_POLL_SECONDS)
    return rejected


async def _count(channel: Channel, queue: str) -> int:
    return (await channel.queue_declare(queue, passive=True)).message_count or 0


def _to_rejected(message: Delivery) -> Rejected:
    original = message.properties.header("x-original-routing-key")
    key = message.routing_key if original is None else str(original)
    name = message.properties.message_type or split_routing_key(key)[0]
    return Rejected(message.properties.message_id, name, message.body, _problem(message))


def _problem(message: Delivery) -> Problem:
    text = message.properties.header("x-problem")
    if text is None:
        detail = f"the broker dead-lettered it at the delivery limit of {DELIVERY_LIMIT:,}"
        return Problem.of("delivery_limit", detail, message.command_id)
    return Problem.model_validate_json(text)
