"""Bytes and properties to messages, and back. Pure: no I/O, no clock."""

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, Literal

import orjson
from pydantic import ValidationError

from outplan.contract import schemas
from outplan.contract.amqp import TRACE_HEADERS, Delivery, Publication
from outplan.contract.fields import MAX_BODY_BYTES, MAX_PROBLEM_ERRORS
from outplan.contract.messages import COMMANDS, Command, Event, Outplan, Problem, ProblemError
from outplan.contract.topology import Topology

_ENCODINGS: Final = frozenset({None, "", "utf-8", "identity"})
_MAX_TRACE_BYTES: Final = 512  # what W3C Trace Context asks of everyone to carry


@dataclass(frozen=True, slots=True)
class Request:
    """A delivery that is a well-formed command."""

    delivery: Delivery
    command_id: str
    command: Command
    digest: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a delivery: all that events, replies and rejected copies are made of."""

    delivery: Delivery
    status: Literal["accepted", "unchanged", "rejected"]
    duplicate: bool = False
    event: Event | None = None
    version: int | None = None
    outplan: Outplan | None = None
    problem: Problem | None = None


def parse(delivery: Delivery) -> Request | Problem:
    """Judge one delivery alone: a command that keeps to its schema, or the problem with it."""
    command_id, name = delivery.command_id, delivery.command_name
    if command_id is None:
        detail = "set the AMQP property message_id: 1 to 255 bytes of UTF-8"
        return Problem.of("missing_message_id", detail, None)
    model = COMMANDS.get(name)
    if model is None:
        detail = f"{_quote(name)} is none of {', '.join(COMMANDS)}"
        return Problem.of("unknown_command", detail, command_id)
    body = _json_object(delivery)
    if isinstance(body, Problem):
        return body
    if errors := schemas.violations(name, body):
        return _invalid(command_id, errors)
    try:
        command = model.model_validate(body)
    except ValidationError as error:  # The schema let it through: the two disagree.
        return _invalid(command_id, _model_errors(error))
    return Request(delivery, command_id, command, digest(name, command))


def digest(name: str, command: Command) -> str:
    """SHA-256 of the command's name and normalised body: spelling does not count.

    A field given its default counts as left out, so that a default field which a later version
    adds does not turn an old command into another one.
    """
    body = command.model_dump(exclude_defaults=True)
    return sha256(
        name.encode() + b"\n" + orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    ).hexdigest()


def publications(outcome: Outcome, topology: Topology, now: str) -> list[Publication]:
    """What must be published, and confirmed, before the outcome's delivery is acknowledged."""
    found = []
    if outcome.event is not None:
        found.append(_event_publication(outcome.event, outcome.delivery, topology))
    if outcome.problem is not None:
        found.append(_rejected_copy(outcome.problem, outcome.delivery, topology, now))
    if outcome.delivery.properties.reply_to:
        found.append(_reply_publication(outcome))
    return found


def event_body(event: Event) -> bytes:
    """An event's bytes: the same for each repeat, from memory or from the store."""
    body: dict[str, Any] = {
        "id": event.id,
        "type": event.type,
        "publisher": event.publisher,
        "data_type": event.data_type,
        "version": event.version,
        "time": event.time,
    }
    if event.changed is not None:
        body["changed"] = event.changed
    body["data"] = event.data.model_dump()
    return orjson.dumps(body)


def problem_body(problem: Problem) -> bytes:
    """A problem as JSON, absent members left out."""
    return orjson.dumps(_problem(problem))


def reply_body(outcome: Outcome) -> bytes:
    """A reply as JSON, absent members left out."""
    body: dict[str, Any] = {
        "command_id": outcome.delivery.command_id,
        "status": outcome.status,
        "duplicate": outcome.duplicate,
    }
    if outcome.problem is not None:
        body["problem"] = _problem(outcome.problem)
    elif outcome.outplan is not None:
        body["version"] = outcome.version
        body["outplan"] = outcome.outplan.model_dump()
    return orjson.dumps(body)


def _json_object(delivery: Delivery) -> dict[str, Any] | Problem:
    command_id = delivery.command_id
    if len(delivery.body) > MAX_BODY_BYTES:
        detail = f"the body has {len(delivery.body)} bytes; the limit is {MAX_BODY_BYTES}"
        return Problem.of("too_large", detail, command_id)
    encoding = delivery.properties.content_encoding
    if encoding is not None and encoding.lower() not in _ENCODINGS:
        detail = f"content_encoding {_quote(encoding)} is not read; send plain UTF-8"
        return Problem.of("invalid_json", detail, command_id)
    try:
        body = orjson.loads(delivery.body)
    except orjson.JSONDecodeError as error:
        return Problem.of("invalid_json", str(error), command_id)
    if not isinstance(body, dict):
        return Problem.of("invalid_json", "the body is JSON, but no object", command_id)
    return body


def _invalid(command_id: str, errors: tuple[ProblemError, ...]) -> Problem:
    rules = "1 rule" if len(errors) == 1 else f"{len(errors)} rules"
    detail = f"{rules} broken; errors lists them with JSON Pointers"
    return Problem.of("invalid_command", detail, command_id, errors=errors)


def _model_errors(error: ValidationError) -> tuple[ProblemError, ...]:
    return tuple(
        ProblemError(pointer="".join(_escaped(part) for part in item["loc"]), detail=item["msg"])
        for item in error.errors(include_url=False, include_input=False)[:MAX_PROBLEM_ERRORS]
    )


def _escaped(part: int | str) -> str:
    return "/" + str(part).replace("~", "~0").replace("/", "~1")


def _event_publication(event: Event, delivery: Delivery, topology: Topology) -> Publication:
    outplan = event.data
    return Publication(
        exchange=topology.events.name,
        routing_key=f"{event.type}.{outplan.customer_id}.{outplan.id}",
        body=event_body(event),
        headers={
            "outplan_id": outplan.id,
            "customer_id": outplan.customer_id,
            "version": event.version,
            **_trace_context(delivery),
        },
        message_id=event.id,
        type=event.type,
        correlation_id=delivery.properties.correlation_id,
        timestamp=_seconds(event.time),
    )


def _reply_publication(outcome: Outcome) -> Publication:
    delivery = outcome.delivery
    return Publication(
        exchange="",
        routing_key=delivery.properties.reply_to or "",
        body=reply_body(outcome),
        headers=_trace_context(delivery),
        type="outplan_reply",
        correlation_id=delivery.properties.correlation_id or delivery.command_id,
    )


def _rejected_copy(
    problem: Problem, delivery: Delivery, topology: Topology, now: str
) -> Publication:
    return Publication(
        exchange="",
        routing_key=topology.rejected.name,
        body=delivery.body,
        headers={
            "x-problem-code": problem.code,
            "x-problem": problem_body(problem).decode(),
            "x-rejected-at": now,
            "x-original-exchange": delivery.exchange,
            "x-original-routing-key": delivery.routing_key,
        },
        original=delivery,
    )


def _trace_context(delivery: Delivery) -> dict[str, str]:
    found = {name: delivery.properties.header(name) for name in TRACE_HEADERS}
    return {k: v for k, v in found.items() if isinstance(v, str) and _fits(v)}


def _fits(value: str) -> bool:
    return len(value.encode("utf-8", "surrogateescape")) <= _MAX_TRACE_BYTES


def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def _problem(problem: Problem) -> dict[str, Any]:
    body = problem.model_dump()
    return {k: v for k, v in body.items() if v is not None or k == "command_id"}


def _quote(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}…")
