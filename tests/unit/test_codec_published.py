"""Publications of outcomes: events, replies, problems and rejected copies."""

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest

from outplan.contract import schemas
from outplan.contract.amqp import Delivery, Publication
from outplan.contract.messages import PROBLEM_CODES, Event, Problem, Reply
from outplan.contract.topology import build_topology
from outplan.domain.codec import (
    Outcome,
    build_publications,
    encode_event,
    encode_problem,
    encode_reply,
)
from outplan.domain.decider import decide
from outplan.rabbitmq.frames import read_content_header, write_table
from tests.support.samples import (
    CUSTOMER,
    ID,
    LATER,
    LATER_MOMENT,
    NOW,
    NOW_MOMENT,
    create,
    delivery,
    state,
    update,
)

TOPOLOGY = build_topology()
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def create_event() -> Event:
    event = decide(None, create(), "command-1", NOW)
    assert isinstance(event, Event)
    return event


def update_event() -> Event:
    event = decide(state(), update(name="é", try_interval=0), "command-2", LATER)
    assert isinstance(event, Event)
    return event


def accept(event: Event, **properties: Any) -> Outcome:
    return Outcome(
        delivery({}, **properties), "accepted",
        event=event, version=event.version, outplan=event.data,
    )  # fmt: skip


def reject(found: Problem, **properties: Any) -> Outcome:
    return Outcome(delivery({}, **properties), "rejected", problem=found)


# --- events ------------------------------------------------------------------------------------


def test_an_events_members_have_the_contracts_order() -> None:
    envelope = ["id", "type", "publisher", "data_type", "version", "time"]
    document = [
        "id", "customer_id", "name", "detail", "source", "dial_timeout", "try_interval",
        "max_try_count_0", "max_try_count_1", "max_try_count_2", "max_try_count_3",
        "max_try_count_4", "tm_create", "tm_update", "tm_delete",
    ]  # fmt: skip
    created, updated = (json.loads(encode_event(e)) for e in (create_event(), update_event()))
    assert list(created) == [*envelope, "data"]
    assert list(updated) == [*envelope, "changed", "data"]
    assert list(updated["data"]) == document
    assert list(updated["data"]["source"]) == ["type", "target", "target_name", "name", "detail"]


