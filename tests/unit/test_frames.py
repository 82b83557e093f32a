"""Content on the wire, held to the library's own codec."""

import struct
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pamqp import body, commands, encode, frame, header

from outplan.contract.amqp import Publication
from outplan.rabbitmq.frames import (
    BODY,
    METHOD,
    U32,
    Malformed,
    drop_headers,
    read_confirm,
    read_content_header,
    read_deliver,
    write_publication,
    write_table,
)
from tests.support.wire import (
    FRAME_MAX,
    content_header,
    delivered,
    header_of,
    library_frames,
    library_tables,
    moments,
    names,
    properties,
    raw_property,
    raw_tables,
    rejected_copy,
    short_text,
    split,
    table_bytes,
    text,
    with_table,
)

# --- publications ------------------------------------------------------------------------------

header_values = text | st.integers(-(2**63), 2**63 - 1) | st.booleans()
fresh = st.builds(
    Publication,
    exchange=short_text,
    routing_key=short_text,
    body=st.binary(max_size=2_000),
    headers=st.dictionaries(names, header_values, max_size=5),
    message_id=st.none() | short_text,
    type=st.none() | short_text,
    correlation_id=st.none() | short_text,
    timestamp=st.none() | moments.map(lambda moment: int(moment.timestamp())),
)


@given(fresh, st.integers(1, 65_535))
def test_the_library_reads_a_publication_as_it_was_meant(found: Publication, channel: int) -> None:
    frames = library_frames(write_publication(channel, found, FRAME_MAX))
    assert {number for number, _ in frames} == {channel}
    publish, head, *parts = [each for _, each in frames]
    assert isinstance(publish, commands.Basic.Publish)
    assert (publish.exchange, publish.routing_key) == (found.exchange, found.routing_key)
    assert (publish.mandatory, publish.immediate) == (False, False)
    assert isinstance(head, header.ContentHeader)
    assert head.body_size == len(found.body)
    assert b"".join(part.value for part in parts) == found.body
    sent = head.properties
    assert sent.content_type == "application/json"
    assert sent.delivery_mode == 2
    assert sent.app_id == "outplan-service"
    assert sent.headers == found.headers
    assert (sent.message_id, sent.message_type) == (found.message_id, found.type)
    assert sent.correlation_id == found.correlation_id
    moment = sent.timestamp
    assert (None if moment is None else int(moment.timestamp())) == found.timestamp
    for name in ("content_encoding", "priority", "reply_to", "expiration", "user_id"):
        assert getattr(sent, name) is None


@given(fresh, st.integers(1, 65_535))
def test_a_publication_that_is_read_here_is_the_same(found: Publication, channel: int) -> None:
    _, (_, _, payload), *_ = split(write_publication(channel, found, FRAME_MAX))
    sent = read_content_header(payload)
    assert sent.headers == found.headers
    assert (sent.message_id, sent.message_type) == (found.message_id, found.type)
    assert (sent.correlation_id, sent.timestamp) == (found.correlation_id, found.timestamp)
    assert sent.body_size == len(found.body)


@pytest.mark.parametrize(
    ("size", "frames"),
    [(0, 0), (1, 1), (4_087, 1), (4_088, 1), (4_089, 2), (8_176, 2), (8_177, 3), (262_144, 65)],
)
def test_a_body_is_cut_into_as_many_frames_as_it_needs(size: int, frames: int) -> None:
    content = bytes(n % 251 for n in range(size))
    data = write_publication(1, Publication("x", "k", content, {}), 4_096)
    _, (_, _, head), *parts = split(data)
    assert [kind for kind, _, _ in parts] == [BODY] * frames
    assert b"".join(payload for _, _, payload in parts) == content
    assert all(len(payload) + 8 <= 4_096 for _, _, payload in parts)
    assert read_content_header(head).body_size == size


def test_a_body_is_written_also_where_the_broker_sets_no_limit() -> None:
    """The protocol writes that as 0."""
    content = bytes(n % 251 for n in range(262_144))
    found = Publication("x", "k", content, {"a": "b"})
    assert write_publication(1, found, 0) == write_publication(1, found, FRAME_MAX)


def test_text_that_is_no_utf_8_is_written_as_the_bytes_it_was() -> None:
    reply = Publication("", "to-\udcff", b"{}", {"h": "\udc80"}, correlation_id="c-\udcfe")
    (_, _, method), (_, _, head), _ = split(write_publication(1, reply, FRAME_MAX))
    assert method.endswith(b"\x04to-\xff\x00")
    found = read_content_header(head)
    assert raw_property(found, "correlation_id") == b"\x03c-\xfe"
    assert found.table == b"\x01hS\x00\x00\x00\x01\x80"


