"""Test that the frame reader handles content and confirms and passes other frames to the driver."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import pytest
from aiormq.exceptions import IncompatibleProtocolError
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, frame, header, heartbeat

from outplan.contract.amqp import Delivery
from outplan.rabbitmq.frames import FRAME_HEAD, HEARTBEAT
from outplan.rabbitmq.reader import FrameHandler, FrameReader
from outplan.rabbitmq.refusals import Arrivals

PULSE: Final = frame.marshal(heartbeat.Heartbeat(), 0)


@dataclass
class RecordingHandler(FrameHandler):
    """Record every call of a frame reader."""

    deliveries: list[Delivery] = field(default_factory=list)
    confirms: list[tuple[int, bool, bool]] = field(default_factory=list)
    returns: list[str] = field(default_factory=list)
    closes: list[tuple[int, str]] = field(default_factory=list)

    def on_delivery(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)

    def on_confirm(self, tag: int, multiple: bool, confirmed: bool) -> None:
        self.confirms.append((tag, multiple, confirmed))

    def on_return(self, reason: str) -> None:
        self.returns.append(reason)

    def on_close(self, code: int, reason: str) -> None:
        """Take what the reader reports of the connection."""
        self.closes.append((code, reason))


def open_reader(source: asyncio.StreamReader, handler: RecordingHandler) -> FrameReader:
    """Read the frames of channel 1 for ``handler``."""
    return FrameReader(source, {1: handler}, handler.on_close)


@dataclass(frozen=True)
class FrameGroup:
    """Frames that belong together. The driver does not get them if ``is_handled``."""

    frames: tuple[bytes, ...]
    is_handled: bool
    expected: Any = None


def encode_content(method: Any, content: bytes, frame_max: int, **values: Any) -> list[bytes]:
    head = header.ContentHeader(
        body_size=len(content), properties=commands.Basic.Properties(**values)
    )
    size = frame_max - 8
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    each = [method, head, *(body.ContentBody(part) for part in parts)]
    return [frame.marshal(one, 1) for one in each]


def make_delivery(tag: int, content: bytes, redelivered: bool, frame_max: int) -> FrameGroup:
    method = commands.Basic.Deliver("a queue", tag, redelivered, "an exchange", "a key")
    frames = encode_content(method, content, frame_max, message_id=f"m-{tag}")
    return FrameGroup(tuple(frames), True, ("delivery", tag, content, redelivered))


def make_return(content: bytes) -> FrameGroup:
    method = commands.Basic.Return(312, "NO_ROUTE", "", "outplan.rejected")
    return FrameGroup(tuple(encode_content(method, content, 4_096)), True, ("return", "NO_ROUTE"))


def make_confirm(tag: int, multiple: bool, confirmed: bool) -> FrameGroup:
    kind = commands.Basic.Ack if confirmed else commands.Basic.Nack
    frames = (frame.marshal(kind(tag, multiple), 1),)
    return FrameGroup(frames, True, ("confirm", tag, multiple, confirmed))


contents = st.binary(max_size=40) | st.sampled_from([b"", b"\xce" * 30, HEARTBEAT, b"AMQP\x00" * 3])
handled_groups = (
    st.builds(
        make_delivery, st.integers(1, 2**40), contents, st.booleans(), st.sampled_from([9, 20])
    )
    | st.builds(make_return, contents)
    | st.builds(make_confirm, st.integers(1, 2**40), st.booleans(), st.booleans())
)
methods = st.sampled_from(
    [
        frame.marshal(commands.Basic.QosOk(), 1),
        frame.marshal(commands.Basic.ConsumeOk("a queue"), 1),
        frame.marshal(commands.Channel.Close(404, "NOT_FOUND", 50, 10), 1),
        frame.marshal(commands.Connection.Blocked("low on memory"), 0),
        frame.marshal(commands.Connection.CloseOk(), 0),
    ]
).map(lambda raw: FrameGroup((raw,), False))
passed_groups = methods | st.just(FrameGroup((PULSE,), False))


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[FrameGroup], list[tuple[bytes, bool]]]:
    """Draw groups and their frames in order, with other frames between those of a message."""
    groups = draw(st.lists(handled_groups | passed_groups, max_size=8))
    frames: list[tuple[bytes, bool]] = []
    for group in groups:
        for n, each in enumerate(group.frames):
            if n and draw(st.booleans()):
                between = draw(passed_groups)
                frames += [(raw, False) for raw in between.frames]
            frames.append((each, group.is_handled))
    return groups, frames


def cut_stream(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    for start, end in pairwise(edges):
        yield data[start:end]


async def read_as_driver(reader: FrameReader) -> bytes:
    """Read frames as the driver does, until the stream ends."""
    passed = b""
    try:
        while not reader.at_eof():
            head = await reader.readexactly(1) + await reader.readexactly(6)
            passed += head + await reader.readexactly(FRAME_HEAD.unpack(head)[2] + 1)
    except asyncio.IncompleteReadError as error:
        assert error.partial == b""  # noqa: PT017
    return passed


async def feed_reader(pieces: list[bytes]) -> tuple[RecordingHandler, bytes]:
    handler, source = RecordingHandler(), asyncio.StreamReader()
    reading = asyncio.create_task(read_as_driver(open_reader(source, handler)))
    await asyncio.sleep(0)
    for piece in pieces:
        source.feed_data(piece)
        await asyncio.sleep(0)  # let the task read each piece separately
    source.feed_eof()
    return handler, await reading


def compute_passed(frames: list[tuple[bytes, bool]], pieces: list[bytes]) -> bytes:
    """Return the driver's bytes: a heartbeat stands for a piece whose frames were all handled."""
    passed, waiting, arrived, done = b"", list(frames), 0, 0
    for piece in pieces:
        arrived += len(piece)
        complete = []
        while waiting and done + len(waiting[0][0]) <= arrived:
            complete.append(waiting.pop(0))
            done += len(complete[-1][0])
        others = b"".join(raw for raw, is_handled in complete if not is_handled)
        passed += others or (HEARTBEAT if complete else b"")
    return passed


