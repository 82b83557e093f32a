"""Build sample deliveries, commands and documents for the unit tests."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from outplan.contract.amqp import Delivery
from outplan.contract.fields import NEVER
from outplan.contract.messages import Create, Delete, Outplan, Update
from outplan.domain.codec import ParsedCommand, parse
from outplan.domain.decider import State

ID: Final = "d5fb7357-7ddb-4f2d-87b5-8ccbfd6c039e"
OTHER_ID: Final = "0192f0c1-5b1e-7c3a-9d52-3f6c1f0a7e11"
CUSTOMER: Final = "5e4a0680-804e-11ec-8477-2fea5968d85b"
OTHER_CUSTOMER: Final = "7c4d2f3a-1b8e-98b8-5e4a-804e11ec8477"
SOURCE: Final = {"type": "tel", "target": "+15559876543"}
BEFORE: Final = "2026-11-23 06:09:59.999999"
NOW: Final = "2026-11-23 06:10:00.123456"
NOW_MOMENT: Final = datetime.fromisoformat(NOW).replace(tzinfo=UTC)
LATER: Final = "2026-11-23 06:10:00.123457"
LATER_MOMENT: Final = datetime.fromisoformat(LATER).replace(tzinfo=UTC)


@dataclass
class Sent:
    """A message's properties as its sender set them."""

    raw: bytes = b""
    message_id: str | None = "command-1"
    message_type: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    timestamp: int | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)

    def header(self, name: str) -> Any:
        return self.headers.get(name)


def create_body(**fields: Any) -> dict[str, Any]:
    return {"id": ID, "customer_id": CUSTOMER, "name": "first", "source": SOURCE, **fields}


def delivery(
    body: object,
    name: str = "outplan_create",
    tag: int = 1,
    queue: str = "outplan.commands",
    redelivered: bool = False,
    **properties: Any,
) -> Delivery:
    """Build a delivery of ``body``: bytes as they are, anything else as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = Sent(**properties)
    return Delivery(tag, queue, "outplan.commands", name, redelivered, sent, raw)


def request(body: object, name: str = "outplan_create", **more: Any) -> ParsedCommand:
    parsed = parse(delivery(body, name, **more))
    assert isinstance(parsed, ParsedCommand), parsed
    return parsed


def create(**fields: Any) -> Create:
    return Create.model_validate(create_body(**fields))


def update(**fields: Any) -> Update:
    return Update.model_validate({"id": ID, **fields})


def delete(**fields: Any) -> Delete:
    return Delete.model_validate({"id": ID, **fields})


def outplan(**fields: Any) -> Outplan:
    document = {**create().model_dump(), "tm_create": NOW, "tm_update": NOW, "tm_delete": NEVER}
    return Outplan.model_validate({**document, **fields})


def state(version: int = 1, **fields: Any) -> State:
    return State(outplan(**fields), version)


def deleted_state(version: int = 2) -> State:
    return state(version, tm_delete=NOW)
