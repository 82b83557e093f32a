"""Parse deliveries into commands; turn outcomes into publications. Pure: no I/O, no clock."""

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, Literal

import orjson
from pydantic import ValidationError

from outplan.contract import schemas
from outplan.contract.amqp import TRACE_HEADERS, Delivery, Publication
from outplan.contract.fields import EARLIER_RULES, MAX_BODY_BYTES, MAX_PROBLEM_ERRORS
from outplan.contract.messages import COMMANDS, Command, Event, Outplan, Problem, ProblemError
from outplan.contract.slots import slot_of, split_routing_key
from outplan.contract.times import format_time
from outplan.contract.topology import Topology
from outplan.contract.trace_context import check_trace_context
from outplan.domain.decider import find_outplan_id

_ENCODINGS: Final = frozenset({None, "", "utf-8", "identity"})


@dataclass(frozen=True, slots=True)
class ParsedCommand:
    """A delivery whose command can be decided on."""

    delivery: Delivery
    command_id: str
    outplan_id: str
    command: Command
    digest: str
    objection: Problem | None = None
    """What to reject the command for unless it was accepted before: a rule that came later."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a delivery: the source of its event, its reply or its rejected copy."""

    delivery: Delivery
    status: Literal["accepted", "unchanged", "rejected"]
    duplicate: bool = False
    event: Event | None = None
    version: int | None = None
    outplan: Outplan | None = None
    problem: Problem | None = None


def reject(delivery: Delivery, code: str, detail: str, **extra: Any) -> Outcome:
    """Make the outcome of a rejected command; ``code`` is one of the contract's."""
    problem = Problem.of(code, detail, delivery.command_id, **extra)
    return Outcome(delivery, "rejected", problem=problem)


def parse(delivery: Delivery) -> ParsedCommand | Outcome:
    """Read one delivery: a command that keeps to its schema, or a rejection with every error."""
    command_id, name = delivery.command_id, delivery.command_name
    if command_id is None:
        detail = "set the AMQP property message_id: 1 to 255 bytes of UTF-8"
        return reject(delivery, "missing_message_id", detail)
    model = COMMANDS.get(name)
    if model is None:
        detail = f"{_quote(name)} is none of {', '.join(COMMANDS)}"
        return reject(delivery, "unknown_command", detail)
    body = _json_object(delivery)
    if isinstance(body, Outcome):
        return body
    errors = schemas.find_violations(name, body)
    try:
        # A command that an earlier version accepted keeps its outcome, whatever rules came since.
        command = model.model_validate(body, context=EARLIER_RULES if errors else None)
    except ValidationError as error:
        return _invalid(delivery, errors or _model_errors(error))
    outcome = _invalid(delivery, errors) if errors else _check_properties(delivery)
    id_ = find_outplan_id(command, command_id)
    digest = compute_digest(name, command)
    objection = outcome.problem if outcome is not None else None
    return ParsedCommand(delivery, command_id, id_, command, digest, objection)


def compute_digest(name: str, command: Command) -> str:
    """Return the SHA-256 of a command's name and normalised body, in hex.

    Key order, spacing and fields that have their default value do not count. So a field that a
    later version adds with a default does not change the digest of an old command.
    """
    body = command.model_dump(exclude_defaults=True)
    return sha256(
        name.encode() + b"\n" + orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    ).hexdigest()


def build_publications(outcome: Outcome, topology: Topology, now: datetime) -> list[Publication]:
    """List what the broker must confirm before the outcome's delivery is acked.

    ``now`` is the time of rejection.
    """
    delivery, trace = outcome.delivery, _trace_context(outcome.delivery)
    found = []
    if outcome.event is not None:
        found.append(_event_publication(outcome.event, delivery, topology, trace))
    if outcome.problem is not None:
        found.append(_rejected_copy(outcome.problem, delivery, topology, now))
    if delivery.reply_to:
        found.append(_reply_publication(outcome, trace))
    return found


def find_disorder(outcome: Outcome) -> str | None:
    """Tell why a command of a partitioned system did not come through its outplan's partition.

    ``bare_key``, ``wrong_slot``, or None. The id of a rejected command is not looked at.
    """
    _, slot = split_routing_key(outcome.delivery.routing_key)
    if slot is None:
        return "bare_key"
    if outcome.outplan is not None and slot != slot_of(outcome.outplan.id):
        return "wrong_slot"
    return None