def list_calls(handler: RecordingHandler) -> list[Any]:
    calls: list[Any] = [
        ("delivery", d.tag, d.body, d.redelivered)
        for d in handler.deliveries
        if (d.queue, d.exchange, d.routing_key) == ("a queue", "an exchange", "a key")
        and d.properties.message_id == f"m-{d.tag}"
    ]
    calls += [("return", reason) for reason in handler.returns]
    return calls + [("confirm", *each) for each in handler.confirms]


def list_expected_calls(groups: list[FrameGroup]) -> list[Any]:
    calls = [group.expected for group in groups if group.expected]
    return [c for kind in ("delivery", "return", "confirm") for c in calls if c[0] == kind]


@given(streams(), st.lists(st.integers(0, 10_000), max_size=12))
def test_the_reader_reads_a_stream_cut_anywhere(
    stream: tuple[list[FrameGroup], list[tuple[bytes, bool]]], cuts: list[int]
) -> None:
    groups, frames = stream
    pieces = list(cut_stream(b"".join(raw for raw, _ in frames), cuts))
    handler, passed = asyncio.run(feed_reader(pieces))
    assert list_calls(handler) == list_expected_calls(groups)
    assert passed == compute_passed(frames, pieces)


@given(streams())
def test_the_reader_reads_a_stream_byte_by_byte(
    stream: tuple[list[FrameGroup], list[tuple[bytes, bool]]],
) -> None:
    groups, frames = stream
    data = b"".join(raw for raw, _ in frames)
    handler, passed = asyncio.run(feed_reader([data[n : n + 1] for n in range(len(data))]))
    assert list_calls(handler) == list_expected_calls(groups)
    assert passed.replace(HEARTBEAT, b"") == b"".join(
        raw for raw, is_handled in frames if not is_handled
    ).replace(HEARTBEAT, b"")


async def test_the_driver_gets_a_heartbeat_if_all_frames_of_a_piece_were_handled() -> None:
    confirm, other = (
        make_confirm(1, False, True).frames[0],
        frame.marshal(commands.Basic.QosOk(), 1),
    )
    for pieces, expected in (
        ([confirm], HEARTBEAT),
        ([confirm + confirm], HEARTBEAT),
        ([confirm, confirm], HEARTBEAT * 2),
        ([confirm + other], other),
        ([confirm[:5], confirm[5:]], HEARTBEAT),
        ([other[:5]], b""),
    ):
        handler, source = RecordingHandler(), asyncio.StreamReader()
        reader = open_reader(source, handler)
        reading = asyncio.create_task(reader.readexactly(10_000))
        await asyncio.sleep(0)
        for piece in pieces:
            source.feed_data(piece)
            await asyncio.sleep(0)
        source.feed_eof()
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await reading
        assert caught.value.partial == expected


