"""Test how an import is split into lines and parsed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outplan.cli.lines import MAX_LINE_BYTES, Line, LineSplitter
from outplan.cli.parsing import DeletedOutplan, InvalidLine, parse_line
from outplan.client import Request
from outplan.contract.fields import NEVER

OUTPLAN = {
    "customer_id": "c",
    "name": "evenings",
    "source": {"type": "tel", "target": "+15559876543"},
}
ADDED = {"tm_create": "2026-01-02 03:04:05.000006", "tm_update": None, "tm_delete": NEVER}


def split_lines(*pieces: bytes) -> list[Line]:
    splitter = LineSplitter()
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    return [*lines, *splitter.close()]


def make_line(content: Any, number: int = 1) -> Line:
    text = json.dumps(content).encode()
    return Line(number, text, len(text), len(text))


def parse_request(content: Any) -> Request:
    request = parse_line(make_line(content))
    assert isinstance(request, Request)
    return request


@given(st.lists(st.binary(max_size=8)), st.data())
def test_lines_do_not_depend_on_the_chunks_that_they_come_in(
    lines: list[bytes], data: st.DataObject
) -> None:
    whole = b"\n".join(lines)
    at = data.draw(st.integers(0, len(whole)))
    assert split_lines(whole[:at], whole[at:]) == split_lines(whole)
    assert [line.number for line in split_lines(whole)] == list(
        range(1, len(split_lines(whole)) + 1)
    )
    assert not whole or split_lines(whole)[-1].end == len(whole)


def test_an_overlong_line_keeps_only_its_beginning() -> None:
    piece = b"x" * 1_000_000
    endless, after = split_lines(*[piece] * 5, b"\nafter")
    assert endless.is_overlong
    assert (endless.size, len(endless.content)) == (5_000_000, MAX_LINE_BYTES)
    assert (after.number, after.content, after.is_overlong) == (2, b"after", False)


@pytest.mark.parametrize(
    "content",
    [
        {**OUTPLAN, "id": "x"},
        {**OUTPLAN, "id": "x", **ADDED, "version": 7},
        {"_id": "x", **OUTPLAN, **ADDED, "version": 7},
        {**OUTPLAN, "id": "x", "tm_create": "2026-01-02T03:04:05Z", "tm_delete": None},
        {
            "type": "outplan_created",
            "id": "e",
            "version": 1,
            "data": {**OUTPLAN, "id": "x", **ADDED},
        },
    ],
)
def test_an_outplan_in_any_form_is_a_create(content: dict[str, Any]) -> None:
    request = parse_request(content)
    assert (request.name, request.body) == ("outplan_create", {**OUTPLAN, "id": "x"})


@pytest.mark.parametrize("tm_delete", ["2026-01-02 03:04:05.000006", "2026-01-02T03:04:05Z"])
def test_a_deleted_outplan_is_skipped(tm_delete: str) -> None:
    assert parse_line(make_line({**OUTPLAN, **ADDED, "tm_delete": tm_delete})) == DeletedOutplan()


def test_an_event_becomes_the_command_with_the_same_effect() -> None:
    data = {**OUTPLAN, "id": "x", **ADDED}
    updated = parse_request({"type": "outplan_updated", "changed": ["name"], "data": data})
    assert (updated.name, updated.body) == ("outplan_update", {"id": "x", "name": "evenings"})
    deletion = {**data, "tm_delete": "2026-01-02 03:04:05.000006"}
    deleted = parse_request({"type": "outplan_deleted", "data": deletion})
    assert (deleted.name, deleted.body) == ("outplan_delete", {"id": "x"})


def test_invalid_fields_are_kept_so_that_validation_rejects_them() -> None:
    content = {**OUTPLAN, "tm_create": "soon", "tm_delete": 7, "version": True}
    assert parse_request(content).body == content


def test_a_message_id_is_derived_from_content_line_number_and_label() -> None:
    ids = {
        request.message_id
        for number in (1, 2)
        for content in (OUTPLAN, {**OUTPLAN, "name": "x"})
        for label in ("", "again")
        for _ in range(2)
        if isinstance(request := parse_line(make_line(content, number), label), Request)
    }
    assert len(ids) == 8


@pytest.mark.parametrize("message_id", ["", "x" * 256, 5, None, {}])
def test_an_invalid_message_id_is_reported_as_missing(message_id: Any) -> None:
    line = {"command": "delete", "body": {"id": "x"}, "message_id": message_id}
    with pytest.raises(InvalidLine) as error:
        parse_request(line)
    assert error.value.problem.code == "missing_message_id"


@pytest.mark.parametrize("name", ["update", "outplan_update"])
def test_a_command_may_have_its_short_or_long_name(name: str) -> None:
    line = {"command": name, "body": {"id": "x"}, "message_id": "mine"}
    assert parse_request(line) == Request("outplan_update", {"id": "x"}, "mine")
