"""Test the encoding of commands, message ids, times and trace headers."""

import json
import sys
import time
from importlib.util import module_from_spec
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from outplan.client import tracing
from outplan.client.errors import InvalidCommand, TooLarge, UnknownCommand
from outplan.client.ids import new_id
from outplan.client.models import Outplan
from outplan.client.requests import Request
from outplan.contract.messages import COMMANDS, Address, CommandName
from outplan.domain.decider import find_outplan_id
from outplan.testing.raw_command import RawCommand
from tests.support.samples import ID, create_body, outplan

WITHOUT_ID = {name: value for name, value in create_body().items() if name != "id"}


def test_new_ids_are_uuids_of_version_7_in_order() -> None:
    ids = [new_id() for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    parsed = UUID(ids[-1])
    assert (parsed.version, parsed.variant) == (7, "specified in RFC 4122")
    assert abs((parsed.int >> 80) / 1_000 - time.time()) < 60


def test_new_ids_stay_in_order_if_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_id()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert new_id() > before


@pytest.mark.parametrize("body", [create_body(id=ID.upper()), WITHOUT_ID])
def test_a_request_has_the_outplan_id_that_the_worker_derives(body: dict[str, Any]) -> None:
    request = Request.create(**body, message_id="c-1")
    command = COMMANDS["outplan_create"].model_validate(body)
    assert request.outplan_id == find_outplan_id(command, "c-1")


def test_models_and_uuids_are_encoded_as_json() -> None:
    id_ = uuid4()
    source = Address(type="tel", target="+15559876543")
    body = json.loads(Request.update(id_, source=source, name="\N{SNOWMAN}").encode())
    assert body == {"id": str(id_), "source": source.model_dump(), "name": "\N{SNOWMAN}"}


def test_encode_reports_every_validation_error() -> None:
    with pytest.raises(InvalidCommand) as invalid:
        Request.update(ID, name="", dial_timeout=30, message_id="c-1").encode()
    assert {e.pointer for e in invalid.value.errors} == {"/name", "/dial_timeout"}
    assert invalid.value.problem.command_id == "c-1"


def test_encode_raises_an_error_for_an_unknown_command() -> None:
    with pytest.raises(UnknownCommand, match="outplan_paint"):
        Request(cast(CommandName, "outplan_paint"), {}).encode()


@pytest.mark.parametrize("text", ["\ud800", "x" * 65_536])
def test_text_that_the_worker_rejects_is_invalid(text: str) -> None:
    with pytest.raises(InvalidCommand):
        Request.update(ID, detail=text).encode()


def test_a_body_over_the_limit_is_too_large() -> None:
    # The number of characters is valid, but each takes four bytes.
    with pytest.raises(TooLarge):
        Request.create(**create_body(detail="\N{PILE OF POO}" * 65_535)).encode()


def test_encode_without_validation_accepts_any_json() -> None:
    request = Request(cast(CommandName, "outplan_paint"), {"id": "7", "colour": "\ud800"})
    assert b"colour" in request.encode(validate=False)
    assert request.outplan_id == "7"


@pytest.mark.parametrize(
    ("request_", "key"),
    [
        (Request.create(**create_body(id=ID)), "outplan_create.9e"),
        (Request.update(ID.upper(), name="x"), "outplan_update.9e"),
        (Request.delete(UUID(ID)), "outplan_delete.9e"),
    ],
    ids=["create", "upper case", "UUID"],
)
def test_the_routing_key_has_the_slot_of_the_outplan(request_: Request, key: str) -> None:
    assert request_.routing_key == key


def test_a_create_without_id_has_the_slot_of_the_id_that_the_worker_derives() -> None:
    request = Request.create(**WITHOUT_ID, message_id="c-1")
    command = COMMANDS["outplan_create"].model_validate(WITHOUT_ID)
    assert request.routing_key == f"outplan_create.{find_outplan_id(command, 'c-1')[-2:]}"


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("outplan_create", {"id": "7"}),
        ("outplan_update", {}),
        ("outplan_update", {"id": f"{ID}\n"}),
        ("outplan_update", {"id": ID.replace("-", "")}),
        ("outplan_delete", {"id": 7}),
        ("outplan_paint", {"id": ID}),
        ("x" * 255, {"id": ID}),
    ],
)
def test_the_routing_key_of_an_invalid_command_is_its_name(name: str, body: dict[str, Any]) -> None:
    assert Request(cast(CommandName, name), body).routing_key == name


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"id": ID, "colour": "green"}, "outplan_update.9e"),
        ({"id": "7"}, "outplan_update"),
        (json.dumps({"id": ID}).encode(), "outplan_update"),
    ],
    ids=["mapping", "no UUID", "bytes"],
)
def test_a_raw_command_has_its_slot_if_the_body_is_a_mapping(body: Any, key: str) -> None:
    assert RawCommand.of("outplan_update", body, None, None).routing_key == key


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2022-04-28 01:50:23.414000", "2022-04-28T01:50:23.414000+00:00"),
        ("2022-04-28T01:50:23.414Z", "2022-04-28T01:50:23.414000+00:00"),
        ("2022-04-28T03:50:23.414000123+02:00", "2022-04-28T01:50:23.414000+00:00"),
        ("9999-01-01 00:00:00.000000", None),
        ("9999-01-01T00:00:00Z", None),
        (None, None),
    ],
)
def test_a_model_reads_each_form_of_a_time(text: str | None, moment: str | None) -> None:
    document = {**outplan().model_dump(), "tm_update": text, "tm_delete": text}
    read = Outplan.model_validate_json(json.dumps(document))
    assert (read.updated_at and read.updated_at.isoformat()) == moment
    assert read.deleted is (moment is not None)


@pytest.mark.parametrize("text", ["yesterday", 7, "", "9999-12-31T23:59:59-14:00"])
def test_an_invalid_time_raises_an_error(text: object) -> None:
    document = {**outplan().model_dump(), "tm_update": text}
    with pytest.raises(ValueError, match="tm_update"):
        Outplan.model_validate_json(json.dumps(document))


def test_a_model_ignores_unknown_fields() -> None:
    document = {**outplan().model_dump(), "colour": "green"}
    assert Outplan.model_validate_json(json.dumps(document)).model_dump() == outplan().model_dump()


def test_trace_headers_carry_the_current_span() -> None:
    assert tracing.trace_headers() == {}
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("call") as span:
        trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        assert tracing.trace_headers()["traceparent"].split("-")[1] == trace_id


def test_trace_headers_are_empty_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace.propagation", None)
    spec = tracing.__spec__
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.trace_headers() == {}
