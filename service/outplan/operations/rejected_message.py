"""What a message in the queue of rejected commands tells about itself. Pure.

The worker puts copies there and says why in headers; the broker moves there what it gives up,
with headers of its own. Neither is taken on trust: anybody may have put it there.
"""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

import orjson

from outplan.client.requests import Request
from outplan.contract.amqp import Delivery
from outplan.contract.fields import MAX_BODY_BYTES
from outplan.contract.messages import COMMANDS
from outplan.rabbitmq.frames import WireProperties

Json = dict[str, Any]

_LONGEST_ID: Final = 255
_LONGEST_DETAIL: Final = 300
_PROPERTIES: Final = (
    "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "timestamp", "user_id", "app_id", "cluster_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Summary:
    """A copy in a line. ``code`` is a problem's, or the broker's reason; None: neither's."""

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
    """Which copies are meant: those that every condition given holds for.

    A copy that doesn't say when it was rejected is neither older nor newer than anything.
    """

    codes: frozenset[str] = frozenset()
    message_ids: frozenset[str] = frozenset()
    customer_id: str | None = None
    outplan_id: str | None = None
    older_than: timedelta | None = None
    newer_than: timedelta | None = None

    def matches(self, summary: Summary, now: datetime) -> bool:
        """Whether the copy is meant, at the moment ``now``."""
        return (
            (not self.codes or summary.code in self.codes)
            and (not self.message_ids or summary.message_id in self.message_ids)
            and (not self.customer_id or summary.customer_id == self.customer_id.lower())
            and (not self.outplan_id or summary.outplan_id == self.outplan_id.lower())
            and self._is_of_age(summary.rejected_at, now)
        )

    def _is_of_age(self, at: datetime | None, now: datetime) -> bool:
        if at is None:
            return self.older_than is None and self.newer_than is None
        older = self.older_than is None or now - at >= self.older_than
        return older and (self.newer_than is None or now - at <= self.newer_than)


def summary_of(copy: Delivery) -> Summary:
    """Sum a copy up; whatever it lacks, or has in another form, is None."""
    code, problem = _text(copy, "x-problem-code"), _problem(copy)
    reason, death = _text(copy, "x-first-death-reason"), _death(copy)
    body = _object(copy.body) if len(copy.body) <= MAX_BODY_BYTES else {}
    customer = body.get("customer_id")
    return Summary(
        rejected_at=_moment(copy, death),
        code=code or reason,
        rejected_by="worker" if code else "broker" if reason else None,
        command=shown(command_name(copy)),
        message_id=shown(copy.properties.message_id) if copy.properties.message_id else None,
        customer_id=_id(customer),
        outplan_id=_outplan_id(copy, body),
        detail=(_reasons(problem) if code else _given_up(reason, death))[:_LONGEST_DETAIL],
        body_bytes=len(copy.body),
    )


def record_of(copy: Delivery) -> Json:
    """All that a copy says, ready for JSON: text that is no UTF-8 escaped, bytes as base64."""
    assert isinstance(copy.properties, WireProperties)
    values = {name: getattr(copy.properties, name) for name in _PROPERTIES}
    return {
        **asdict(summary_of(copy)),
        "problem": _problem(copy) or None,
        "properties": {k: _plain(v) for k, v in values.items() if v is not None},
        "headers": _plain(copy.properties.headers),
        **_body(copy.body),
    }


def command_name(copy: Delivery) -> str:
    """The name that the command had: its type, or else the routing key that it came with."""
    if copy.properties.message_type:
        return copy.properties.message_type
    keys = _death(copy).get("routing-keys")
    dead_lettered_by = keys[0] if isinstance(keys, list) and keys else ""
    return _text(copy, "x-original-routing-key") or _as_text(dead_lettered_by) or ""


def shown(text: str) -> str:
    """Text whose bytes were no UTF-8, with those bytes written out."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _text(copy: Delivery, header: str) -> str | None:
    return _as_text(copy.properties.header(header))


def _as_text(value: Any) -> str | None:
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else None


def _object(text: str | bytes) -> Json:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _problem(copy: Delivery) -> Json:
    return _object(_text(copy, "x-problem") or "")


def _death(copy: Delivery) -> Mapping[str, Any]:
    """The broker's last note of having moved it."""
    deaths = copy.properties.header("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    return latest if isinstance(latest, dict) else {}


def _moment(copy: Delivery, death: Mapping[str, Any]) -> datetime | None:
    at: Any = death.get("time")
    if (text := _text(copy, "x-rejected-at")) is not None:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            return None
    if not isinstance(at, datetime):
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _outplan_id(copy: Delivery, body: Json) -> str | None:
    name, message_id = copy.properties.message_type or command_name(copy), copy.command_id
    if body and message_id and name in COMMANDS:
        return _id(Request(name, body, message_id).outplan_id)  # type: ignore[arg-type]
    return _id(body.get("id")) or _id(copy.properties.header("outplan_id"))


def _id(value: Any) -> str | None:
    return value[:_LONGEST_ID].lower() if isinstance(value, str) and value else None


def _reasons(problem: Json) -> str:
    """Each broken rule, where there are any; they say more than that there are some."""
    errors = problem.get("errors")
    rules = [e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []
    if rules:
        return "; ".join(f"{e.get('pointer') or '/'}: {e.get('detail')}" for e in rules)
    return str(problem.get("detail") or "")


def _given_up(reason: str | None, death: Mapping[str, Any]) -> str:
    if reason is None:
        return "neither a worker nor the broker has said why it is here"
    queue = _as_text(death.get("queue")) or "a queue"
    return f"the broker moved it here from {queue}: {reason}"


def _body(body: bytes) -> Json:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {shown(str(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes | bytearray):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, str):
        return shown(value)
    return str(value) if isinstance(value, Decimal) else value
