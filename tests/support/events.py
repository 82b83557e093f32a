"""Publish events in place of a worker, for tests of subscribers."""

import json
from typing import Any, Final

import aio_pika

from tests.support.world import CUSTOMER, TEL, World

OUTPLAN_ID: Final = "0192f0c1-0000-7000-8000-000000000001"


def encode_event(version: int, **data: Any) -> dict[str, Any]:
    """Build an event of OUTPLAN_ID as the contract defines it; ``data`` replaces outplan fields."""
    event = {
        "id": f"command {version}",
        "type": "outplan_created" if version == 1 else "outplan_updated",
        "publisher": "outplan-service",
        "data_type": "application/json",
        "version": version,
        "time": "2026-11-23 06:10:00.123456",
        "data": {
            "id": OUTPLAN_ID,
            "customer_id": CUSTOMER,
            "name": f"version {version}",
            "detail": "",
            "source": {**TEL, "target_name": "", "name": "", "detail": ""},
            "dial_timeout": 30_000,
            "try_interval": 60_000,
            **{f"max_try_count_{n}": 0 for n in range(5)},
            "tm_create": "2022-04-28 01:50:23.414000",
            "tm_update": "2022-04-28 01:50:23.414000",
            "tm_delete": "9999-01-01 00:00:00.000000",
            **data,
        },
    }
    return event if version == 1 else {**event, "changed": ["name"]}


async def publish_events(world: World, *bodies: dict[str, Any] | bytes) -> None:
    """Publish bodies to the events exchange, each with the routing key of an update."""
    exchange = await world.channel.get_exchange(f"{world.deployment.prefix}.events")
    for body in bodies:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        message = aio_pika.Message(raw, delivery_mode=2)
        await exchange.publish(message, f"outplan_updated.{CUSTOMER}.{OUTPLAN_ID}")
