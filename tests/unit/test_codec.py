"""Bytes and properties to messages, and back, with senders that mean no good."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service import contract
from service.codec import (
    Delivery,
    Outcome,
    Publication,
    Request,
    digest,
    event_body,
    parse,
    problem_body,
    publications,
    reply_body,
)
from service.decider import decide
from service.messages import (
    MAX_BODY_BYTES,
    MAX_PROBLEM_ERRORS,
    NIL_UUID,
    PROBLEM_CODES,
    Event,
    Problem,
    Reply,
)
from service.topology import topology
from tests.unit.samples import (
    BEFORE,
    CUSTOMER,
    ID,
    LATER,
    NOW,
    SOURCE,
    create,
    create_body,
    delete,
    delivery,
    request,
    state,
    update,
)

TOPOLOGY = topology()
NAMES = ["outplan_create", "outplan_update", "outplan_delete"]


def problem(found: Request | Problem) -> Problem:
    assert isinstance(found, Problem), found
    return found


def code(body: object, name: str = "outplan_create", **properties: Any) -> str:
    found = parse(delivery(body, name, **properties))
    return "" if isinstance(found, Request) else found.code


def create_event() -> Event:
    event = decide(None, create(), "command-1", NOW)
    assert isinstance(event, Event)
    return event


def update_event() -> Event:
    event = decide(state(), update(name="é", try_interval=0), "command-2", LATER)
    assert isinstance(event, Event)
    return event


def accepted(event: Event, **properties: Any) -> Outcome:
    return Outcome(
        delivery({}, **properties), "accepted",
        event=event, version=event.version, outplan=event.data,
    )  # fmt: skip


def rejected(found: Problem, **properties: Any) -> Outcome:
    return Outcome(delivery({}, **properties), "rejected", problem=found)


# --- the order of judgement --------------------------------------------------------------------

WRONG_FROM_HERE_ON: list[tuple[str, dict[str, Any]]] = [
    ("missing_message_id", {"message_id": None}),
    ("unknown_command", {"name": "outplan_erase"}),
    ("too_large", {"body": b"{" + b" " * MAX_BODY_BYTES}),
    ("invalid_json", {"content_encoding": "gzip"}),
    ("invalid_json", {"body": b"{"}),
    ("invalid_command", {"body": b"{}"}),
]


@pytest.mark.parametrize("first", range(len(WRONG_FROM_HERE_ON)))
def test_the_first_thing_wrong_is_what_a_command_is_rejected_for(first: int) -> None:
    wrong: dict[str, Any] = {"body": b"{}"}
    for _, change in reversed(WRONG_FROM_HERE_ON[first:]):
        wrong |= change
    assert problem(parse(delivery(**wrong))).code == WRONG_FROM_HERE_ON[first][0]


@pytest.mark.parametrize("name", NAMES)
def test_a_command_that_keeps_to_its_schema_is_read(name: str) -> None:
    body = {
        "outplan_create": create_body(),
        "outplan_update": {"id": ID, "name": "x"},
        "outplan_delete": {"id": ID},
    }[name]
    sent = delivery(body, name)
    found = parse(sent)
    assert isinstance(found, Request)
    assert (found.delivery, found.command_id) == (sent, "command-1")
    assert found.digest == digest(name, found.command)


def test_the_property_type_decides_before_the_routing_key() -> None:
    body = {"id": ID}
    assert code(body, "whatever.key", message_type="outplan_delete") == ""
    assert code(body, "outplan_delete", message_type="outplan_create") == "invalid_command"
    assert code(body, "outplan_delete", message_type="") == ""


@pytest.mark.parametrize("id_", [None, "", "\udcff", "good\udc80"])
def test_a_message_id_that_is_no_text_is_none(id_: str | None) -> None:
    found = problem(parse(delivery(create_body(), message_id=id_)))
    assert (found.code, found.status, found.command_id) == ("missing_message_id", 400, None)


@pytest.mark.parametrize("id_", ["\0", " ", "é" * 127, "x" * 255, "🦫", "\ue000"])
def test_any_text_does_for_a_message_id(id_: str) -> None:
    assert code(create_body(), message_id=id_) == ""


@pytest.mark.parametrize("encoding", [None, "", "utf-8", "identity", "UTF-8"])
def test_plain_utf_8_is_read(encoding: str | None) -> None:
    assert code(create_body(), content_encoding=encoding) == ""


@pytest.mark.parametrize("encoding", ["gzip", "utf-16", "utf8 ", "\udcff", "x" * 255])
def test_another_encoding_is_said_not_to_be_read(encoding: str) -> None:
    found = problem(parse(delivery(create_body(), content_encoding=encoding)))
    assert found.code == "invalid_json"
    assert "content_encoding" in found.detail
    json.loads(problem_body(found))


# --- hostile bodies ----------------------------------------------------------------------------


def nested(levels: int, left: bytes = b"[", right: bytes = b"]") -> bytes:
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
        nested(10_000),
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        nested(100_000, b"[", b""),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_json_object_in_utf_8_is_invalid_json(body: bytes) -> None:
    found = problem(parse(delivery(body)))
    assert (found.code, found.status, found.errors) == ("invalid_json", 400, None)
    assert contract.violations("problem", json.loads(problem_body(found))) == ()


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
def test_a_create_that_breaks_its_schema_lists_what_is_broken(field: dict[str, Any]) -> None:
    found = problem(parse(delivery(create_body(**field))))
    assert found.code == "invalid_command"
    assert found.errors is not None
    [name] = field
    assert all(error.pointer.startswith(f"/{name}") for error in found.errors)
    assert contract.violations("problem", json.loads(problem_body(found))) == ()


@pytest.mark.parametrize("levels", [10, 200, 1_000])
def test_an_object_nested_past_any_sane_depth_is_refused(levels: int) -> None:
    body = b'{"name":' + nested(levels) + b"}"
    assert code(body) in ("invalid_command", "invalid_json")


def padded(size: int) -> bytes:
    body = json.dumps(create_body()).encode()
    return body + b" " * (size - len(body))


def test_exactly_the_limit_is_read_and_one_byte_more_is_not() -> None:
    assert code(padded(MAX_BODY_BYTES)) == ""
    found = problem(parse(delivery(padded(MAX_BODY_BYTES + 1))))
    assert (found.code, found.status) == ("too_large", 413)
    assert str(MAX_BODY_BYTES) in found.detail


def test_no_more_than_32_errors_are_listed_and_they_fit_into_a_header() -> None:
    body = {f"{n:03}" + "\x01" * 97: "x" for n in range(300)}
    found = problem(parse(delivery(body)))
    assert found.errors is not None
    assert len(found.errors) == MAX_PROBLEM_ERRORS
    assert len(problem_body(found)) < 100_000


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
def test_whatever_comes_there_is_one_judgement_that_can_be_replied_and_copied(
    body: bytes, name: str, message_id: str, encoding: str
) -> None:
    sent = delivery(body, name, message_id=message_id, content_encoding=encoding, reply_to="me")
    found = parse(sent)
    if isinstance(found, Problem):
        outcome = Outcome(sent, "rejected", problem=found)
        copy, reply = publications(outcome, TOPOLOGY, NOW)
        assert contract.violations("problem", json.loads(copy.headers["x-problem"])) == ()
        assert contract.violations("reply", json.loads(reply.body)) == ()
        assert copy.body is body


@given(json_values, st.sampled_from(NAMES))
@settings(deadline=None)
def test_what_orjson_parses_is_never_too_much_for_the_judge(value: Any, name: str) -> None:
    assert code(json.dumps(value).encode(), name) in ("", "invalid_json", "invalid_command")


@pytest.mark.parametrize(
    "name", ["", "x" * 300, "\udcff", "outplan.commands", "'\n\"", "Outplan_create"]
)
def test_an_unknown_command_is_quoted_so_that_it_can_be_written_as_json(name: str) -> None:
    found = problem(parse(delivery({}, name)))
    assert found.code == "unknown_command"
    assert len(found.detail) < 600
    json.loads(problem_body(found))
    assert "outplan_create, outplan_update, outplan_delete" in found.detail


# --- the digest --------------------------------------------------------------------------------


def digest_of(body: object, name: str = "outplan_create") -> str:
    return request(body, name).digest


def test_key_order_and_spacing_do_not_count() -> None:
    body = create_body(detail="d", dial_timeout=1_000)
    backwards = dict(reversed(body.items()))
    assert digest_of(json.dumps(body, indent=4).encode()) == digest_of(body)
    assert digest_of(backwards) == digest_of(body)
    assert digest_of(create_body(source=dict(reversed(SOURCE.items())))) == digest_of(create_body())


def test_an_integer_written_with_a_point_does_not_count() -> None:
    spelt = json.dumps(create_body(dial_timeout=45_000)).replace("45000", "45000.0").encode()
    also = json.dumps(create_body(dial_timeout=45_000)).replace("45000", "4.5e4").encode()
    assert digest_of(spelt) == digest_of(also) == digest_of(create_body(dial_timeout=45_000))
    assert digest_of(create_body(max_try_count_0=-0.0)) == digest_of(create_body())


def test_upper_case_in_a_uuid_does_not_count() -> None:
    shouted = create_body(id=ID.upper(), customer_id=CUSTOMER.upper())
    assert digest_of(shouted) == digest_of(create_body())
    by_id = {"type": "agent", "target": ID}
    assert digest_of(create_body(source={**by_id, "target": ID.upper()})) == digest_of(
        create_body(source=by_id)
    )


def test_upper_case_in_any_other_target_counts() -> None:
    lower = create_body(source={"type": "email", "target": "a@b.example"})
    upper = create_body(source={"type": "email", "target": "A@b.example"})
    assert digest_of(lower) != digest_of(upper)


def test_a_default_that_is_given_counts_as_left_out() -> None:
    spelt_out = create_body(
        detail="", dial_timeout=30_000, try_interval=60_000,
        **{f"max_try_count_{n}": 0 for n in range(5)},
        source={**SOURCE, "target_name": "", "name": "", "detail": ""},
    )  # fmt: skip
    assert digest_of(spelt_out) == digest_of(create_body())


def test_an_update_to_a_value_that_a_create_has_by_default_counts() -> None:
    one = {"id": ID, "name": "x"}
    bare = digest_of(one, "outplan_update")
    for field, value in {"detail": "", "dial_timeout": 30_000, "max_try_count_3": 0}.items():
        assert digest_of({**one, field: value}, "outplan_update") != bare


def test_the_name_counts() -> None:
    assert digest("outplan_update", delete()) != digest("outplan_delete", delete())


def test_everything_that_is_asked_for_counts() -> None:
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


# --- events ------------------------------------------------------------------------------------


def test_an_events_bytes_have_the_contracts_order() -> None:
    envelope = ["id", "type", "publisher", "data_type", "version", "time"]
    document = [
        "id", "customer_id", "name", "detail", "source", "dial_timeout", "try_interval",
        "max_try_count_0", "max_try_count_1", "max_try_count_2", "max_try_count_3",
        "max_try_count_4", "tm_create", "tm_update", "tm_delete",
    ]  # fmt: skip
    created, updated = (json.loads(event_body(e)) for e in (create_event(), update_event()))
    assert list(created) == [*envelope, "data"]
    assert list(updated) == [*envelope, "changed", "data"]
    assert list(updated["data"]) == document
    assert list(updated["data"]["source"]) == ["type", "target", "target_name", "name", "detail"]


def test_an_events_bytes_are_these() -> None:
    assert event_body(update_event()).decode() == (
        '{"id":"command-2","type":"outplan_updated","publisher":"outplan-service",'
        '"data_type":"application/json","version":2,"time":"2026-11-23 06:10:00.123457",'
        '"changed":["name","try_interval"],"data":{"id":"d5fb7357-7ddb-4f2d-87b5-8ccbfd6c039e",'
        '"customer_id":"5e4a0680-804e-11ec-8477-2fea5968d85b","name":"é","detail":"",'
        '"source":{"type":"tel","target":"+15559876543","target_name":"","name":"","detail":""},'
        '"dial_timeout":30000,"try_interval":0,"max_try_count_0":0,"max_try_count_1":0,'
        '"max_try_count_2":0,"max_try_count_3":0,"max_try_count_4":0,'
        '"tm_create":"2026-11-23 06:10:00.123456","tm_update":"2026-11-23 06:10:00.123457",'
        '"tm_delete":"9999-01-01 00:00:00.000000"}}'
    )


@pytest.mark.parametrize("event", [create_event(), update_event()], ids=["created", "updated"])
def test_an_event_read_back_has_the_same_bytes(event: Event) -> None:
    wire = event_body(event)
    assert event_body(Event.model_validate_json(wire)) == wire
    assert contract.violations(event.type, orjson.loads(wire)) == ()


def test_an_event_is_published_as_the_contract_says() -> None:
    event = update_event()
    [found] = publications(
        accepted(event, correlation_id="c-1", headers={"traceparent": "00-a-b-01", "x": 1}),
        TOPOLOGY, BEFORE,
    )  # fmt: skip
    assert found == Publication(
        exchange="outplan.events",
        routing_key=f"outplan_updated.{CUSTOMER}.{ID}",
        body=event_body(event),
        headers={
            "outplan_id": ID, "customer_id": CUSTOMER, "version": 2, "traceparent": "00-a-b-01",
        },
        message_id="command-2",
        type="outplan_updated",
        correlation_id="c-1",
        timestamp=1_795_414_200,
    )  # fmt: skip
    assert not found.mandatory


def test_a_duplicates_event_is_published_byte_for_byte() -> None:
    first = accepted(update_event())
    again = replace(first, duplicate=True, delivery=delivery({}, tag=9, redelivered=True))
    assert publications(again, TOPOLOGY, LATER) == publications(first, TOPOLOGY, NOW)


# --- replies -----------------------------------------------------------------------------------


def outcomes() -> list[Outcome]:
    found = Problem.of("version_conflict", "no", "command-1", current_version=3)
    nameless = Problem.of("missing_message_id", "no", None)
    return [
        accepted(create_event(), reply_to="me"),
        replace(accepted(update_event(), reply_to="me"), duplicate=True),
        Outcome(delivery({}, reply_to="me"), "unchanged", version=4, outplan=create_event().data),
        rejected(found, reply_to="me"),
        rejected(nameless, reply_to="me", message_id=None),
        rejected(nameless, reply_to="me", message_id="\udcff"),
    ]


@pytest.mark.parametrize("outcome", outcomes(), ids=lambda o: f"{o.status}-{o.duplicate}")
def test_a_reply_fits_its_schema_and_its_model(outcome: Outcome) -> None:
    reply = publications(outcome, TOPOLOGY, NOW)[-1]
    assert reply.body == reply_body(outcome)
    assert contract.violations("reply", json.loads(reply.body)) == ()
    assert Reply.model_validate_json(reply.body).status == outcome.status


def test_an_accepted_reply_has_the_contracts_members() -> None:
    body = json.loads(reply_body(accepted(update_event(), message_id="command-2")))
    assert list(body) == ["command_id", "status", "duplicate", "version", "outplan"]
    assert (body["command_id"], body["status"], body["duplicate"], body["version"]) == (
        "command-2", "accepted", False, 2,
    )  # fmt: skip
    assert body["outplan"] == json.loads(event_body(update_event()))["data"]


def test_a_rejected_reply_has_the_problem_and_no_outplan() -> None:
    found = Problem.of("not_found", "none", "command-1")
    body = json.loads(reply_body(rejected(found)))
    assert list(body) == ["command_id", "status", "duplicate", "problem"]
    assert body["problem"] == json.loads(problem_body(found))


def test_a_reply_goes_through_the_default_exchange_to_whoever_asked() -> None:
    reply = publications(accepted(create_event(), reply_to="me"), TOPOLOGY, NOW)[-1]
    assert (reply.exchange, reply.routing_key, reply.type) == ("", "me", "outplan_reply")
    assert reply.correlation_id == "command-1"
    assert not reply.mandatory


@pytest.mark.parametrize(
    ("sent", "echoed"), [("c-1", "c-1"), (None, "command-1"), ("", "command-1")]
)
def test_a_reply_echoes_the_correlation_id_or_else_the_message_id(
    sent: str | None, echoed: str
) -> None:
    reply = publications(
        accepted(create_event(), reply_to="me", correlation_id=sent), TOPOLOGY, NOW
    )[-1]
    assert reply.correlation_id == echoed


@pytest.mark.parametrize("reply_to", [None, ""])
def test_nobody_asked_and_nobody_is_told(reply_to: str | None) -> None:
    unchanged = Outcome(
        delivery({}, reply_to=reply_to), "unchanged", version=1, outplan=create_event().data
    )
    assert publications(unchanged, TOPOLOGY, NOW) == []


# --- problems and rejected copies --------------------------------------------------------------


@pytest.mark.parametrize("code_", PROBLEM_CODES)
def test_every_problem_fits_its_schema(code_: str) -> None:
    body = json.loads(problem_body(Problem.of(code_, "why", "command-1")))
    assert contract.violations("problem", body) == ()
    assert body["type"] == f"urn:outplan:problem:{code_.replace('_', '-')}"
    assert "errors" not in body
    assert "current_version" not in body


def test_a_problem_without_a_command_id_says_null() -> None:
    body = json.loads(problem_body(Problem.of("missing_message_id", "why", None)))
    assert body["command_id"] is None


def test_a_rejected_copy_has_the_contracts_headers() -> None:
    found = Problem.of("not_found", "ä", "command-1")
    outcome = rejected(found, headers={"traceparent": "00-a-b-01"})
    [copy] = publications(outcome, TOPOLOGY, NOW)
    assert (copy.exchange, copy.routing_key) == ("", "outplan.rejected")
    assert copy.body is outcome.delivery.body
    assert copy.original is outcome.delivery
    assert copy.mandatory
    assert copy.headers == {
        "x-problem-code": "not_found",
        "x-problem": problem_body(found).decode(),
        "x-rejected-at": NOW,
        "x-original-exchange": "outplan.commands",
        "x-original-routing-key": "outplan_create",
    }


# --- trace context -----------------------------------------------------------------------------


def traced(headers: dict[str, Any]) -> list[dict[str, Any]]:
    found = publications(accepted(create_event(), reply_to="me", headers=headers), TOPOLOGY, NOW)
    return [
        {k: v for k, v in p.headers.items() if k not in ("outplan_id", "customer_id", "version")}
        for p in found
    ]


def test_the_trace_context_goes_on_in_event_and_reply() -> None:
    context = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
               "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"}  # fmt: skip
    assert traced({**context, "outplan_id": "spoofed", "other": "x"}) == [context, context]


@pytest.mark.parametrize("value", [None, 1, b"00", ["00"], {"a": "b"}, "x" * 513])
def test_what_is_no_trace_context_is_left_behind(value: Any) -> None:
    assert traced({"traceparent": value, "tracestate": "a=b"}) == [{"tracestate": "a=b"}] * 2


def test_a_trace_state_of_512_characters_is_carried() -> None:
    assert traced({"tracestate": "x" * 512}) == [{"tracestate": "x" * 512}] * 2


# --- what the broker adds ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redelivered", "headers", "count"),
    [
        (False, {}, 0),
        (True, {}, 0),
        (True, {"x-delivery-count": 3}, 3),
        (False, {"x-delivery-count": 99}, 0),
        (True, {"x-delivery-count": "3"}, 0),
        (True, {"x-delivery-count": None}, 0),
    ],
)
def test_earlier_deliveries_are_counted_by_the_broker_and_not_by_the_sender(
    redelivered: bool, headers: dict[str, Any], count: int
) -> None:
    found: Delivery = delivery({}, redelivered=redelivered, headers=headers)
    assert found.delivery_count == count
