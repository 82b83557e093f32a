"""Put rejected commands into their queue, and run ``outplan rejected``."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from outplan.contract.times import format_time
from outplan.testing import Deployment
from tests.support.commands import run_command
from tests.support.world import Document, World, create_body, open_world


@pytest.fixture
async def world(deployment: Deployment) -> AsyncIterator[World]:
    """Open a world that leaves the rejected commands in their queue."""
    async with open_world(deployment, watch_rejected=False) as found:
        yield found


async def run(deployment: Deployment, *arguments: str, **how: Any) -> tuple[int, str, str]:
    async with run_command(deployment, "rejected", *arguments, **how) as process:
        code = await process.wait(60)
    assert b"Traceback" not in process.err, process.err.decode()
    return code, process.out.decode(), process.err.decode()


async def list_rejected(deployment: Deployment, *arguments: str) -> list[Document]:
    code, out, err = await run(deployment, "list", "--json", *arguments)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


async def list_ids(deployment: Deployment, *arguments: str) -> list[str]:
    return [copy["message_id"] for copy in await list_rejected(deployment, *arguments)]


async def put_rejected(world: World, message_id: str, **what: Any) -> None:
    """Publish a rejected command as a worker does; by default one that is valid today."""
    body = what.pop("body", create_body())
    at = datetime.now(UTC) - what.pop("age", timedelta())
    problem = what.pop("problem", {"detail": "no good"})
    headers = {
        "x-problem-code": what.pop("code", "invalid_command"),
        "x-problem": json.dumps(problem),
        "x-rejected-at": format_time(at),
        "x-original-exchange": f"{world.deployment.prefix}.commands",
        "x-original-routing-key": what.pop("name", "outplan_create"),
        **what.pop("headers", {}),
    }
    message = aio_pika.Message(
        body if isinstance(body, bytes) else json.dumps(body).encode(),
        message_id=message_id, delivery_mode=2, headers=headers, **what,
    )  # fmt: skip
    await world.channel.default_exchange.publish(message, f"{world.deployment.prefix}.rejected")


async def drain_queue(world: World) -> list[AbstractIncomingMessage]:
    """Take every message out of the queue, in the order of delivery."""
    found = await world.channel.get_queue(f"{world.deployment.prefix}.rejected")
    messages: list[AbstractIncomingMessage] = []
    while message := await found.get(no_ack=True, fail=False):
        messages.append(message)
    return messages