async def test_reading_past_the_end_raises_an_error_before_at_eof_is_true() -> None:
    """Check this because the driver stops without an error once ``at_eof`` is true."""
    source = asyncio.StreamReader()
    reader = open_reader(source, RecordingHandler())
    source.feed_data(PULSE)
    source.feed_eof()
    assert await reader.readexactly(1) == PULSE[:1]
    assert not reader.at_eof()
    assert await reader.readexactly(7) == PULSE[1:]
    assert not reader.at_eof()
    with pytest.raises(asyncio.IncompleteReadError):
        await reader.readexactly(1)


async def test_a_heartbeat_between_the_frames_of_a_message_reaches_the_driver() -> None:
    source, handler = asyncio.StreamReader(), RecordingHandler()
    method, head, part = make_delivery(1, b"x", False, 20).frames
    other = frame.marshal(commands.Basic.QosOk(), 1)
    source.feed_data(method + PULSE + head + PULSE + part + other)
    source.feed_eof()
    assert await read_as_driver(open_reader(source, handler)) == PULSE + PULSE + other


async def test_the_frames_of_two_messages_may_alternate_on_two_channels() -> None:
    source, one, two = asyncio.StreamReader(), RecordingHandler(), RecordingHandler()
    groups = [make_delivery(tag, b"x" * 30, False, 20).frames for tag in (1, 2)]
    others = [raw[:1] + b"\0\2" + raw[3:] for raw in groups[1]]
    source.feed_data(b"".join(raw for pair in zip(groups[0], others, strict=True) for raw in pair))
    source.feed_eof()
    reader = FrameReader(source, {1: one, 2: two}, one.on_close)
    assert await read_as_driver(reader) == HEARTBEAT
    assert [[d.tag for d in each.deliveries] for each in (one, two)] == [[1], [2]]


async def test_the_driver_gets_all_that_a_channel_without_a_handler_receives() -> None:
    source, handler = asyncio.StreamReader(), RecordingHandler()
    groups = [make_return(b"back"), make_confirm(1, False, True), make_delivery(1, b"", False, 9)]
    data = b"".join(raw for group in groups for raw in group.frames)
    source.feed_data(data)
    source.feed_eof()
    assert await read_as_driver(FrameReader(source, {2: handler}, handler.on_close)) == data
    assert handler == RecordingHandler()


async def test_connection_close_reaches_handler_and_driver() -> None:
    source, handler = asyncio.StreamReader(), RecordingHandler()
    close = frame.marshal(commands.Connection.Close(530, "NOT_ALLOWED - vhost é", 10, 40), 0)
    source.feed_data(close)
    source.feed_eof()
    assert await read_as_driver(open_reader(source, handler)) == close
    assert handler.closes == [(530, "NOT_ALLOWED - vhost é")]


async def test_the_driver_gets_the_content_of_basic_get() -> None:
    source = asyncio.StreamReader()
    get_ok = commands.Basic.GetOk(1, False, "", "k", 0)
    data = b"".join(encode_content(get_ok, b"content", 4_096))
    source.feed_data(data)
    handler = RecordingHandler()
    assert await open_reader(source, handler).readexactly(len(data)) == data
    assert handler == RecordingHandler()


async def test_a_delivery_keeps_the_bytes_of_undecodable_properties() -> None:
    frames = encode_content(commands.Basic.Deliver("q", 1, False, "", "k"), b"", 4_096)
    raw = b"\x00\x3c\x00\x00" + bytes(8) + b"\x00\xc0" + b"\x02\xff\xfe" + b"\x7f" * 8
    frames[1] = FRAME_HEAD.pack(2, 1, len(raw)) + raw + b"\xce"
    source, handler = asyncio.StreamReader(), RecordingHandler()
    source.feed_data(b"".join(frames))
    assert await open_reader(source, handler).readexactly(8) == HEARTBEAT
    [found] = handler.deliveries
    assert found.properties.message_id == "\udcff\udcfe"
    assert found.properties.timestamp == 0x7F7F7F7F7F7F7F7F


@pytest.mark.parametrize(
    "words",
    [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n", b"\x15\x03\x03\x00\x02\x02\x28"],
    ids=["another version", "HTTP", "TLS"],
)
@pytest.mark.parametrize("cut", [1, 4, 7])
async def test_a_server_that_does_not_greet_with_a_frame_speaks_another_protocol(
    words: bytes, cut: int
) -> None:
    source, arrivals = asyncio.StreamReader(), Arrivals()
    handler = RecordingHandler()
    reader = FrameReader(source, {1: handler}, handler.on_close, arrivals)
    reading = asyncio.create_task(reader.readexactly(7))
    source.feed_data(words[:cut])
    await asyncio.sleep(0)
    source.feed_data(words[cut:])
    with pytest.raises(IncompatibleProtocolError):
        await reading
    assert arrivals.is_foreign
