"""Publish five commands and print what a publisher, a subscriber and an operator see of each.

The demo speaks AMQP to a real worker and fails if any result differs from what it announces.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from pymongo import AsyncMongoClient
from rich.console import Console

from outplan.testing.output import Output
from outplan.testing.sandbox import Sandbox, sandbox

Document = dict[str, Any]

_REPLY_SECONDS = 30.0
# How long to wait for an event that must not come. The end of the demo checks once more.
_SILENCE_SECONDS = 0.5

_ID = "d5fb7357-7ddb-4f2d-87b5-8ccbfd6c039e"

# The example from VoIPBIN's documentation, with the customer_id that it leaves out.
EXAMPLE: Final[Document] = {
    "id": _ID,
    "customer_id": "5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11",
    "name": "test outplan",
    "detail": "outplan for test use.",
    "source": {
        "type": "tel",
        "target": "+15559876543",
        "target_name": "",
        "name": "",
        "detail": "",
    },
    "dial_timeout": 30000,
    "try_interval": 60000,
    "max_try_count_0": 5,
    "max_try_count_1": 5,
    "max_try_count_2": 5,
    "max_try_count_3": 5,
    "max_try_count_4": 5,
}


class DemoFailed(Exception):
    """Raised when a result differs from what the demo announces."""


@dataclass(frozen=True)
class Step:
    """A command with its expected reply and event; ``event`` is None if there must be none."""

    title: str
    name: str
    message_id: str
    body: Document
    outcome: Document
    event: Document | None
    remark: str = ""


_AN_HOUR: Final = Step(
    "Wait an hour between attempts instead of a minute",
    "outplan_update",
    "demo-2",
    {"id": _ID, "try_interval": 3_600_000},
    {"status": "accepted", "duplicate": False, "version": 2},
    {"type": "outplan_updated", "version": 2, "changed": ["try_interval"]},
)

STEPS: Final = (
    Step(
        "Create the outplan from VoIPBIN's documentation",
        "outplan_create",
        "demo-1",
        EXAMPLE,
        {"status": "accepted", "duplicate": False, "version": 1},
        {"type": "outplan_created", "version": 1},
    ),
    _AN_HOUR,
    Step(
        "Send the same command again, as after a lost connection",
        _AN_HOUR.name,
        _AN_HOUR.message_id,
        _AN_HOUR.body,
        {"status": "accepted", "duplicate": True, "version": 2},
        _AN_HOUR.event,
        "the same bytes as before: the command was not applied twice; subscribers drop the repeat",
    ),
    Step(
        "Send seconds instead of milliseconds",
        "outplan_update",
        "demo-3",
        {"id": _ID, "dial_timeout": 30, "try_interval": 60},
        {"status": "rejected", "duplicate": False},
        None,
        "nothing changed; the command is now in the queue {prefix}.rejected",
    ),
    Step(
        "Delete it",
        "outplan_delete",
        "demo-4",
        {"id": _ID},
        {"status": "accepted", "duplicate": False, "version": 3},
        {"type": "outplan_deleted", "version": 3},
    ),
)
_WRONG_FIELDS: Final = {"/dial_timeout", "/try_interval"}


@dataclass(frozen=True)
class Parties:
    """A publisher with its replies and a subscriber with its events."""

    channel: AbstractChannel
    prefix: str
    reply_to: str
    replies: asyncio.Queue[AbstractIncomingMessage]
    events: asyncio.Queue[AbstractIncomingMessage]

    async def send(self, step: Step) -> Document:
        """Publish the command and return its reply."""
        message = aio_pika.Message(
            json.dumps(step.body).encode(), message_id=step.message_id, reply_to=self.reply_to
        )
        commands = await self.channel.get_exchange(f"{self.prefix}.commands", ensure=False)
        await commands.publish(message, step.name)
        reply = await _next(self.replies, _REPLY_SECONDS)
        _expect(step.title, "a reply", reply is not None, True)
        return _parse(reply) if reply else {}

    async def wait_for_event(self, step: Step) -> AbstractIncomingMessage | None:
        """Return the event, or None if none arrives."""
        return await _next(self.events, _REPLY_SECONDS if step.event else _SILENCE_SECONDS)


@asynccontextmanager
async def _connect(box: Sandbox) -> AsyncIterator[Parties]:
    replies: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    events: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    async with await aio_pika.connect(box.deployment.amqp_url) as connection:
        channel = await connection.channel()
        reply_queue = await _consume(channel, replies)
        event_queue = await _consume(channel, events)
        await event_queue.bind(f"{box.deployment.prefix}.events", "#")
        yield Parties(channel, box.deployment.prefix, reply_queue.name, replies, events)


async def _consume(
    channel: AbstractChannel, into: asyncio.Queue[AbstractIncomingMessage]
) -> AbstractQueue:
    queue = await channel.declare_queue(exclusive=True)
    await queue.consume(into.put, no_ack=True)
    return queue


async def _next(
    queue: asyncio.Queue[AbstractIncomingMessage], seconds: float
) -> AbstractIncomingMessage | None:
    try:
        return await asyncio.wait_for(queue.get(), seconds)
    except TimeoutError:
        return None


def _parse(message: AbstractIncomingMessage) -> Document:
    parsed: Document = json.loads(message.body)
    return parsed


def _expect(where: str, subject: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise DemoFailed(f"{where}: {subject} should be {expected!r} and is {actual!r}")


def _select(document: Document, like: Document) -> Document:
    return {field: document.get(field) for field in like}


def play_demo() -> None:
    """Start servers and a worker, run the demo on them, and stop them.

    Raises `DemoFailed`, `ServersUnavailable` or `WorkerFailed`.
    """
    output = Output(Console())
    output.print_heading("Starting RabbitMQ, MongoDB and a worker for the demo ...")
    with sandbox() as box:
        output.print_servers(box.servers)
        asyncio.run(_run_steps(box, output))
    output.print_heading("All results are as announced. The servers and the worker have stopped.")


async def _run_steps(box: Sandbox, output: Output) -> None:
    seen: dict[str, bytes] = {}
    async with _connect(box) as parties:
        for number, step in enumerate(STEPS, 1):
            output.print_heading(f"{number}. {step.title}")
            output.print_command(step.name, step.message_id, step.body)
            reply = await parties.send(step)
            output.print_reply(reply)
            _check_reply(step, reply)
            event = await parties.wait_for_event(step)
            output.print_event(event, step.remark.format(prefix=box.deployment.prefix))
            _check_event(step, event, seen)
        await _check_rejected(parties)
        _expect("the end", "number of further events", parties.events.qsize(), 0)
    async with AsyncMongoClient[Document](box.deployment.mongo_url) as mongo:
        database = mongo[box.deployment.database]
        document = await database["outplans"].find_one({"_id": _ID}) or {}
        history = await database["outplan_events"].find().sort("version").to_list()
    output.print_stored(document, history)
    _check_stored(document, history)


def _check_reply(step: Step, reply: Document) -> None:
    _expect(step.title, "the reply", _select(reply, step.outcome), step.outcome)
    if reply["status"] == "rejected":
        errors = reply["problem"].get("errors", ())
        _expect(step.title, "the list of errors", {e["pointer"] for e in errors}, _WRONG_FIELDS)


def _check_event(
    step: Step, message: AbstractIncomingMessage | None, seen: dict[str, bytes]
) -> None:
    event = _parse(message) if message else None
    _expect(step.title, "the event", event and _select(event, step.event or {}), step.event)
    if message:
        first = seen.setdefault(step.message_id, message.body)
        _expect(step.title, "the repeated event", message.body, first)


async def _check_rejected(parties: Parties) -> None:
    rejected = await parties.channel.get_queue(f"{parties.prefix}.rejected", ensure=False)
    copy = await rejected.get(no_ack=True, fail=False)
    _expect("the end", "the rejected command", copy and copy.message_id, "demo-3")


def _check_stored(document: Document, history: list[Document]) -> None:
    versions = [event["version"] for event in history]
    _expect("the end", "the history's versions", versions, [1, 2, 3])
    wanted = EXAMPLE | _AN_HOUR.body | {"version": 3}
    found = {**document, "id": document.get("_id")}
    _expect("the end", "the document", _select(found, wanted), wanted)
    _expect("the end", "the document deleted", found["tm_delete"] < "9999", True)