def encode_event(event: Event) -> bytes:
    """Encode an event: a repeat has the same bytes, read from the store or not."""
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


def encode_problem(problem: Problem) -> bytes:
    """Encode a problem, absent members left out."""
    return orjson.dumps(_problem(problem))


def encode_reply(outcome: Outcome) -> bytes:
    """Encode a reply, absent members left out."""
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


def _json_object(delivery: Delivery) -> dict[str, Any] | Outcome:
    if len(delivery.body) > MAX_BODY_BYTES:
        detail = f"the body has {len(delivery.body)} bytes; the limit is {MAX_BODY_BYTES}"
        return reject(delivery, "too_large", detail)
    encoding = delivery.properties.content_encoding
    if encoding is not None and encoding.lower() not in _ENCODINGS:
        detail = f"content_encoding {_quote(encoding)} is not read; send plain UTF-8"
        return reject(delivery, "invalid_json", detail)
    try:
        body = orjson.loads(delivery.body)
    except orjson.JSONDecodeError as error:
        return reject(delivery, "invalid_json", str(error))
    if not isinstance(body, dict):
        return reject(delivery, "invalid_json", "the body is JSON, but no object")
    return body


def _check_properties(delivery: Delivery) -> Outcome | None:
    """Reject a command for properties that go into events and replies, but are not readable."""
    sent = delivery.properties
    flawed = [
        name
        for name, read, as_sent in (
            ("correlation_id", delivery.correlation_id, sent.correlation_id),
            ("reply_to", delivery.reply_to, sent.reply_to),
        )
        if read != as_sent
    ]
    if not flawed:
        return None
    verb = "is" if len(flawed) == 1 else "are"
    return reject(delivery, "invalid_properties", f"{' and '.join(flawed)} {verb} not UTF-8")


def _invalid(delivery: Delivery, errors: tuple[ProblemError, ...]) -> Outcome:
    rules = "1 rule" if len(errors) == 1 else f"{len(errors)} rules"
    detail = f"{rules} broken; errors lists them with JSON Pointers"
    return reject(delivery, "invalid_command", detail, errors=errors)


def _model_errors(error: ValidationError) -> tuple[ProblemError, ...]:
    return tuple(
        ProblemError(pointer="".join(_escape(part) for part in item["loc"]), detail=item["msg"])
        for item in error.errors(include_url=False, include_input=False)[:MAX_PROBLEM_ERRORS]
    )


def _escape(part: int | str) -> str:
    return "/" + str(part).replace("~", "~0").replace("/", "~1")


def _event_publication(
    event: Event, delivery: Delivery, topology: Topology, trace: dict[str, str]
) -> Publication:
    outplan = event.data
    return Publication(
        exchange=topology.events.name,
        routing_key=f"{event.type}.{outplan.customer_id}.{outplan.id}",
        body=encode_event(event),
        headers={
            "outplan_id": outplan.id,
            "customer_id": outplan.customer_id,
            "version": event.version,
            **trace,
        },
        message_id=event.id,
        type=event.type,
        correlation_id=delivery.correlation_id,
        timestamp=_seconds(event.time),
        outplan_id=outplan.id,
    )


def _reply_publication(outcome: Outcome, trace: dict[str, str]) -> Publication:
    delivery = outcome.delivery
    return Publication(
        exchange="",
        routing_key=delivery.reply_to or "",
        body=encode_reply(outcome),
        headers=trace,
        type="outplan_reply",
        correlation_id=delivery.correlation_id or delivery.command_id,
        best_effort=True,
    )


def _rejected_copy(
    problem: Problem, delivery: Delivery, topology: Topology, now: datetime
) -> Publication:
    return Publication(
        exchange="",
        routing_key=topology.rejected.name,
        body=delivery.body,
        headers={
            "x-problem-code": problem.code,
            "x-problem": encode_problem(problem).decode(),
            "x-rejected-at": format_time(now),
            "x-original-exchange": delivery.exchange,
            "x-original-routing-key": delivery.routing_key,
        },
        original=delivery,
        mandatory=True,
    )


def _trace_context(delivery: Delivery) -> dict[str, str]:
    parent, state = (delivery.properties.header(name) for name in TRACE_HEADERS)
    return check_trace_context(parent, state)


def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def _problem(problem: Problem) -> dict[str, Any]:
    body = problem.model_dump()
    return {k: v for k, v in body.items() if v is not None or k == "command_id"}


def _quote(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}…")
