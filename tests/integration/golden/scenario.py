"""Send the fixed commands to a running worker, and record everything that comes out.

A black box: this module knows the addresses of both servers, the prefix of all names and the
database's name. It imports nothing of the package under test.

What it records, in order: what each batch of commands brought, by stream and order of arrival;
the documents of all collections; their validators and indexes; what the broker declared.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import pika
from bson import Binary
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps
from pymongo import MongoClient
from pymongo.database import Database

from tests.integration.golden.amqp import (
    WireProperties,
    decode_properties,
    encode_properties,
    text_of,
    wire_properties,
)
from tests.integration.golden.broker import Ctl, list_topology
from tests.integration.golden.command import REPLIES, USER, Command
from tests.integration.golden.normal import Document, Normaliser, seconds_of
from tests.integration.golden.sequence import commands, hold

# Make MongoDB hang while the block runs.
Paused = Callable[[], AbstractContextManager[None]]

_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.01
_ARRIVAL_SECONDS: Final = 0.1
_BATCH: Final = 90


@dataclass(frozen=True)
class Place:
    """Name a worker's servers, the prefix of its queues and exchanges, and its database.

    ``other_amqp_url`` is the same broker as another user, if there is one.
    """

    amqp_url: str
    mongo_url: str
    prefix: str
    database: str
    other_amqp_url: str | None = None


class Split(Exception):
    """Raised when a batch took more than one transaction: record again in a new place."""


def one_by_one() -> list[list[Command]]:
    """Return the commands each in a batch of its own."""
    return [[command] for command in commands()]


def split_into_batches() -> list[list[Command]]:
    """Return the commands in large batches, each after a command that holds it up."""
    own = [command for command in commands() if not command.other_user]
    others = [[command] for command in commands() if command.other_user]
    starts = range(0, len(own), _BATCH)
    return [[hold(n), *own[start : start + _BATCH]] for n, start in enumerate(starts)] + others


def record(
    place: Place,
    batches: Sequence[Sequence[Command]],
    replies: str,
    paused: Paused,
    ctl: Ctl | None,
) -> Document:
    """Send the batches one after another; return all that came out, normalised.

    ``replies`` is the name of the queue for replies. It must be the same each time, since stored
    fingerprints contain it. ``paused`` makes MongoDB hang while its block runs. Without ``ctl``
    the recording lacks the broker's lists. A broker serves one recording at a time. Raises Split.
    """
    normaliser = Normaliser(place.prefix)
    with _open(place, replies) as conversation, MongoClient[Document](place.mongo_url) as mongo:
        database = mongo[place.database]
        came = []
        for batch in batches:
            labels = [command.label for command in batch]
            if any(command.other_user for command in batch) and place.other_amqp_url is None:
                continue
            if len(batch) == 1:
                outputs = _alone(conversation, database, batch[0])
            else:
                outputs = _together(conversation, database, batch, paused)
            came.append({"commands": labels, **outputs})
        conversation.drain()
        came.append({"commands": [], **conversation.take()})
        header_order = conversation.header_order()
        stored, schema = _read_documents(database), _schema(database)
    found = {"header_order": header_order, "batches": came, "stored": stored, "database": schema}
    if ctl is not None:
        found["broker"] = list_topology(place.prefix, ctl)
    normal: Document = normaliser.normal(found)
    return normal


def without_other_user(recording: Document) -> Document:
    """Leave out the commands of another user, which some brokers do not know."""
    others = {command.label for command in commands() if command.other_user}
    batches = [batch for batch in recording["batches"] if not others & set(batch["commands"])]
    return {**recording, "batches": batches}


def remove(place: Place) -> None:
    """Delete what a worker declared and stored; it must have ended."""
    with _connect(pika.URLParameters(place.amqp_url)) as connection:
        channel = connection.channel()
        for queue in ("commands", "rejected"):
            channel.queue_delete(f"{place.prefix}.{queue}")
        for exchange in ("commands", "events"):
            channel.exchange_delete(f"{place.prefix}.{exchange}")
    with MongoClient[Document](place.mongo_url) as mongo:
        mongo.drop_database(place.database)


# --- sending and awaiting ---------------------------------------------------------------------


def _alone(
    conversation: "Conversation", database: Database[Document], command: Command
) -> Document:
    if command.events + command.replies + command.rejected:
        conversation.publish([command])
        return conversation.outputs([command])
    # Nothing comes out of it. The transaction is all that there is to await.
    with database["outplan_fences"].watch(max_await_time_ms=1_000) as changes:
        conversation.publish([command])
        deadline = monotonic() + _SECONDS
        while changes.try_next() is None:
            assert monotonic() < deadline, f"{command.label!r} is not judged"
    return conversation.outputs([command])


def _together(
    conversation: "Conversation",
    database: Database[Document],
    batch: Sequence[Command],
    paused: Paused,
) -> Document:
    """Publish a batch while the worker waits for MongoDB with the first command in hand."""
    before = _transactions(database)
    with paused():
        conversation.publish(batch[:1])
        conversation.await_delivery()
        conversation.publish(batch[1:])
        conversation.await_delivery()
    outputs = conversation.outputs(batch)
    # One for the first command, and one for all others.
    if _transactions(database) != before + 2:
        raise Split(f"{len(batch)} commands took {_transactions(database) - before} transactions")
    return outputs


def _transactions(database: Database[Document]) -> int:
    fences = database["outplan_fences"].find({}, {"batches": True})
    return sum(fence["batches"] for fence in fences)


class Conversation:
    """Publish commands and collect what comes back, in order of arrival by stream."""

    def __init__(self, place: Place, connection: Any, replies: str) -> None:
        self._place = place
        self._connection = connection
        self._replies = replies
        self._user = pika.URLParameters(place.amqp_url).credentials.username
        self._streams: dict[str, list[Document]] = {"events": [], "replies": [], "rejected": []}
        self._reading = connection.channel()
        self._sending = connection.channel()
        self._sending.confirm_delivery()

    def listen(self) -> None:
        """Consume all three streams."""
        events = self._reading.queue_declare("", exclusive=True).method.queue
        self._reading.queue_bind(events, f"{self._place.prefix}.events", "#")
        self._reading.queue_declare(self._replies, exclusive=True)
        queues = {
            "events": events,
            "replies": self._replies,
            "rejected": f"{self._place.prefix}.rejected",
        }
        for stream, queue in queues.items():
            self._consume(stream, queue)

    def publish(self, batch: Sequence[Command]) -> None:
        """Publish commands, and await the broker's confirm of each."""
        for command in batch:
            if command.other_user:
                self._publish_as_other_user(command)
            else:
                self._send(self._sending, command, self._user)

    def await_delivery(self) -> None:
        """Await that the worker has every command."""
        deadline = monotonic() + _SECONDS
        while self._waiting_commands():
            assert monotonic() < deadline, "the worker takes no more commands"
            self._connection.process_data_events(_LOOK_SECONDS)
        # They left the queue. Nothing tells when they reach the worker, a moment later.
        self._connection.sleep(_ARRIVAL_SECONDS)

    def outputs(self, batch: Sequence[Command]) -> Document:
        """Await what the batch must bring, and take all that has come."""
        wanted = {
            "events": sum(command.events for command in batch),
            "replies": sum(command.replies for command in batch),
            "rejected": sum(command.rejected for command in batch),
        }
        deadline = monotonic() + _SECONDS
        while any(len(self._streams[stream]) < count for stream, count in wanted.items()):
            left = deadline - monotonic()
            assert left > 0, self._complaint(batch, wanted)
            self._connection.process_data_events(left)
        return self.take()

    def take(self) -> Document:
        """Take what has come since the last time."""
        found = dict(self._streams)
        self._streams = {stream: [] for stream in found}
        return found

    def drain(self) -> None:
        """Read what is already here."""
        self._connection.process_data_events(0)

    def header_order(self) -> bool:
        """Tell whether the broker hands headers over in the order in which they were sent."""
        sent = encode_properties({"headers": [("b", "S", ""), ("c", "S", ""), ("a", "S", "")]})
        queue = self._reading.queue_declare("", exclusive=True).method.queue
        self._sending.basic_publish("", queue, b"", sent)
        _, properties, _ = self._reading.basic_get(queue, auto_ack=True)
        return bool(properties.raw == sent.raw)

    def _consume(self, stream: str, queue: str) -> None:
        def on_message(_channel: Any, method: Any, properties: WireProperties, body: bytes) -> None:
            entry = self._entry(stream, method, properties, body)
            self._streams[stream].append(entry)

        self._reading.basic_consume(queue, on_message, auto_ack=True)

    def _entry(self, stream: str, method: Any, properties: WireProperties, body: bytes) -> Document:
        found = decode_properties(properties)
        for pair in found:
            if pair == ["user_id", self._user]:
                pair[1] = USER
            # The event's body has its time to the microsecond.
            if stream == "events" and pair == ["timestamp", seconds_of(body)]:
                pair[1] = "<seconds of the event's time>"
        return {
            "exchange": method.exchange,
            "routing_key": method.routing_key,
            "properties": found,
            "body": text_of(body),
        }

    def _publish_as_other_user(self, command: Command) -> None:
        parameters = pika.URLParameters(self._place.other_amqp_url)
        with _connect(parameters) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            self._send(channel, command, parameters.credentials.username)

    def _send(self, channel: Any, command: Command, user: str) -> None:
        properties = _fill_in(dict(command.properties), {REPLIES: self._replies, USER: user})
        exchange, routing_key = f"{self._place.prefix}.commands", command.routing_key
        if command.target == "queue":
            exchange, routing_key = "", exchange
        channel.basic_publish(exchange, routing_key, command.body, encode_properties(properties))

    def _waiting_commands(self) -> int:
        declared = self._reading.queue_declare(f"{self._place.prefix}.commands", passive=True)
        count: int = declared.method.message_count
        return count

    def _complaint(self, batch: Sequence[Command], wanted: dict[str, int]) -> str:
        labels = [command.label for command in batch]
        came = {stream: len(entries) for stream, entries in self._streams.items()}
        return f"{labels}: {wanted} must come within {_SECONDS:.0f} s; {came} came"


