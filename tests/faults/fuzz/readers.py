"""Read hostile messages as subscribers, clients and operators do, without a broker."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from typing import Any, Final, cast, get_args

import orjson

from outplan.cli.rejected_output import encode_message, print_list, print_message
from outplan.cli.watch import EventTable, show_item
from outplan.client import Event, Unreadable
from outplan.client.events import Item, parse_message
from outplan.client.pending import PendingCall, PendingReplies
from outplan.client.versions import Filter, Versions
from outplan.contract import schemas
from outplan.contract.amqp import Delivery, Publication
from outplan.contract.messages import EventType
from outplan.operations.redrive import validate
from outplan.operations.rejected_message import Selection, build_record, summarize
from outplan.operations.rejected_queue import RejectedMessage, RejectedQueue
from outplan.operations.resend import restore_command
from outplan.rabbitmq.frames import (
    BODY,
    DELIVER,
    FRAME_HEAD,
    HEADER,
    HEARTBEAT,
    METHOD,
    U32,
    Malformed,
    WireProperties,
    read_content_header,
    write_publication,
)
from outplan.rabbitmq.reader import FrameHandler, FrameReader
from tests.faults.fuzz.frame_checks import property_bytes
from tests.faults.fuzz.mutants import Mutant
from tests.faults.fuzz.report import Report
from tests.support.raw_message import RawMessage
from tests.support.samples import NOW_MOMENT
from tests.support.wire import FRAME_MAX

_EXCHANGE: Final = "outplan.events"
# Printing takes a hundred times as long as reading.
_PRINT_EVERY: Final = 500
# A subscription remembers every outplan, and mutants name new ones without end.
_SUBSCRIPTION_LENGTH: Final = 5_000
_LONG_ITEMS: Final = 1 << 16


class _Inbox(FrameHandler):
    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []

    def on_delivery(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)


class Readers:
    """Let a subscriber, a client and an operator read messages; add failures to ``report``.

    Nothing may raise, and what each of them shows must hold no text that cannot be printed.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._count = 0
        self._versions = Versions(Filter(), {})

    async def read_batch(
        self, mutants: Sequence[Mutant], copies: Sequence[tuple[Mutant, RawMessage]]
    ) -> None:
        """Read messages as events, replies and rejected copies; read copies as such."""
        for mutant in mutants:
            with self._report_exceptions(mutant):
                delivery = await self._receive(mutant)
                if delivery is not None:
                    self._read(delivery, mutant)
        for mutant, copy in copies:
            with self._report_exceptions(mutant):
                received = await self._receive(copy)
                assert received is not None, "the worker's copy is malformed"
                self._operate(received)
                self._check_restored(received, mutant)

    async def _receive(self, message: RawMessage) -> Delivery | None:
        """Read frames as from a socket; None for a message that no broker forwards."""
        try:
            read_content_header(message.header)
        except Malformed:
            return None
        source, inbox = asyncio.StreamReader(), _Inbox()
        source.feed_data(_encode_frames(message))
        source.feed_eof()
        reader = FrameReader(source, {1: inbox}, lambda *_: None)
        passed = await reader.readexactly(len(HEARTBEAT))
        while not inbox.deliveries:  # The reader takes a large message in pieces.
            passed = await reader.readexactly(len(HEARTBEAT))
        assert passed == HEARTBEAT, "frames of the message reached the driver"
        [delivery] = inbox.deliveries
        assert delivery.body == message.body
        return delivery

    def _read(self, delivery: Delivery, mutant: Mutant) -> None:
        self._count += 1
        if self._count % _SUBSCRIPTION_LENGTH == 0:
            self._versions = Versions(Filter(), {})
        since = time.thread_time_ns()
        items = parse_message(delivery, self._versions)
        self._answer(delivery)
        self._operate(delivery)
        self._report.reader_times.add(time.thread_time_ns() - since, mutant)
        self._report.readings.update(type(item).__name__ for item in items)
        self._report.readings["repeat"] += not items
        _check_items(items, delivery.body)
        if self._count % _PRINT_EVERY == 0:
            _print_items(items)

    def _answer(self, delivery: Delivery) -> None:
        """Take it for a reply, first to nobody, then to a command that waits for one."""
        replies = PendingReplies("fuzz")
        replies.on_reply(delivery.properties.correlation_id, delivery.body)
        call = PendingCall(replies)
        replies.on_reply(call.start_attempt(), delivery.body)
        assert call.reply.done()
        replies.discard(call)

    def _operate(self, delivery: Delivery) -> None:
        """Take it for a message of the queue of rejected commands."""
        summary = summarize(delivery)
        Selection(codes=frozenset({"x"})).matches(summary, NOW_MOMENT)
        message = RejectedMessage(1, summary, delivery.tag, delivery.routing_key)
        queue = cast(RejectedQueue, _Queue(delivery))
        [result] = validate(queue, [message], "outplan.commands", "guest")
        restored = restore_command(delivery, "outplan.commands", "guest", "replies")
        publication = Publication(
            restored.exchange, restored.routing_key, restored.body, {}, original=restored
        )
        assert write_publication(1, publication, FRAME_MAX, "guest")
        record = build_record(delivery)
        assert orjson.loads(encode_message(message, record))["body_bytes"] == len(delivery.body)
        self._report.readings[result.status] += 1
        if self._count % _PRINT_EVERY == 0 and len(delivery.body) < _LONG_ITEMS:
            with _captured():
                print_list([message], as_json=False)
                print_message(message, record, result, as_json=False)

    def _check_restored(self, copy: Delivery, mutant: Mutant) -> None:
        """Check that a redrive of the worker's copy sends what the publisher sent."""
        restored = restore_command(copy, "outplan.commands", "guest").properties
        sent = read_content_header(mutant.header)
        assert isinstance(restored, WireProperties)
        for name in ("message_id", "message_type", "correlation_id", "timestamp", "content_type"):
            assert property_bytes(restored, name) == property_bytes(sent, name), name

    @contextmanager
    def _report_exceptions(self, mutant: Mutant) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._report.failures.append(
                f"{type(error).__name__}: {error} in a reader; {mutant.kind}; "
                f"header {mutant.header[:300].hex()}, body {mutant.body[:600]!r}"[:2_000]
            )


