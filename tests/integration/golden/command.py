"""A command that the scenario sends, and how to write one down.

Ids, times and texts are constants: the stored digests and fingerprints depend on them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.integration.golden.amqp import Header

# Where to publish a command: the exchange of commands, or its queue by the default exchange.
Target = Literal["exchange", "queue"]
Outcome = Literal["accepted", "unchanged", "rejected"]

CUSTOMER: Final = "5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11"
OTHER_CUSTOMER: Final = "0a1b2c3d-0000-4000-8000-000000000001"
AGENT: Final = "9b2e1f60-4c7d-4f2a-8a35-6d1c0e5f7a82"
NIL: Final = "00000000-0000-0000-0000-000000000000"
TEL: Final = {"type": "tel", "target": "+15559876543"}
TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SENT_AT: Final = 1_764_000_000
MAX_BODY_BYTES: Final = 262_144
# Stand for the queue that the scenario reads replies from, and for the connection's user.
REPLIES: Final = "<replies>"
USER: Final = "<user>"

Document = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A command as it goes out, and what must come back.

    ``label`` is unique, and is the message_id unless ``properties`` has another one. A command
    by ``other_user`` goes out on a connection of another user of the broker.
    """

    label: str
    routing_key: str | bytes
    body: bytes
    properties: Mapping[str, Any]
    outcome: Outcome
    target: Target = "exchange"
    other_user: bool = False
    # Messages in the queue of replies beside the reply.
    strays: int = 0

    @property
    def replies(self) -> int:
        return (self.properties.get("reply_to") == REPLIES) + self.strays

    @property
    def events(self) -> int:
        return int(self.outcome == "accepted")

    @property
    def rejected(self) -> int:
        return int(self.outcome == "rejected")


def outplan(number: int) -> str:
    return f"0f1e2d3c-0000-4000-8000-{number:012d}"


def command(
    label: str,
    name: str | bytes,
    body: Document | bytes,
    outcome: Outcome = "accepted",
    *,
    headers: Sequence[Header] | None = None,
    less: Sequence[str] = (),
    target: Target = "exchange",
    strays: int = 0,
    **properties: Any,
) -> Command:
    """Make a command with usual properties, ``less`` those named, and ``properties`` over them."""
    usual: Document = {
        "delivery_mode": 2,
        "correlation_id": f"correlation of {label}",
        "reply_to": REPLIES,
        "message_id": label,
    }
    if headers is not None:
        usual["headers"] = list(headers)
    kept = {key: value for key, value in usual.items() if key not in less} | properties
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Command(label, name, data, kept, outcome, target, strays=strays)


def create(label: str, outcome: Outcome = "accepted", /, **fields: Any) -> Command:
    return command(label, "outplan_create", new(**fields), outcome)


def update(label: str, id_: str, outcome: Outcome = "accepted", /, **fields: Any) -> Command:
    return command(label, "outplan_update", {"id": id_, **fields}, outcome)


def delete(label: str, id_: str, outcome: Outcome = "accepted", /, **fields: Any) -> Command:
    return command(label, "outplan_delete", {"id": id_, **fields}, outcome)


def new(**fields: Any) -> Document:
    return {"customer_id": CUSTOMER, "name": "test outplan", "source": TEL, **fields}


def new_json(**fields: Any) -> bytes:
    return json.dumps(new(**fields)).encode()
