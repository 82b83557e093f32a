"""The queue of rejected commands, read without taking anything out of it."""

import logging
from collections.abc import Mapping
from typing import Any

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from service.client.wire import connected, patient, translated
from service.messages import Problem
from service.testing.harness import Rejected
from service.topology import topology

_log = logging.getLogger(__name__)


async def read_rejected(amqp_url: str, prefix: str) -> list[Rejected]:
    """All that stands there, in order. While it reads, others find the queue empty."""

    async def attempt() -> list[Rejected]:
        async with connected(amqp_url, "rejected") as wire:
            with translated():
                return await _looked_through(await wire.channel(), topology(prefix).rejected.name)

    found: list[Rejected] = await patient(_notice)(attempt)
    return found


async def _looked_through(channel: Channel, queue: str) -> list[Rejected]:
    found: list[Rejected] = []
    tags = []
    while (message := await channel.basic_get(queue)).delivery_tag is not None:
        tags.append(message.delivery_tag)
        found.append(_rejected(message))
    # Closing the channel would give them back too, but some time later; and more than 32 at once
    # come back in any order.
    for tag in tags:
        await channel.basic_nack(tag, requeue=True)
    return found


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


def _notice(error: BaseException) -> None:
    _log.info("the rejected commands cannot be read for now: %s", error)
