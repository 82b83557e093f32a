"""Read messages of the queue of rejected commands. Pure.

The worker publishes a rejected command there, with the reason in headers. The broker dead-letters
commands there, with headers of its own. Anybody else may publish there too, so no header is
trusted to exist or to have the expected form.
"""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

import orjson

from outplan.client.requests import Request
from outplan.contract.amqp import Delivery, escape_surrogates
from outplan.contract.fields import MAX_BODY_BYTES
from outplan.contract.messages import COMMANDS
from outplan.contract.slots import split_routing_key
from outplan.rabbitmq.frames import WireProperties

Json = dict[str, Any]

_LONGEST_ID: Final = 255
_LONGEST_DETAIL: Final = 300
# Of headers: the JSON library takes about 250 levels.
_MAX_DEPTH: Final = 100
_PROPERTIES: Final = (
    "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "timestamp", "user_id", "app_id", "cluster_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Summary:
    """Describe one rejected message briefly.

    ``code`` is the problem's code, or the broker's reason, or None if the message has neither.
    """

    rejected_at: datetime | None
    code: str | None
    rejected_by: Literal["worker", "broker"] | None
    command: str
    message_id: str | None
    customer_id: str | None
    outplan_id: str | None
    detail: str
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Select rejected messages: those that meet every condition given.

    A message without a time of rejection meets no condition on its age.
    """

    codes: frozenset[str] = frozenset()
    message_ids: frozenset[str] = frozenset()
    customer_id: str | None = None
    outplan_id: str | None = None
    older_than: timedelta | None = None
    newer_than: timedelta | None = None

    def matches(self, summary: Summary, now: datetime) -> bool:
        """Tell whether a message meets the conditions at the time ``now``."""
        return (
            (not self.codes or summary.code in self.codes)
            and (not self.message_ids or summary.message_id in self.message_ids)
            and (not self.customer_id or summary.customer_id == self.customer_id.lower())
            and (not self.outplan_id or summary.outplan_id == self.outplan_id.lower())
            and self._matches_age(summary.rejected_at, now)
        )

    def _matches_age(self, at: datetime | None, now: datetime) -> bool:
        if at is None:
            return self.older_than is None and self.newer_than is None
        older = self.older_than is None or now - at >= self.older_than
        return older and (self.newer_than is None or now - at <= self.newer_than)


def summarize(message: Delivery) -> Summary:
    """Summarize a message; fields that it lacks, or has in another form, are None."""
    code, problem = _text(message, "x-problem-code"), _problem(message)
    reason, death = _text(message, "x-first-death-reason"), _death(message)
    body = _object(message.body) if len(message.body) <= MAX_BODY_BYTES else {}
    customer = body.get("customer_id")
    return Summary(
        rejected_at=_rejection_time(message, death),
        code=code or reason,
        rejected_by="worker" if code else "broker" if reason else None,
        command=escape_surrogates(find_command_name(message)),
        message_id=escape_surrogates(message.properties.message_id)
        if message.properties.message_id
        else None,
        customer_id=_id(customer),
        outplan_id=_outplan_id(message, body),
        detail=(_problem_detail(problem) if code else _broker_reason(reason, death))[
            :_LONGEST_DETAIL
        ],
        body_bytes=len(message.body),
    )


def build_record(message: Delivery) -> Json:
    """Convert a message to JSON values: non-UTF-8 text escaped, bytes in base64."""
    assert isinstance(message.properties, WireProperties)
    values = {name: getattr(message.properties, name) for name in _PROPERTIES}
    return {
        **asdict(summarize(message)),
        "problem": _problem(message) or None,
        "properties": {k: _to_json(v) for k, v in values.items() if v is not None},
        "headers": _to_json(message.properties.headers),
        **_body(message.body),
    }


def find_command_name(message: Delivery) -> str:
    """Return the command's name: its type, or else the routing key that it came with."""
    return message.properties.message_type or split_routing_key(find_route(message)[1])[0]


def find_route(message: Delivery) -> tuple[str, str]:
    """Return the exchange and the routing key that the command came with; empty if unknown.

    Bytes that are not UTF-8 are kept as surrogates.
    """
    names = [
        message.properties.header(f"x-original-{part}") for part in ("exchange", "routing-key")
    ]
    if names[1] is None:
        death = _death(message)
        keys = death.get("routing-keys")
        names = [death.get("exchange"), keys[0] if isinstance(keys, list) and keys else None]
    exchange, key = (_decode(name, "surrogateescape") or "" for name in names)
    return exchange, key


def _text(message: Delivery, header: str) -> str | None:
    return _decode(message.properties.header(header))


def _decode(value: Any, errors: str = "backslashreplace") -> str | None:
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", errors)
    return value if isinstance(value, str) else None


def _object(text: str | bytes) -> Json:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _problem(message: Delivery) -> Json:
    return _object(_text(message, "x-problem") or "")


def _death(message: Delivery) -> Mapping[str, Any]:
    """Return the latest entry of x-death, which the broker writes when it dead-letters."""
    deaths = message.properties.header("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    return latest if isinstance(latest, dict) else {}


def _rejection_time(message: Delivery, death: Mapping[str, Any]) -> datetime | None:
    at: Any = death.get("time")
    if (text := _text(message, "x-rejected-at")) is not None:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            return None
    if not isinstance(at, datetime):
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _outplan_id(message: Delivery, body: Json) -> str | None:
    name, message_id = (
        message.properties.message_type or find_command_name(message),
        message.command_id,
    )
    if body and message_id and name in COMMANDS:
        return _id(Request(name, body, message_id).outplan_id)  # type: ignore[arg-type]
    return _id(body.get("id")) or _id(message.properties.header("outplan_id"))


def _id(value: Any) -> str | None:
    return value[:_LONGEST_ID].lower() if isinstance(value, str) and value else None


def _problem_detail(problem: Json) -> str:
    """Return every validation error, or else the problem's detail."""
    errors = problem.get("errors")
    listed = [e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []
    if listed:
        return "; ".join(f"{e.get('pointer') or '/'}: {e.get('detail')}" for e in listed)
    return str(problem.get("detail") or "")


def _broker_reason(reason: str | None, death: Mapping[str, Any]) -> str:
    if reason is None:
        return "neither a worker nor the broker says why this message is here"
    queue = _decode(death.get("queue")) or "a queue"
    return f"the broker dead-lettered it from {queue}: {reason}"


def _body(body: bytes) -> Json:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _to_json(value: Any, depth: int = 0) -> Any:
    if isinstance(value, dict | list) and depth == _MAX_DEPTH:
        return "(nested too deeply)"
    if isinstance(value, dict):
        return {
            escape_surrogates(str(name)): _to_json(item, depth + 1) for name, item in value.items()
        }
    if isinstance(value, list):
        return [_to_json(item, depth + 1) for item in value]
    if isinstance(value, bytes | bytearray):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, str):
        return escape_surrogates(value)
    return str(value) if isinstance(value, Decimal) else value