class _Queue:
    """A queue of rejected commands that holds one message."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    def read(self, _: RejectedMessage) -> Delivery:
        return self._delivery


def _encode_frames(message: RawMessage) -> bytes:
    key = message.routing_key.encode("utf-8", "surrogateescape")
    exchange = _EXCHANGE.encode()
    method = b"".join(
        (U32.pack(DELIVER), b"\1c", bytes(7), b"\1\0", bytes([len(exchange)]), exchange,
         bytes([len(key)]), key)
    )  # fmt: skip
    size = FRAME_MAX - 8
    parts = [message.body[at : at + size] for at in range(0, len(message.body), size)]
    # Mutated headers may tell another size than the body's.
    header = message.header[:4] + len(message.body).to_bytes(8, "big") + message.header[12:]
    frames = [(METHOD, method), (HEADER, header), *((BODY, part) for part in parts)]
    return b"".join(
        FRAME_HEAD.pack(kind, 1, len(payload)) + payload + b"\xce" for kind, payload in frames
    )


def _check_items(items: Sequence[Item], body: bytes) -> None:
    unreadable = [item for item in items if isinstance(item, Unreadable)]
    for item in unreadable:
        assert item.body == body
        assert (item.routing_key + item.reason).encode()
        assert not _is_event(body), "an event is unreadable"
    for event in (item for item in items if isinstance(item, Event)):
        assert event.raw == body
        assert event.model_dump_json()
        _ = event.at, event.data.created_at, event.data.updated_at, event.data.deleted_at


def _is_event(body: bytes) -> bool:
    try:
        found: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    name = found.get("type") if isinstance(found, dict) else None
    return name in get_args(EventType) and schemas.is_valid(str(name), found)


def _print_items(items: Sequence[Item]) -> None:
    with _captured():
        view = EventTable()
        for item in items:
            show_item(item, view)


@contextmanager
def _captured() -> Iterator[None]:
    """Print to files in UTF-8, which fail on text that cannot be encoded."""
    with (
        TextIOWrapper(BytesIO(), "utf-8") as out,
        TextIOWrapper(BytesIO(), "utf-8") as err,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        yield
