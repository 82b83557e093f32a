"""Parse deliveries, hostile ones too; digests of commands."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from outplan.contract import schemas
from outplan.contract.fields import MAX_BODY_BYTES, MAX_PROBLEM_ERRORS, NIL_UUID
from outplan.contract.messages import Command, Problem
from outplan.contract.topology import build_topology
from outplan.domain.codec import (
    Outcome,
    ParsedCommand,
    build_publications,
    compute_digest,
    encode_problem,
    parse,
)
from tests.support.samples import (
    CUSTOMER,
    ID,
    NOW,
    NOW_MOMENT,
    SOURCE,
    create_body,
    delete,
    delivery,
    request,
)

TOPOLOGY = build_topology()
NAMES = ["outplan_create", "outplan_update", "outplan_delete"]


def problem(found: ParsedCommand | Outcome) -> Problem:
    assert isinstance(found, Outcome), found
    assert found.problem is not None
    return found.problem


def parse_command(body: object) -> Command:
    found = parse(delivery(body))
    assert isinstance(found, ParsedCommand)
    return found.command


def code(body: object, name: str = "outplan_create", **properties: Any) -> str:
    found = parse(delivery(body, name, **properties))
    return "" if isinstance(found, ParsedCommand) else problem(found).code


def test_the_last_of_two_equal_keys_counts() -> None:
    body = json.dumps(create_body()).encode()[:-1] + b', "dial_timeout": 1, "dial_timeout": 20000}'
    found = parse(delivery(body))
    assert isinstance(found, ParsedCommand)
    assert found.command == parse_command(create_body(dial_timeout=20_000))


# --- the order of the checks -------------------------------------------------------------------

CHECKS_IN_ORDER: list[tuple[str, dict[str, Any]]] = [
    ("missing_message_id", {"message_id": None}),
    ("unknown_command", {"name": "outplan_erase"}),
    ("too_large", {"body": b"{" + b" " * MAX_BODY_BYTES}),
    ("invalid_json", {"content_encoding": "gzip"}),
    ("invalid_json", {"body": b"{"}),
    ("invalid_command", {"body": b"{}"}),
]


@pytest.mark.parametrize("first", range(len(CHECKS_IN_ORDER)))
def test_a_command_is_rejected_for_the_first_failing_check(first: int) -> None:
    wrong: dict[str, Any] = {"body": b"{}"}
    for _, change in reversed(CHECKS_IN_ORDER[first:]):
        wrong |= change
    assert problem(parse(delivery(**wrong))).code == CHECKS_IN_ORDER[first][0]


@pytest.mark.parametrize("name", NAMES)
def test_a_valid_command_is_parsed(name: str) -> None:
    body = {
        "outplan_create": create_body(),
        "outplan_update": {"id": ID, "name": "x"},
        "outplan_delete": {"id": ID},
    }[name]
    sent = delivery(body, name)
    found = parse(sent)
    assert isinstance(found, ParsedCommand)
    assert (found.delivery, found.command_id) == (sent, "command-1")
    assert found.digest == compute_digest(name, found.command)


def test_the_type_property_overrides_the_routing_key() -> None:
    body = {"id": ID}
    assert code(body, "whatever.key", message_type="outplan_delete") == ""
    assert code(body, "outplan_delete", message_type="outplan_create") == "invalid_command"
    assert code(body, "outplan_delete", message_type="") == ""


@pytest.mark.parametrize("id_", [None, "", "\udcff", "good\udc80"])
def test_a_message_id_must_be_nonempty_utf_8(id_: str | None) -> None:
    found = problem(parse(delivery(create_body(), message_id=id_)))
    assert (found.code, found.status, found.command_id) == ("missing_message_id", 400, None)


@pytest.mark.parametrize("id_", ["\0", " ", "é" * 127, "x" * 255, "🦫", "\ue000"])
def test_any_text_can_be_a_message_id(id_: str) -> None:
    assert code(create_body(), message_id=id_) == ""


@pytest.mark.parametrize("encoding", [None, "", "utf-8", "identity", "UTF-8"])
def test_plain_utf_8_encodings_are_accepted(encoding: str | None) -> None:
    assert code(create_body(), content_encoding=encoding) == ""


@pytest.mark.parametrize("encoding", ["gzip", "utf-16", "utf8 ", "\udcff", "x" * 255])
def test_other_encodings_are_rejected(encoding: str) -> None:
    found = problem(parse(delivery(create_body(), content_encoding=encoding)))
    assert found.code == "invalid_json"
    assert "content_encoding" in found.detail
    json.loads(encode_problem(found))


# --- hostile bodies ----------------------------------------------------------------------------


def nest(levels: int, left: bytes = b"[", right: bytes = b"]") -> bytes:
    return left * levels + right * levels


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\xef\xbb\xbf{}",
        b"\xff{}",
        '{"name": "é"}'.encode("latin-1"),
        "{}".encode("utf-16"),
        b"null",
        b"[]",
        b'"{}"',
        b"1",
        b"{} {}",
        b"{'id': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": "\\ud800\\u0041"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\n"}',
        b"{} // no comments",
        b'{"a": 1,}',
        b'{"a": 01}',
        nest(10_000),
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        nest(100_000, b"[", b""),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_not_a_json_object_in_utf_8_is_invalid_json(body: bytes) -> None:
    found = problem(parse(delivery(body)))
    assert (found.code, found.status, found.errors) == ("invalid_json", 400, None)
    assert schemas.find_violations("problem", json.loads(encode_problem(found))) == ()


@pytest.mark.parametrize(
    "field",
    [
        {"dial_timeout": True},
        {"dial_timeout": 2**63},
        {"dial_timeout": 2**64},
        {"dial_timeout": -(2**63) - 1},
        {"dial_timeout": 30000.5},
        {"dial_timeout": "30000"},
        {"dial_timeout": None},
        {"try_interval": 999},
        {"try_interval": 2_147_483_648},
        {"max_try_count_0": 1_001},
        {"max_try_count_5": 1},
        {"name": ""},
        {"name": "x" * 256},
        {"name": "a\nb"},
        {"name": "\x85"},
        {"detail": "x" * 65_536},
        {"detail": None},
        {"customer_id": NIL_UUID},
        {"id": None},
        {"id": ID + "\n"},
        {"source": []},
        {"source": {**SOURCE, "name": "\x1b"}},
        {"tm_create": NOW},
        {"expected_version": 1},
    ],
    ids=repr,
)
def test_an_invalid_create_lists_its_errors(field: dict[str, Any]) -> None:
    found = problem(parse(delivery(create_body(**field))))
    assert found.code == "invalid_command"
    assert found.errors is not None
    [name] = field
    assert all(error.pointer.startswith(f"/{name}") for error in found.errors)
    assert schemas.find_violations("problem", json.loads(encode_problem(found))) == ()


@pytest.mark.parametrize("levels", [10, 200, 1_000])
def test_a_deeply_nested_object_is_rejected(levels: int) -> None:
    body = b'{"name":' + nest(levels) + b"}"
    assert code(body) in ("invalid_command", "invalid_json")


def pad(size: int) -> bytes:
    body = json.dumps(create_body()).encode()
    return body + b" " * (size - len(body))


def test_a_body_of_the_limit_is_parsed_and_one_byte_more_is_rejected() -> None:
    assert code(pad(MAX_BODY_BYTES)) == ""
    found = problem(parse(delivery(pad(MAX_BODY_BYTES + 1))))
    assert (found.code, found.status) == ("too_large", 413)
    assert str(MAX_BODY_BYTES) in found.detail


def test_at_most_32_errors_are_listed_and_they_fit_into_a_header() -> None:
    body = {f"{n:03}" + "\x01" * 97: "x" for n in range(300)}
    found = problem(parse(delivery(body)))
    assert found.errors is not None
    assert len(found.errors) == MAX_PROBLEM_ERRORS
    assert len(encode_problem(found)) < 100_000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted({*create_body(), "detail", "dial_timeout", "expected_version", "max_try_count_0"})


def as_json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


wire_text = st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
bodies = st.binary(max_size=200) | st.dictionaries(
    st.sampled_from(FIELDS) | st.text(max_size=4), json_values, max_size=5
).map(lambda body: {**create_body(), **body}).map(as_json)


@given(bodies, st.sampled_from(NAMES) | wire_text, wire_text, wire_text)
@example(b"{}", "outplan_create", "\udcff", "\udcff")
@settings(deadline=None)
def test_any_body_has_an_outcome_that_can_be_replied_and_copied(
    body: bytes, name: str, message_id: str, encoding: str
) -> None:
    sent = delivery(body, name, message_id=message_id, content_encoding=encoding, reply_to="me")
    found = parse(sent)
    if isinstance(found, Problem):
        outcome = Outcome(sent, "rejected", problem=found)
        copy, reply = build_publications(outcome, TOPOLOGY, NOW_MOMENT)
        assert schemas.find_violations("problem", json.loads(copy.headers["x-problem"])) == ()
        assert schemas.find_violations("reply", json.loads(reply.body)) == ()
        assert copy.body is body


@given(json_values, st.sampled_from(NAMES))
@settings(deadline=None)
def test_validation_handles_everything_that_orjson_parses(value: Any, name: str) -> None:
    assert code(json.dumps(value).encode(), name) in ("", "invalid_json", "invalid_command")


@pytest.mark.parametrize(
    "name", ["", "x" * 300, "\udcff", "outplan.commands", "'\n\"", "Outplan_create"]
)
def test_the_name_of_an_unknown_command_can_be_written_as_json(name: str) -> None:
    found = problem(parse(delivery({}, name)))
    assert found.code == "unknown_command"
    assert len(found.detail) < 600
    json.loads(encode_problem(found))
    assert "outplan_create, outplan_update, outplan_delete" in found.detail


# --- the digest --------------------------------------------------------------------------------


def digest_of(body: object, name: str = "outplan_create") -> str:
    return request(body, name).digest


def test_a_digest_ignores_key_order_and_spacing() -> None:
    body = create_body(detail="d", dial_timeout=1_000)
    backwards = dict(reversed(body.items()))
    assert digest_of(json.dumps(body, indent=4).encode()) == digest_of(body)
    assert digest_of(backwards) == digest_of(body)
    assert digest_of(create_body(source=dict(reversed(SOURCE.items())))) == digest_of(create_body())


def test_a_digest_ignores_an_integers_decimal_point() -> None:
    spelt = json.dumps(create_body(dial_timeout=45_000)).replace("45000", "45000.0").encode()
    also = json.dumps(create_body(dial_timeout=45_000)).replace("45000", "4.5e4").encode()
    assert digest_of(spelt) == digest_of(also) == digest_of(create_body(dial_timeout=45_000))
    assert digest_of(create_body(max_try_count_0=-0.0)) == digest_of(create_body())


def test_a_digest_ignores_the_case_of_a_uuid() -> None:
    shouted = create_body(id=ID.upper(), customer_id=CUSTOMER.upper())
    assert digest_of(shouted) == digest_of(create_body())
    by_id = {"type": "agent", "target": ID}
    assert digest_of(create_body(source={**by_id, "target": ID.upper()})) == digest_of(
        create_body(source=by_id)
    )


def test_a_digest_heeds_the_case_of_other_targets() -> None:
    lower = create_body(source={"type": "email", "target": "a@b.example"})
    upper = create_body(source={"type": "email", "target": "A@b.example"})
    assert digest_of(lower) != digest_of(upper)


def test_a_digest_ignores_explicit_defaults() -> None:
    spelt_out = create_body(
        detail="", dial_timeout=30_000, try_interval=60_000,
        **{f"max_try_count_{n}": 0 for n in range(5)},
        source={**SOURCE, "target_name": "", "name": "", "detail": ""},
    )  # fmt: skip
    assert digest_of(spelt_out) == digest_of(create_body())


def test_a_digest_heeds_an_update_to_a_creates_default() -> None:
    one = {"id": ID, "name": "x"}
    bare = digest_of(one, "outplan_update")
    for field, value in {"detail": "", "dial_timeout": 30_000, "max_try_count_3": 0}.items():
        assert digest_of({**one, field: value}, "outplan_update") != bare


def test_a_digest_heeds_the_commands_name() -> None:
    assert compute_digest("outplan_update", delete()) != compute_digest("outplan_delete", delete())


def test_a_digest_heeds_every_field() -> None:
    guarded = [
        {"id": ID, "name": "x"},
        {"id": ID, "name": "y"},
        {"id": ID, "name": "x", "customer_id": CUSTOMER},
        {"id": ID, "name": "x", "expected_version": 1},
        {"id": ID, "name": "x", "expected_version": 2},
        {"id": ID, "detail": "x"},
    ]
    assert len({digest_of(body, "outplan_update") for body in guarded}) == len(guarded)


def test_a_digest_is_the_same_after_an_upgrade() -> None:
    """Recorded digests outlive the release that wrote them."""
    normal = (
        b'outplan_create\n{"customer_id":"%s","id":"%s","name":"first",'
        b'"source":{"target":"+15559876543","type":"tel"}}' % (CUSTOMER.encode(), ID.encode())
    )
    assert digest_of(create_body(dial_timeout=30_000.0)) == hashlib.sha256(normal).hexdigest()
