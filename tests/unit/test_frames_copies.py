"""Test that a rejected copy keeps every byte of the original's properties and adds the problem."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, header

from outplan.contract.amqp import Publication
from outplan.contract.messages import Problem
from outplan.contract.topology import build_topology
from outplan.domain.codec import Outcome, build_publications
from outplan.rabbitmq.frames import (
    U32,
    WireProperties,
    drop_headers,
    read_content_header,
    write_publication,
    write_table,
)
from tests.support.samples import NOW, NOW_MOMENT
from tests.support.wire import (
    FRAME_MAX,
    build_content_header,
    decode_with_pamqp,
    encode_content_header,
    encode_table,
    get_raw_property,
    make_delivery,
    make_rejected_copy,
    pamqp_tables,
    properties,
    raw_tables,
    split_frames,
    write_and_read_copy,
)

LATE: Final = datetime(2100, 1, 1, tzinfo=UTC)
ADDED: Final = {
    "x-problem-code": "not_found",
    "x-problem": '{"code":"not_found"}',
    "x-rejected-at": NOW,
    "x-original-exchange": "",
    "x-original-routing-key": "outplan_create",
}


@given(properties, raw_tables | st.none())
def test_a_copy_keeps_the_bytes_of_every_property_and_header(
    values: dict[str, Any], fields: list[tuple[bytes, bytes]] | None
) -> None:
    """Include header values that nothing can decode."""
    user = values.get("user_id", "guest")
    payload = encode_content_header(headers={}, **values)
    sent = read_content_header(payload)
    if fields is not None:
        at = sent.spans["table"][0] if "table" in sent.spans else find_table_position(sent)
        end = sent.spans["table"][1] if "table" in sent.spans else at
        table = encode_table(fields)
        raw = sent.raw[:at] + U32.pack(len(table)) + table + sent.raw[end:]
        sent = read_content_header(build_content_header(sent.flags | 0x2000, raw))
    found = write_and_read_copy(sent, ADDED, user=user)
    assert found.flags == sent.flags | 0x2000
    for name in sent.spans.keys() - {"table"}:
        assert get_raw_property(found, name) == get_raw_property(sent, name), name
    assert found.spans.keys() == sent.spans.keys() | {"table"}
    removed = {name.encode() for name in ADDED} | {b"x-delivery-count", b"x-acquired-count"}
    kept = [(name, value) for name, value in fields or () if name not in removed]
    assert found.table == encode_table(kept) + write_table(ADDED)[4:]


def find_table_position(sent: WireProperties) -> int:
    ends = [sent.spans[n][1] for n in ("content_type", "content_encoding") if n in sent.spans]
    return max(ends, default=0)


@given(properties, pamqp_tables)
def test_pamqp_reads_a_copy_like_the_original_with_headers_added(
    values: dict[str, Any], table: dict[str, Any]
) -> None:
    sent = read_content_header(encode_content_header(headers=table, **values))
    user = values.get("user_id", "guest")
    data = write_publication(3, make_rejected_copy(sent, ADDED), FRAME_MAX, user)
    (_, _), (_, head), (_, content) = decode_with_pamqp(data)
    original = header.ContentHeader()
    original.unmarshal(encode_content_header(headers=table, **values))
    for name in commands.Basic.Properties.attributes():
        if name != "headers":
            assert getattr(head.properties, name) == getattr(original.properties, name), name
    assert head.properties.headers == {**(original.properties.headers or {}), **ADDED}
    assert content.value == b"{}"


def test_a_copy_of_a_copy_has_only_the_last_problem() -> None:
    once = write_and_read_copy(
        read_content_header(encode_content_header(headers={"mine": 1})), ADDED
    )
    later = {**ADDED, "x-problem-code": "invalid_json", "x-problem": "{}"}
    twice = write_and_read_copy(once, later)
    assert twice.headers == {"mine": 1, **later}
    assert twice.table.count(b"x-problem-code") == 1


def test_a_copy_drops_the_delivery_counts() -> None:
    table = {"x-delivery-count": 7, "x-acquired-count": 8, "x-death": [{"count": 1}]}
    found = write_and_read_copy(read_content_header(encode_content_header(headers=table)))
    assert found.headers == {"x-death": [{"count": 1}]}


def test_a_copy_moves_another_users_id_into_a_header() -> None:
    sent = read_content_header(encode_content_header(user_id="alice", app_id="a", message_type="t"))
    found = write_and_read_copy(sent, ADDED, user="guest")
    assert (found.user_id, found.app_id, found.message_type) == (None, "a", "t")
    assert found.headers == {**ADDED, "x-original-user-id": "alice"}


def test_a_copy_keeps_the_user_id_of_its_own_connection() -> None:
    found = write_and_read_copy(
        read_content_header(encode_content_header(user_id="guest")), ADDED, user="guest"
    )
    assert (found.user_id, dict(found.headers)) == ("guest", ADDED)


def test_a_user_id_that_is_not_utf_8_keeps_its_bytes_in_the_header() -> None:
    sent = read_content_header(build_content_header(0x0018, b"\x02\xff\xfe\x01a"))
    found = write_and_read_copy(sent)
    assert found.app_id == "a"
    assert b"x-original-user-idS\x00\x00\x00\x02\xff\xfe" in found.table


def test_headers_too_large_for_a_frame_are_dropped_and_marked_so() -> None:
    sent = read_content_header(
        encode_content_header(headers={"big": "x" * 4_000}, message_id="m-1")
    )
    found = write_and_read_copy(sent, ADDED, frame_max=4_096)
    assert found.headers == {**ADDED, "x-headers-dropped": True}
    assert found.message_id == "m-1"


def test_headers_that_fill_a_frame_are_kept_and_one_byte_more_drops_them() -> None:
    empty = write_and_read_copy(
        read_content_header(encode_content_header(headers={"big": ""})), ADDED
    )
    room = 4_096 - 8 - 14 - len(empty.raw)
    for extra, kept in ((0, True), (1, False)):
        sent = read_content_header(encode_content_header(headers={"big": "x" * (room + extra)}))
        data = write_publication(1, make_rejected_copy(sent, ADDED), 4_096, "guest")
        _, (_, _, payload), _ = split_frames(data)
        assert len(payload) + 8 <= 4_096
        assert ("big" in read_content_header(payload).headers) is kept


def make_largest_copy(**sent: Any) -> Publication:
    """Build a copy with 32 errors of the greatest length, of a message that has headers."""
    errors = [{"pointer": f"/{n:03}" + "\x01" * 97, "detail": "\\" * 300} for n in range(32)]
    found = Problem.of("invalid_command", "32 rules broken", "c" * 255, errors=errors)
    original = read_content_header(encode_content_header(headers={"a": "b" * 5_000}, **sent))
    outcome = Outcome(make_delivery(original), "rejected", problem=found)
    return build_publications(outcome, build_topology(), NOW_MOMENT)[0]


def write_and_read_headers(copy: Publication, frame_max: int) -> dict[str, Any]:
    _, (_, _, payload), *_ = frames = split_frames(write_publication(1, copy, frame_max, "guest"))
    assert all(len(each) + 8 <= frame_max for _, _, each in frames)
    return read_content_header(payload).headers


@pytest.mark.parametrize(
    ("frame_max", "left_out"),
    [(FRAME_MAX, set()), (40_000, {"a"}), (8_192, {"a", "x-problem"}), (4_096, {"a", "x-problem"})],
)
def test_the_largest_problem_fits_into_a_frame(frame_max: int, left_out: set[str]) -> None:
    copy = make_largest_copy(message_id="c" * 255)
    found = write_and_read_headers(copy, frame_max)
    mark = {"x-headers-dropped"} if left_out else set()
    assert found.keys() == ({"a"} | copy.headers.keys()) - left_out | mark
    assert found["x-problem-code"] == "invalid_command"


def test_the_largest_properties_fit_into_the_smallest_frame() -> None:
    """Use 4,096 bytes, the smallest frame size that AMQP allows."""
    names = ("content_type", "content_encoding", "correlation_id", "reply_to", "expiration",
             "message_id", "message_type", "user_id", "app_id")  # fmt: skip
    copy = make_largest_copy(**dict.fromkeys(names, "x" * 255), timestamp=LATE, priority=9)
    where = {"x-original-exchange": "e" * 255, "x-original-routing-key": "k" * 255}
    found = write_and_read_headers(replace(copy, headers={**copy.headers, **where}), 4_096)
    added = {"x-original-user-id", "x-headers-dropped"}
    assert found.keys() == copy.headers.keys() - {"x-problem"} | added
    assert found | where == found


@pytest.mark.parametrize("name", ["CC", "BCC"])
def test_a_copy_renames_the_headers_that_rabbitmq_routes_by(name: str) -> None:
    """Keep RabbitMQ from routing the copy back to the command queue for ever."""
    table = {"before": 1, name: ["outplan.commands"], "cc": "mine", "after": 2}
    found = write_and_read_copy(
        read_content_header(encode_content_header(headers=table)), ADDED
    ).headers
    renamed = {f"x-original-{name.lower()}": ["outplan.commands"]}
    assert found == {"before": 1, **renamed, "cc": "mine", "after": 2, **ADDED}


def test_a_renamed_routing_header_keeps_its_bytes() -> None:
    fields = [(b"CC", b"S\x00\x00\x00\x02\xff\xfe"), (b"BCC", b"T" + b"\x7f" * 8)]
    renamed = [(b"x-original-cc", fields[0][1]), (b"x-original-bcc", fields[1][1])]
    assert drop_headers(encode_table(fields), ()) == encode_table(renamed)
