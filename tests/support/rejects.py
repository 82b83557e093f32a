"""Rejected commands: put into the queue, and looked at by ``outplan rejected``."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from outplan.domain.decider import text_time
from tests.support.commands import command
from tests.support.worker_process import Place
from tests.support.world import Document, Outside, a_create, witness


@pytest.fixture
async def outside(place: Place) -> AsyncIterator[Outside]:
    """A witness who leaves the rejected commands where they are."""
    async with witness(place, watch_rejected=False) as found:
        yield found


async def run(place: Place, *arguments: str, **how: Any) -> tuple[int, str, str]:
    async with command(place, "rejected", *arguments, **how) as process:
        code = await process.ended(60)
    assert b"Traceback" not in process.err, process.err.decode()
    return code, process.out.decode(), process.err.decode()


async def listed(place: Place, *arguments: str) -> list[Document]:
    code, out, err = await run(place, "list", "--json", *arguments)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


async def ids(place: Place, *arguments: str) -> list[str]:
    return [copy["message_id"] for copy in await listed(place, *arguments)]


async def put(outside: Outside, message_id: str, **what: Any) -> None:
    """Put a copy in the queue as a worker does; by default of a command that is valid today."""
    body = what.pop("body", a_create())
    at = datetime.now(UTC) - what.pop("age", timedelta())
    problem = what.pop("problem", {"detail": "no good"})
    headers = {
        "x-problem-code": what.pop("code", "invalid_command"),
        "x-problem": json.dumps(problem),
        "x-rejected-at": text_time(at),
        "x-original-exchange": f"{outside.place.prefix}.commands",
        "x-original-routing-key": what.pop("name", "outplan_create"),
        **what.pop("headers", {}),
    }
    message = aio_pika.Message(
        body if isinstance(body, bytes) else json.dumps(body).encode(),
        message_id=message_id, delivery_mode=2, headers=headers, **what,
    )  # fmt: skip
    await outside.channel.default_exchange.publish(message, f"{outside.place.prefix}.rejected")


async def queued(outside: Outside) -> list[AbstractIncomingMessage]:
    """What is in the queue, as the broker gives it out; it is empty afterwards."""
    found = await outside.channel.get_queue(f"{outside.place.prefix}.rejected")
    messages: list[AbstractIncomingMessage] = []
    while message := await found.get(no_ack=True, fail=False):
        messages.append(message)
    return messages