def test_only_a_rejected_copy_is_mandatory() -> None:
    copy = write_publication(1, rejected_copy(read_content_header(content_header())), FRAME_MAX)
    event = write_publication(1, Publication("x", "k", b"", {}), FRAME_MAX)
    assert library_frames(copy)[0][1].mandatory
    assert not library_frames(event)[0][1].mandatory


# --- content headers ---------------------------------------------------------------------------


@given(properties, library_tables, st.integers(0, 2**64 - 1))
def test_a_content_header_of_the_library_is_read_the_same(
    values: dict[str, Any], table: dict[str, Any], size: int
) -> None:
    payload = content_header(size, headers=table, **values)
    oracle = header.ContentHeader()
    oracle.unmarshal(payload)
    found = read_content_header(payload)
    assert found.body_size == size
    assert found.headers == (oracle.properties.headers or {})
    for name in values.keys() - {"timestamp"}:
        assert getattr(found, name) == getattr(oracle.properties, name), name
    moment = oracle.properties.timestamp
    assert found.timestamp == (None if moment is None else int(moment.timestamp()))
    assert b"".join(raw_property(found, name) for name in found.spans) == found.raw


def test_properties_that_are_absent_are_none() -> None:
    found = read_content_header(content_header())
    assert (found.message_id, found.timestamp, found.reply_to, found.priority) == (None,) * 4
    assert (found.table, found.headers, found.spans) == (b"", {}, {})


@given(raw_tables)
@example([(b"t", b"T" + b"\x7f" * 8)])
@example([(b"d", b"D\xff\x7f\xff\xff\xff")])
@example([(b"\xff", b"V")])
@example([(b"s", b"S\x00\x00\x00\x02\xff\xfe")])
@example([(b"a", b"A\x00\x00\x00\x03tS\x00")])
def test_headers_of_any_bits_never_raise(fields: list[tuple[bytes, bytes]]) -> None:
    assert isinstance(with_table(table_bytes(fields)).headers, Mapping)


@given(st.binary(max_size=100))
def test_a_table_of_junk_never_raises(junk: bytes) -> None:
    assert isinstance(with_table(junk).headers, Mapping)
    assert drop_headers(junk, ["x-problem"]) is not None


@given(st.binary(max_size=120))
@example(b"")
@example(header_of(0x8000, b"\x05abc"))
@example(header_of(0x2000, b"\x00\x00\x00\x05abc"))
@example(header_of(0x0040, b"\x00" * 7))
@example(header_of(0x1000, b""))
def test_a_content_header_of_junk_is_read_or_malformed(junk: bytes) -> None:
    try:
        found = read_content_header(junk)
    except Malformed:
        return
    assert sum(end - start for start, end in found.spans.values()) <= len(found.raw)


@pytest.mark.parametrize(
    ("flag", "raw"),
    [(0x8000, b"\x05abc"), (0x2000, b"\x00\x00\x00\x05abc"), (0x0040, b"\x00" * 7),
     (0x1000, b""), (0x2000, b"\x00\x00"), (0xC000, b"\x01a\x02b")],
)  # fmt: skip
def test_properties_past_the_headers_end_are_malformed(flag: int, raw: bytes) -> None:
    with pytest.raises(Malformed, match="content header"):
        read_content_header(header_of(flag, raw))


def test_a_message_id_that_is_no_utf_8_is_kept_and_told_apart() -> None:
    found = read_content_header(header_of(0x0080, b"\x03a\xff\xfe"))
    assert found.message_id == "a\udcff\udcfe"
    assert delivered(found).command_id is None


@pytest.mark.parametrize("seconds", [0, -1, 2**31, 253_402_300_800, 2**63 - 1, -(2**63)])
def test_a_timestamp_of_any_year_is_read(seconds: int) -> None:
    found = read_content_header(header_of(0x0040, struct.pack(">q", seconds)))
    assert found.timestamp == seconds


def nested_tables(levels: int) -> bytes:
    table = b""
    for _ in range(levels):
        table = b"\x01aF" + U32.pack(len(table)) + table
    return table


@pytest.mark.parametrize("levels", [1, 10, 50])
def test_headers_nested_a_little_are_read(levels: int) -> None:
    found: Any = with_table(nested_tables(levels)).headers
    for _ in range(levels):
        found = found["a"]
    assert found == {}


def test_headers_nested_past_any_sane_depth_never_raise() -> None:
    """The broker lets 860 levels through in 6 kB."""
    found = with_table(nested_tables(860) + b"\x01bI\x00\x00\x00\x07")
    assert found.headers == {"a": None, "b": 7}
    assert (found.header("a"), found.header("b")) == (None, 7)


def test_an_undecodable_header_does_not_hide_the_delivery_count() -> None:
    microseconds = b"T" + struct.pack(">q", 1_795_414_200_000_000)
    table = table_bytes(
        [(b"sent-at", microseconds), (b"x-delivery-count", b"l" + bytes(7) + b"\x05")]
    )
    assert delivered(with_table(table)).delivery_count == 5