@contextmanager
def _open(place: Place, replies: str) -> Iterator[Conversation]:
    with wire_properties(), _connect(pika.URLParameters(place.amqp_url)) as connection:
        conversation = Conversation(place, connection, replies)
        conversation.listen()
        yield conversation


@contextmanager
def _connect(parameters: Any) -> Iterator[Any]:
    parameters.heartbeat = 0
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection
    finally:
        connection.close()


def _fill_in(value: Any, known: dict[str, str]) -> Any:
    """Put the real names in the place of those that stand for them."""
    if isinstance(value, dict):
        return {key: _fill_in(item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fill_in(item, known) for item in value]
    return known.get(value, value) if isinstance(value, str) else value


# --- what is stored ---------------------------------------------------------------------------


def _read_documents(database: Database[Document]) -> Document:
    outplans = database["outplans"].find().sort("_id")
    events = database["outplan_events"].find().sort([("outplan_id", 1), ("version", 1)])
    fences = (_shape(fence) for fence in database["outplan_fences"].find().sort("_id"))
    return {
        "outplans": _to_extended_json(outplans),
        "outplan_events": _to_extended_json(events),
        "outplan_fences": _to_extended_json(fences),
        "outplan_layouts": _to_extended_json(database["outplan_layouts"].find()),
    }


def _shape(fence: Document) -> Document:
    """Hide a fence's values that differ each time: the process, its session, and times."""
    session = fence["session"]
    kind = f"binary of subtype {session.subtype}" if isinstance(session, Binary) else repr(session)
    named = re.fullmatch(r".+:\d+:[0-9a-f]{4}", str(fence["worker"]))
    worker = "<host>:<process>:<random>" if named else fence["worker"]
    times = {"committed": "<date>", "lag": "<seconds>"}
    hidden = {key: text for key, text in times.items() if key in fence}
    return {**fence, "session": f"<{kind}>", "worker": worker, **hidden}


def _schema(database: Database[Document]) -> Document:
    """Return each collection's type, options (the validator among them) and indexes."""
    infos = sorted(database.list_collections(), key=lambda info: str(info["name"]))
    return {
        info["name"]: {
            "type": info["type"],
            "options": _to_extended_json([info["options"]]),
            "indexes": _to_extended_json(
                sorted(database[info["name"]].list_indexes(), key=lambda index: str(index["name"]))
            ),
        }
        for info in infos
    }


def _to_extended_json(documents: Iterable[Any]) -> list[Any]:
    """Write documents as MongoDB's canonical extended JSON, which keeps each number's type."""
    return [json.loads(dumps(each, json_options=CANONICAL_JSON_OPTIONS)) for each in documents]