def test_an_event_has_these_bytes() -> None:
    assert encode_event(update_event()).decode() == (
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
def test_a_stored_event_has_the_same_bytes(event: Event) -> None:
    wire = encode_event(event)
    assert encode_event(Event.model_validate_json(wire)) == wire
    assert schemas.find_violations(event.type, orjson.loads(wire)) == ()


def test_an_event_has_the_contracts_properties_and_headers() -> None:
    event = update_event()
    [found] = build_publications(
        accept(event, correlation_id="c-1", headers={"traceparent": PARENT, "x": 1}),
        TOPOLOGY, NOW_MOMENT,
    )  # fmt: skip
    assert found == Publication(
        exchange="outplan.events",
        routing_key=f"outplan_updated.{CUSTOMER}.{ID}",
        body=encode_event(event),
        headers={
            "outplan_id": ID, "customer_id": CUSTOMER, "version": 2, "traceparent": PARENT,
        },
        message_id="command-2",
        type="outplan_updated",
        correlation_id="c-1",
        timestamp=1_795_414_200,
        outplan_id=ID,
    )  # fmt: skip
    assert not found.mandatory
    assert not found.best_effort


def test_a_duplicate_publishes_the_same_event_byte_for_byte() -> None:
    first = accept(update_event())
    again = replace(first, duplicate=True, delivery=delivery({}, tag=9, redelivered=True))
    assert build_publications(again, TOPOLOGY, LATER_MOMENT) == build_publications(
        first, TOPOLOGY, NOW_MOMENT
    )


# --- replies -----------------------------------------------------------------------------------


def outcomes() -> list[Outcome]:
    found = Problem.of("version_conflict", "no", "command-1", current_version=3)
    nameless = Problem.of("missing_message_id", "no", None)
    return [
        accept(create_event(), reply_to="me"),
        replace(accept(update_event(), reply_to="me"), duplicate=True),
        Outcome(delivery({}, reply_to="me"), "unchanged", version=4, outplan=create_event().data),
        reject(found, reply_to="me"),
        reject(nameless, reply_to="me", message_id=None),
        reject(nameless, reply_to="me", message_id="\udcff"),
    ]


@pytest.mark.parametrize("outcome", outcomes(), ids=lambda o: f"{o.status}-{o.duplicate}")
def test_a_reply_is_valid_by_schema_and_model(outcome: Outcome) -> None:
    reply = build_publications(outcome, TOPOLOGY, NOW_MOMENT)[-1]
    assert reply.body == encode_reply(outcome)
    assert schemas.find_violations("reply", json.loads(reply.body)) == ()
    assert Reply.model_validate_json(reply.body).status == outcome.status


def test_an_accepted_reply_has_the_contracts_members() -> None:
    body = json.loads(encode_reply(accept(update_event(), message_id="command-2")))
    assert list(body) == ["command_id", "status", "duplicate", "version", "outplan"]
    assert (body["command_id"], body["status"], body["duplicate"], body["version"]) == (
        "command-2", "accepted", False, 2,
    )  # fmt: skip
    assert body["outplan"] == json.loads(encode_event(update_event()))["data"]


def test_a_rejected_reply_has_the_problem_and_no_outplan() -> None:
    found = Problem.of("not_found", "none", "command-1")
    body = json.loads(encode_reply(reject(found)))
    assert list(body) == ["command_id", "status", "duplicate", "problem"]
    assert body["problem"] == json.loads(encode_problem(found))


def test_a_reply_goes_to_reply_to_through_the_default_exchange() -> None:
    reply = build_publications(accept(create_event(), reply_to="me"), TOPOLOGY, NOW_MOMENT)[-1]
    assert (reply.exchange, reply.routing_key, reply.type) == ("", "me", "outplan_reply")
    assert reply.correlation_id == "command-1"
    assert not reply.mandatory
    assert reply.best_effort, "nobody else is to wait for a reply queue that is full"


@pytest.mark.parametrize(
    ("sent", "echoed"), [("c-1", "c-1"), (None, "command-1"), ("", "command-1")]
)
def test_a_reply_echoes_the_correlation_id_or_else_the_message_id(
    sent: str | None, echoed: str
) -> None:
    reply = build_publications(
        accept(create_event(), reply_to="me", correlation_id=sent), TOPOLOGY, NOW_MOMENT
    )[-1]
    assert reply.correlation_id == echoed


@pytest.mark.parametrize("reply_to", [None, ""])
def test_without_reply_to_there_is_no_reply(reply_to: str | None) -> None:
    unchanged = Outcome(
        delivery({}, reply_to=reply_to), "unchanged", version=1, outplan=create_event().data
    )
    assert build_publications(unchanged, TOPOLOGY, NOW_MOMENT) == []


# --- problems and rejected copies --------------------------------------------------------------


@pytest.mark.parametrize("code_", PROBLEM_CODES)
def test_every_problem_is_valid_by_schema(code_: str) -> None:
    body = json.loads(encode_problem(Problem.of(code_, "why", "command-1")))
    assert schemas.find_violations("problem", body) == ()
    assert body["type"] == f"urn:outplan:problem:{code_.replace('_', '-')}"
    assert "errors" not in body
    assert "current_version" not in body


def test_a_problem_without_a_message_id_has_a_null_command_id() -> None:
    body = json.loads(encode_problem(Problem.of("missing_message_id", "why", None)))
    assert body["command_id"] is None


def test_a_rejected_copy_has_the_contracts_headers() -> None:
    found = Problem.of("not_found", "ä", "command-1")
    outcome = reject(found, headers={"traceparent": PARENT})
    [copy] = build_publications(outcome, TOPOLOGY, NOW_MOMENT)
    assert (copy.exchange, copy.routing_key) == ("", "outplan.rejected")
    assert copy.body is outcome.delivery.body
    assert copy.original is outcome.delivery
    assert copy.mandatory
    assert not copy.best_effort
    assert copy.headers == {
        "x-problem-code": "not_found",
        "x-problem": encode_problem(found).decode(),
        "x-rejected-at": NOW,
        "x-original-exchange": "outplan.commands",
        "x-original-routing-key": "outplan_create",
    }


# --- trace context -----------------------------------------------------------------------------


def publish_with(headers: dict[str, Any]) -> list[dict[str, Any]]:
    found = build_publications(
        accept(create_event(), reply_to="me", headers=headers), TOPOLOGY, NOW_MOMENT
    )
    return [
        {k: v for k, v in p.headers.items() if k not in ("outplan_id", "customer_id", "version")}
        for p in found
    ]


def test_event_and_reply_carry_the_trace_context() -> None:
    context = {"traceparent": PARENT, "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"}
    assert publish_with({**context, "outplan_id": "spoofed", "other": "x"}) == [context] * 2


@pytest.mark.parametrize("value", [None, 1, b"00", ["00"], {"a": "b"}, "x" * 513, PARENT.upper()])
def test_without_a_valid_traceparent_no_trace_context_is_carried(value: Any) -> None:
    assert publish_with({"traceparent": value, "tracestate": "a=b"}) == [{}] * 2


@pytest.mark.parametrize("value", [None, 1, ["a=1"], "x" * 512, "\u2028=1", "a=" + "x" * 511])
def test_an_invalid_tracestate_is_left_out(value: Any) -> None:
    sent = {"traceparent": PARENT, "tracestate": value}
    assert publish_with(sent) == [{"traceparent": PARENT}] * 2


def test_an_unreadable_header_does_not_hide_the_trace_context() -> None:
    state = b"\x0atracestateS\x00\x00\x00\x02\xff\xfe"
    table = state + write_table({"traceparent": PARENT})[4:]
    raw = len(table).to_bytes(4, "big") + table
    sent = read_content_header(b"\x00\x3c\x00\x00" + bytes(8) + b"\x20\x00" + raw)
    event = create_event()
    outcome = replace(accept(event), delivery=replace(delivery({}), properties=sent))
    [found] = build_publications(outcome, TOPOLOGY, NOW_MOMENT)
    assert found.headers["traceparent"] == PARENT
    assert "tracestate" not in found.headers


# --- properties that are not UTF-8 --------------------------------------------------------------


def test_a_correlation_id_that_is_not_utf8_is_left_out() -> None:
    outcome = accept(create_event(), reply_to="me", correlation_id="\udcff")
    event, reply = build_publications(outcome, TOPOLOGY, NOW_MOMENT)
    assert (event.correlation_id, reply.correlation_id) == (None, "command-1")


def test_no_reply_goes_to_a_queue_that_is_not_utf8() -> None:
    outcome = accept(create_event(), reply_to="\udcff", correlation_id="c")
    [event] = build_publications(outcome, TOPOLOGY, NOW_MOMENT)
    assert event.correlation_id == "c"


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
def test_the_delivery_count_is_the_brokers_and_not_the_senders(
    redelivered: bool, headers: dict[str, Any], count: int
) -> None:
    found: Delivery = delivery({}, redelivered=redelivered, headers=headers)
    assert found.delivery_count == count
