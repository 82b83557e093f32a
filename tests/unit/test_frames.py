"""Compare the frame codec with pamqp's."""

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
    build_content_header,
    decode_with_pamqp,
    encode_content_header,
    encode_table,
    get_raw_property,
    make_delivery,
    make_rejected_copy,
    moments,
    names,
    pamqp_tables,
    properties,
    raw_tables,
    read_table,
    short_text,
    split_frames,
    text,
)

# --- publications ------------------------------------------------------------------------------

header_values = text | st.integers(-(2**63), 2**63 - 1) | st.booleans()
publications = st.builds(
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


@given(publications, st.integers(1, 65_535))
def test_pamqp_reads_a_written_publication(publication: Publication, channel: int) -> None:
    frames = decode_with_pamqp(write_publication(channel, publication, FRAME_MAX))
    assert {number for number, _ in frames} == {channel}
    publish, head, *parts = [each for _, each in frames]
    assert isinstance(publish, commands.Basic.Publish)
    assert (publish.exchange, publish.routing_key) == (
        publication.exchange,
        publication.routing_key,
    )
    assert (publish.mandatory, publish.immediate) == (False, False)
    assert isinstance(head, header.ContentHeader)
    assert head.body_size == len(publication.body)
    assert b"".join(part.value for part in parts) == publication.body
    sent = head.properties
    assert sent.content_type == "application/json"
    assert sent.delivery_mode == 2
    assert sent.app_id == "outplan-service"
    assert sent.headers == publication.headers
    assert (sent.message_id, sent.message_type) == (publication.message_id, publication.type)
    assert sent.correlation_id == publication.correlation_id
    moment = sent.timestamp
    assert (None if moment is None else int(moment.timestamp())) == publication.timestamp
    for name in ("content_encoding", "priority", "reply_to", "expiration", "user_id"):
        assert getattr(sent, name) is None


@given(publications, st.integers(1, 65_535))
def test_a_written_publication_reads_back_the_same(publication: Publication, channel: int) -> None:
    _, (_, _, payload), *_ = split_frames(write_publication(channel, publication, FRAME_MAX))
    sent = read_content_header(payload)
    assert sent.headers == publication.headers
    assert (sent.message_id, sent.message_type) == (publication.message_id, publication.type)
    assert (sent.correlation_id, sent.timestamp) == (
        publication.correlation_id,
        publication.timestamp,
    )
    assert sent.body_size == len(publication.body)


@pytest.mark.parametrize(
    ("size", "frames"),
    [(0, 0), (1, 1), (4_087, 1), (4_088, 1), (4_089, 2), (8_176, 2), (8_177, 3), (262_144, 65)],
)
def test_a_body_is_split_into_as_few_frames_as_possible(size: int, frames: int) -> None:
    content = bytes(n % 251 for n in range(size))
    data = write_publication(1, Publication("x", "k", content, {}), 4_096)
    _, (_, _, head), *parts = split_frames(data)
    assert [kind for kind, _, _ in parts] == [BODY] * frames
    assert b"".join(payload for _, _, payload in parts) == content
    assert all(len(payload) + 8 <= 4_096 for _, _, payload in parts)
    assert read_content_header(head).body_size == size


def test_a_frame_max_of_zero_means_no_limit() -> None:
    content = bytes(n % 251 for n in range(262_144))
    found = Publication("x", "k", content, {"a": "b"})
    assert write_publication(1, found, 0) == write_publication(1, found, FRAME_MAX)


def test_surrogate_escapes_are_written_as_the_original_bytes() -> None:
    reply = Publication("", "to-\udcff", b"{}", {"h": "\udc80"}, correlation_id="c-\udcfe")
    (_, _, method), (_, _, head), _ = split_frames(write_publication(1, reply, FRAME_MAX))
    assert method.endswith(b"\x04to-\xff\x00")
    found = read_content_header(head)
    assert get_raw_property(found, "correlation_id") == b"\x03c-\xfe"
    assert found.table == b"\x01hS\x00\x00\x00\x01\x80"


def test_only_rejected_copies_are_mandatory() -> None:
    copy = write_publication(
        1, make_rejected_copy(read_content_header(encode_content_header())), FRAME_MAX
    )
    event = write_publication(1, Publication("x", "k", b"", {}), FRAME_MAX)
    assert decode_with_pamqp(copy)[0][1].mandatory
    assert not decode_with_pamqp(event)[0][1].mandatory


# --- content headers ---------------------------------------------------------------------------


@given(properties, pamqp_tables, st.integers(0, 2**64 - 1))
def test_the_codec_reads_a_content_header_as_pamqp_does(
    values: dict[str, Any], table: dict[str, Any], size: int
) -> None:
    payload = encode_content_header(size, headers=table, **values)
    oracle = header.ContentHeader()
    oracle.unmarshal(payload)
    found = read_content_header(payload)
    assert found.body_size == size
    assert found.headers == (oracle.properties.headers or {})
    for name in values.keys() - {"timestamp"}:
        assert getattr(found, name) == getattr(oracle.properties, name), name
    moment = oracle.properties.timestamp
    assert found.timestamp == (None if moment is None else int(moment.timestamp()))
    assert b"".join(get_raw_property(found, name) for name in found.spans) == found.raw


def test_absent_properties_are_none() -> None:
    found = read_content_header(encode_content_header())
    assert (found.message_id, found.timestamp, found.reply_to, found.priority) == (None,) * 4
    assert (found.table, found.headers, found.spans) == (b"", {}, {})


@given(raw_tables)
@example([(b"t", b"T" + b"\x7f" * 8)])
@example([(b"d", b"D\xff\x7f\xff\xff\xff")])
@example([(b"\xff", b"V")])
@example([(b"s", b"S\x00\x00\x00\x02\xff\xfe")])
@example([(b"a", b"A\x00\x00\x00\x03tS\x00")])
def test_reading_headers_with_random_values_never_raises(fields: list[tuple[bytes, bytes]]) -> None:
    assert isinstance(read_table(encode_table(fields)).headers, Mapping)


@given(st.binary(max_size=100))
def test_reading_a_table_of_random_bytes_never_raises(junk: bytes) -> None:
    assert isinstance(read_table(junk).headers, Mapping)
    assert drop_headers(junk, ["x-problem"]) is not None


@given(st.binary(max_size=120))
@example(b"")
@example(build_content_header(0x8000, b"\x05abc"))
@example(build_content_header(0x2000, b"\x00\x00\x00\x05abc"))
@example(build_content_header(0x0040, b"\x00" * 7))
@example(build_content_header(0x1000, b""))
def test_a_content_header_of_random_bytes_is_read_or_malformed(junk: bytes) -> None:
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
def test_truncated_properties_are_malformed(flag: int, raw: bytes) -> None:
    with pytest.raises(Malformed, match="content header"):
        read_content_header(build_content_header(flag, raw))


def test_a_message_id_that_is_not_utf_8_is_kept_but_is_no_command_id() -> None:
    found = read_content_header(build_content_header(0x0080, b"\x03a\xff\xfe"))
    assert found.message_id == "a\udcff\udcfe"
    assert make_delivery(found).command_id is None


@pytest.mark.parametrize("seconds", [0, -1, 2**31, 253_402_300_800, 2**63 - 1, -(2**63)])
def test_a_timestamp_may_be_any_64_bit_integer(seconds: int) -> None:
    found = read_content_header(build_content_header(0x0040, struct.pack(">q", seconds)))
    assert found.timestamp == seconds


def nest_tables(levels: int) -> bytes:
    table = b""
    for _ in range(levels):
        table = b"\x01aF" + U32.pack(len(table)) + table
    return table


@pytest.mark.parametrize("levels", [1, 10, 50])
def test_headers_of_up_to_50_levels_are_read(levels: int) -> None:
    found: Any = read_table(nest_tables(levels)).headers
    for _ in range(levels):
        found = found["a"]
    assert found == {}


def test_a_header_of_860_levels_is_none_and_does_not_hide_the_others() -> None:
    """Read a header that RabbitMQ accepts and that fits into 6 kB."""
    found = read_table(nest_tables(860) + b"\x01bI\x00\x00\x00\x07")
    assert found.headers == {"a": None, "b": 7}
    assert (found.header("a"), found.header("b")) == (None, 7)


def test_an_undecodable_header_does_not_hide_the_delivery_count() -> None:
    microseconds = b"T" + struct.pack(">q", 1_795_414_200_000_000)
    table = encode_table(
        [(b"sent-at", microseconds), (b"x-delivery-count", b"l" + bytes(7) + b"\x05")]
    )
    assert make_delivery(read_table(table)).delivery_count == 5


def test_an_undecodable_header_does_not_hide_the_trace_context() -> None:
    value = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    microseconds = b"T" + struct.pack(">q", 1_795_414_200_000_000)
    fields = [(b"sent-at", microseconds), (b"traceparent", b"S" + U32.pack(len(value)) + value)]
    found = read_table(encode_table(fields))
    assert found.headers == {"sent-at": None, "traceparent": value.decode()}
    assert found.header("traceparent") == value.decode()


@given(pamqp_tables)
def test_one_header_reads_the_same_as_in_all_headers(table: dict[str, Any]) -> None:
    found = read_table(encode.field_table(table)[4:])
    assert {name: found.header(name) for name in found.headers} == found.headers
    assert found.headers.keys() == table.keys()


@pytest.mark.parametrize("name", ["absent", "x", "value", "a\udcff", "y" * 300, ""])
def test_an_absent_header_is_none_even_if_its_name_occurs_in_the_table(name: str) -> None:
    assert read_table(write_table({"xx": "value", "a": "b"})[4:]).header(name) is None


def test_a_header_name_that_is_not_utf_8_carries_surrogate_escapes() -> None:
    found = read_table(encode_table([(b"a\xff", b"t\x01")]))
    assert found.headers == {"a\udcff": True}
    assert found.header("a\udcff") is True


@given(st.binary(max_size=100), st.binary(max_size=3))
def test_reading_one_header_in_random_bytes_never_raises(junk: bytes, name: bytes) -> None:
    read_table(junk).header(name.decode("utf-8", "surrogateescape"))


def test_headers_before_an_invalid_field_are_read() -> None:
    found = read_table(write_table({"x-delivery-count": 3})[4:] + b"\x01a?")
    assert make_delivery(found).delivery_count == 3


# --- header tables -----------------------------------------------------------------------------


@given(st.dictionaries(names, header_values, max_size=6))
def test_a_written_table_reads_back_the_same(table: dict[str, Any]) -> None:
    raw = write_table(table)
    assert U32.unpack(raw[:4]) == (len(raw) - 4,)
    assert read_table(raw[4:]).headers == table


@given(raw_tables, st.sets(st.sampled_from(["x-problem", "traceparent", "x-death"])))
def test_drop_headers_keeps_every_byte_of_the_other_headers(
    fields: list[tuple[bytes, bytes]], dropped: set[str]
) -> None:
    removed = {name.encode() for name in dropped} | {b"x-delivery-count", b"x-acquired-count"}
    kept = [(name, value) for name, value in fields if name not in removed]
    assert drop_headers(encode_table(fields), dropped) == encode_table(kept)


@given(pamqp_tables)
def test_drop_headers_reads_every_type_that_pamqp_writes(table: dict[str, Any]) -> None:
    raw = encode.field_table(table)[4:]
    assert drop_headers(raw, ()) == raw
    for name in table:
        rest = {k: v for k, v in table.items() if k != name}
        assert drop_headers(raw, [name]) == encode.field_table(rest)[4:]


# --- methods -----------------------------------------------------------------------------------


# pamqp writes delivery tags as signed integers, and rejects other exchange names.
tags = st.integers(0, 2**63 - 1)
exchanges = st.from_regex(r"[a-zA-Z0-9-_.:]{0,127}", fullmatch=True)


@given(short_text, tags, st.booleans(), exchanges, short_text)
def test_the_codec_reads_basic_deliver_as_pamqp_writes_it(
    consumer: str, tag: int, redelivered: bool, exchange: str, key: str
) -> None:
    method = commands.Basic.Deliver(consumer, tag, redelivered, exchange, key)
    [(kind, _, payload)] = split_frames(frame.marshal(method, 1))
    assert kind == METHOD
    assert read_deliver(payload) == (consumer, tag, redelivered, exchange, key)


@given(tags, st.booleans(), st.booleans())
def test_the_codec_reads_confirms_as_pamqp_writes_them(
    tag: int, multiple: bool, requeue: bool
) -> None:
    [(_, _, ack)] = split_frames(frame.marshal(commands.Basic.Ack(tag, multiple), 1))
    [(_, _, nack)] = split_frames(frame.marshal(commands.Basic.Nack(tag, multiple, requeue), 1))
    assert read_confirm(ack) == read_confirm(nack) == (tag, multiple)


@given(publications, st.sampled_from([4_096, 8_192, FRAME_MAX]))
@settings(max_examples=50)
def test_body_frames_equal_those_of_pamqp(publication: Publication, frame_max: int) -> None:
    *_, parts = [split_frames(write_publication(9, publication, frame_max))[2:]]
    size = frame_max - 8
    expected = b"".join(
        frame.marshal(body.ContentBody(publication.body[at : at + size]), 9)
        for at in range(0, len(publication.body), size)
    )
    assert [p for _, _, p in parts] == [p for _, _, p in split_frames(expected)]
