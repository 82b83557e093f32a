"""Send hostile messages through RabbitMQ to a subscriber and to the commands that consume."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

from outplan.client import Event, Events, Reconnected, Unreadable, events
from outplan.client.events import Item, parse_message
from outplan.client.versions import Filter, Versions
from outplan.contract.amqp import Delivery
from outplan.contract.topology import build_topology
from outplan.rabbitmq.frames import read_content_header
from outplan.testing import Deployment
from tests.faults.fuzz.mutants import Mutator
from tests.support.commands import run_command
from tests.support.events import encode_event
from tests.support.hostile import Hostile
from tests.support.raw_message import RawMessage
from tests.support.raw_publisher import RawPublisher, open_raw_publisher
from tests.support.worker_process import run_worker

_BATCH: Final = 250
_ITEM_SECONDS: Final = 60
_COMMAND_SECONDS: Final = 300


async def run_readers(amqp_url: str, mongo_url: str, count: int, seed: int | str) -> Counter[str]:
    """Send ``count`` messages in a deployment of their own; return how many were read as what.

    Raises AssertionError if a reader loses a message, reads it otherwise than in process, loses
    its connection or fails.
    """
    deployment = Deployment(amqp_url, mongo_url)
    queue = f"{deployment.prefix}.dialer"
    mutator = Mutator(seed, publishable=True)
    sent: list[RawMessage] = [mutator.next_event() for _ in range(count)]
    last = encode_event(1, id=str(uuid4()))
    sent.append(Hostile().apply("outplan_created.a.b", json.dumps(last).encode()))
    try:
        async with run_worker(deployment) as worker, open_raw_publisher(amqp_url) as publisher:
            assert await worker.stop() == 0  # It has declared the queues.
            found = await _subscribe(deployment, queue, publisher, sent)
            rejected = [message for event in sent for message in (event, mutator.next())]
            await _put_rejected(deployment, publisher, rejected)
            found += await _operate(deployment, len(rejected))
    finally:
        await deployment.drop([queue])
    return found


async def _subscribe(
    deployment: Deployment, queue: str, publisher: RawPublisher, sent: Sequence[RawMessage]
) -> Counter[str]:
    """Read all as events, with ``outplan watch`` beside the subscriber."""
    expected = _read_in_process(sent)
    reconnects: list[Reconnected] = []
    stream = events(
        deployment.amqp_url, prefix=deployment.prefix, queue=queue, on_reconnect=reconnects.append
    )
    names = Counter(type(item).__name__ for item in expected)
    number = str(names["Event"])
    async with (
        stream,
        run_command(deployment, "watch", "--json", "--limit", number) as watching,
    ):
        await watching.wait_for_error("watching")
        taking = asyncio.create_task(_take(stream, len(expected)))
        for first in range(0, len(sent), _BATCH):
            batch = sent[first : first + _BATCH]
            await publisher.publish(f"{deployment.prefix}.events", batch)
        found = await taking
        assert await watching.wait(_COMMAND_SECONDS) == 0
    assert reconnects == []
    assert [_describe(item) for item in found] == [_describe(item) for item in expected]
    lines = watching.out.splitlines()
    assert lines == [_print(item.raw) for item in expected if isinstance(item, Event)]
    assert b"Traceback" not in watching.err
    assert watching.err.count(b"cannot read a message") == names["Unreadable"]
    return names


def _print(raw: bytes) -> bytes:
    return raw.replace(b"\r", b" ").replace(b"\n", b" ")


def _read_in_process(sent: Sequence[RawMessage]) -> list[Item]:
    versions = Versions(Filter(), {})
    items: list[Item] = []
    for message in sent:
        properties = read_content_header(message.header)
        delivery = Delivery(0, "", "", message.routing_key, False, properties, message.body)
        items += parse_message(delivery, versions)
    return items


async def _take(stream: Events, count: int) -> list[Item]:
    items: list[Item] = []
    while len(items) < count:
        async with asyncio.timeout(_ITEM_SECONDS):
            items.append(await anext(stream))
    await stream.settle()
    return items


def _describe(item: Item) -> object:
    if isinstance(item, Event):
        return item.raw
    return (item.routing_key, item.body) if isinstance(item, Unreadable) else item


async def _put_rejected(
    deployment: Deployment, publisher: RawPublisher, sent: Sequence[RawMessage]
) -> None:
    queue = build_topology(deployment.prefix).rejected.name
    copies = [RawMessage(queue, message.header, message.body) for message in sent]
    for first in range(0, len(copies), _BATCH):
        await publisher.publish("", copies[first : first + _BATCH])


async def _operate(deployment: Deployment, count: int) -> Counter[str]:
    """List, show, validate and discard all as rejected commands."""
    listed = await _run(deployment, "list", "--json")
    assert len(listed) == count
    for number in (1, count // 2, count):
        [shown] = await _run(deployment, "show", "--json", str(number))
        assert shown["number"] == number
    validated = await _run(deployment, "redrive", "--all", "--dry-run", "--json")
    assert len(validated) == count
    assert len(await _run(deployment, "discard", "--all", "--yes", "--json")) == count
    left = await _run(deployment, "list", "--json")
    assert not left, (len(left), left[:3])
    return Counter(line["status"] for line in validated)


async def _run(deployment: Deployment, *arguments: str) -> list[dict[str, Any]]:
    async with run_command(deployment, "rejected", *arguments) as command:
        code = await command.wait(_COMMAND_SECONDS)
    assert code in (0, 3), command.err
    assert b"Traceback" not in command.err
    return [json.loads(line) for line in command.out.splitlines()]