def test_an_undecodable_header_does_not_lose_the_trace_context() -> None:
    value = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    microseconds = b"T" + struct.pack(">q", 1_795_414_200_000_000)
    fields = [(b"sent-at", microseconds), (b"traceparent", b"S" + U32.pack(len(value)) + value)]
    found = with_table(table_bytes(fields))
    assert found.headers == {"sent-at": None, "traceparent": value.decode()}
    assert found.header("traceparent") == value.decode()


@given(library_tables)
def test_each_header_alone_is_what_it_is_among_the_others(table: dict[str, Any]) -> None:
    found = with_table(encode.field_table(table)[4:])
    assert {name: found.header(name) for name in found.headers} == found.headers
    assert found.headers.keys() == table.keys()


@pytest.mark.parametrize("name", ["absent", "x", "value", "a\udcff", "y" * 300, ""])
def test_a_header_that_is_absent_is_none(name: str) -> None:
    """Also where its name stands in the table as a part of something else."""
    assert with_table(write_table({"xx": "value", "a": "b"})[4:]).header(name) is None


def test_a_headers_name_that_is_no_utf_8_is_kept_by_surrogates() -> None:
    found = with_table(table_bytes([(b"a\xff", b"t\x01")]))
    assert found.headers == {"a\udcff": True}
    assert found.header("a\udcff") is True


@given(st.binary(max_size=100), st.binary(max_size=3))
def test_a_header_in_a_table_of_junk_never_raises(junk: bytes, name: bytes) -> None:
    with_table(junk).header(name.decode("utf-8", "surrogateescape"))


def test_what_stands_before_the_junk_is_still_read() -> None:
    found = with_table(write_table({"x-delivery-count": 3})[4:] + b"\x01a?")
    assert delivered(found).delivery_count == 3


# --- header tables -----------------------------------------------------------------------------


@given(st.dictionaries(names, header_values, max_size=6))
def test_the_library_reads_a_written_table(table: dict[str, Any]) -> None:
    raw = write_table(table)
    assert U32.unpack(raw[:4]) == (len(raw) - 4,)
    assert with_table(raw[4:]).headers == table


@given(raw_tables, st.sets(st.sampled_from(["x-problem", "traceparent", "x-death"])))
def test_fields_are_taken_out_and_the_others_keep_every_byte(
    fields: list[tuple[bytes, bytes]], dropped: set[str]
) -> None:
    gone = {name.encode() for name in dropped} | {b"x-delivery-count", b"x-acquired-count"}
    kept = [(name, value) for name, value in fields if name not in gone]
    assert drop_headers(table_bytes(fields), dropped) == table_bytes(kept)


@given(library_tables)
def test_every_kind_that_the_library_writes_is_walked(table: dict[str, Any]) -> None:
    raw = encode.field_table(table)[4:]
    assert drop_headers(raw, ()) == raw
    for name in table:
        rest = {k: v for k, v in table.items() if k != name}
        assert drop_headers(raw, [name]) == encode.field_table(rest)[4:]


# --- methods -----------------------------------------------------------------------------------


# The library writes a delivery tag as if it had a sign, and only exchanges with plain names.
tags = st.integers(0, 2**63 - 1)
exchanges = st.from_regex(r"[a-zA-Z0-9-_.:]{0,127}", fullmatch=True)


@given(short_text, tags, st.booleans(), exchanges, short_text)
def test_a_delivery_of_the_library_is_read_the_same(
    consumer: str, tag: int, redelivered: bool, exchange: str, key: str
) -> None:
    method = commands.Basic.Deliver(consumer, tag, redelivered, exchange, key)
    [(kind, _, payload)] = split(frame.marshal(method, 1))
    assert kind == METHOD
    assert read_deliver(payload) == (consumer, tag, redelivered, exchange, key)


@given(tags, st.booleans(), st.booleans())
def test_a_confirm_of_the_library_is_read_the_same(tag: int, multiple: bool, requeue: bool) -> None:
    [(_, _, ack)] = split(frame.marshal(commands.Basic.Ack(tag, multiple), 1))
    [(_, _, nack)] = split(frame.marshal(commands.Basic.Nack(tag, multiple, requeue), 1))
    assert read_confirm(ack) == read_confirm(nack) == (tag, multiple)


@given(fresh, st.sampled_from([4_096, 8_192, FRAME_MAX]))
@settings(max_examples=50)
def test_the_body_frames_are_the_librarys(found: Publication, frame_max: int) -> None:
    *_, parts = [split(write_publication(9, found, frame_max))[2:]]
    size = frame_max - 8
    expected = b"".join(
        frame.marshal(body.ContentBody(found.body[at : at + size]), 9)
        for at in range(0, len(found.body), size)
    )
    assert [p for _, _, p in parts] == [p for _, _, p in split(expected)]
