"""Make hostile messages: valid commands, events and the schemas' examples, mutated."""

import json
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args
from uuid import UUID

from outplan.contract.messages import COMMANDS, EventType
from outplan.contract.slots import SLOTS
from tests.faults.fuzz.bodies import Body, BodyMutator, encode_json
from tests.faults.fuzz.properties import PropertyMutator
from tests.support.raw_message import Properties, RawMessage, Table, encode_content_header

_EXAMPLES: Final = Path(__file__).parents[3] / "schemas/examples"
_OUTPLANS: Final = 20
_CUSTOMERS: Final = 4
_EARLIER_DRAFTS: Final = 200
_WRONG_KEYS: Final = (
    b"", b"outplan.commands", b"\xff\xfe", b"#", b"*" * 255, b".c3", b"outplan_update.C3",
    b"outplan_update.c3c", b"outplan_delete.", b"outplan_delete.x.c3", b"outplan_create.c3.c3",
)  # fmt: skip
# The bindings of a subscriber of all events match them.
_WRONG_EVENT_KEYS: Final = (b"\xff.\xfe.\xfd", b"..", b"outplan_updated.\x1b[2J.\n", b"a.b.c")
_SOURCES: Final[tuple[Body, ...]] = (
    {"type": "tel", "target": "+15559876543"},
    {"type": "email", "target": "sales@example.com", "target_name": "Sales"},
    {"type": "sip", "target": "alice@pbx.example.com", "detail": "desk"},
    {"type": "agent", "target": "d5fb7357-7ddb-4f2d-87b5-8ccbfd6c039e", "name": "Front desk"},
    {"type": "line", "target": "l1"},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant(RawMessage):
    """A hostile message; ``kind`` says how it was made."""

    kind: str
    redelivered: bool = False


@dataclass(slots=True)
class _Draft:
    name: str
    message_id: bytes
    body: bytes


class Mutator:
    """Make mutants without end, the same ones for the same seed.

    They share few outplans, so that commands meet. ``publishable`` ones pass a broker, see
    `PropertyMutator`; they have ``reply_to``, and their number as correlation id.
    """

    def __init__(
        self, seed: int | str, *, publishable: bool = False, reply_to: bytes = b"r"
    ) -> None:
        self._rng = rng = random.Random(f"mutants {seed}")
        self._publishable = publishable
        self._reply_to = reply_to
        self._count = 0
        self._ids = [_make_uuid(rng) for _ in range(_OUTPLANS)]
        self._customers = [_make_uuid(rng) for _ in range(_CUSTOMERS)]
        self._examples = _read_examples(COMMANDS)
        self._events = _read_examples(get_args(EventType))
        self._earlier: deque[_Draft] = deque(maxlen=_EARLIER_DRAFTS)
        self._bodies = BodyMutator(rng)
        self._properties = PropertyMutator(rng, publishable)

    def next(self) -> Mutant:
        """Return the next mutant."""
        self._count += 1
        name, body = self._make_command()
        kind, data = self._mutate_body(body)
        draft = _Draft(name, b"command %d" % self._count, data)
        if self._earlier and self._rng.random() < 0.08:
            kind, draft = self._repeat_earlier(draft)
        self._earlier.append(draft)
        properties, table = self._make_properties(draft)
        if self._rng.random() < 0.2:
            kind += ", properties"
            self._properties.mutate(properties, table)
        header = encode_content_header(properties, table or None, len(draft.body))
        if not self._publishable and self._rng.random() < 0.02:
            kind += ", header bytes"
            header = header[:12] + self._bodies.mutate_bytes(header[12:])
        routing_key = self._make_routing_key(draft.name)
        return Mutant(routing_key, header, draft.body, kind, redelivered=self._happens(0.05))

    def next_event(self) -> Mutant:
        """Return the next mutant of an event, as anybody may send one to subscribers."""
        self._count += 1
        name, example = self._rng.choice(self._events)
        body = json.loads(json.dumps(example))
        if isinstance(body.get("data"), dict):
            body["data"]["id"] = self._rng.choice(self._ids)
        if type(body.get("version")) is int and body["version"] > 1:
            body["version"] = self._rng.randint(1, 40)
        kind, data = self._mutate_body(body)
        properties, table = self._make_properties(_Draft(name, b"event %d" % self._count, data))
        if self._rng.random() < 0.4:
            kind += ", properties"
            self._properties.mutate(properties, table)
        if self._publishable:
            # Quorum queues of RabbitMQ 4 deliver high priorities first.
            properties.pop("priority", None)
        header = encode_content_header(properties, table or None, len(data))
        key = f"{name}.{self._customers[0]}.{self._ids[0]}"
        if self._happens(0.03):
            key = self._rng.choice(_WRONG_EVENT_KEYS).decode("utf-8", "surrogateescape")
        return Mutant(key, header, data, kind, redelivered=self._happens(0.05))

    def _make_command(self) -> tuple[str, Any]:
        if self._happens(0.12):
            name, body = self._rng.choice(self._examples)
            return name, json.loads(json.dumps(body))
        index = self._rng.randrange(_OUTPLANS)
        id_, owner = self._ids[index], self._customers[index % _CUSTOMERS]
        if self._happens(0.03):
            self._ids[index] = _make_uuid(self._rng)
        draw = self._rng.random()
        if draw < 0.25:
            return "outplan_create", self._make_create(id_, owner)
        if draw < 0.92:
            return "outplan_update", {"id": id_, **self._make_guards(owner), **self._make_changes()}
        return "outplan_delete", {"id": id_, **self._make_guards(owner)}

    def _make_create(self, id_: str, owner: str) -> Body:
        body = {"customer_id": owner, "name": "n", "source": dict(self._rng.choice(_SOURCES))}
        if self._happens(0.8):
            body["id"] = id_
        return body | (self._make_changes() if self._happens(0.5) else {})

    def _make_guards(self, owner: str) -> Body:
        guards: Body = {}
        if self._happens(0.3):
            guards["customer_id"] = (
                owner if self._happens(0.8) else self._rng.choice(self._customers)
            )
        if self._happens(0.2):
            guards["expected_version"] = self._rng.randint(1, 6)
        return guards

    def _make_changes(self) -> Body:
        rng = self._rng
        possible: Body = {
            "name": f"name {rng.randrange(3)}",
            "detail": "d" * rng.randrange(3),
            "source": dict(rng.choice(_SOURCES)),
            "dial_timeout": rng.choice((1_000, 30_000, 600_000)),
            "try_interval": rng.choice((0, 1_000, 60_000, 2_147_483_647)),
            f"max_try_count_{rng.randrange(5)}": rng.choice((0, 5, 1_000)),
        }
        return {name: possible[name] for name in rng.sample(list(possible), rng.randint(1, 4))}

    def _mutate_body(self, body: Any) -> tuple[str, bytes]:
        draw = self._rng.random()
        if draw < 0.25 or not isinstance(body, dict):
            return "unchanged", encode_json(body)
        if draw < 0.6:
            return "field by field", self._bodies.mutate_fields(body)
        if draw < 0.96:
            return "byte by byte", self._bodies.mutate_bytes(encode_json(body))
        return "as a whole", self._bodies.mutate_shape(encode_json(body))

    def _repeat_earlier(self, draft: _Draft) -> tuple[str, _Draft]:
        earlier = self._rng.choice(self._earlier)
        if self._happens(0.6):
            return "resent", earlier
        return "id reused", _Draft(draft.name, earlier.message_id, draft.body)

    def _make_properties(self, draft: _Draft) -> tuple[Properties, Table]:
        properties: Properties = {
            "message_id": draft.message_id,
            "delivery_mode": 2,
            "timestamp": 1_764_000_000,
            "reply_to": self._reply_to,
        }
        if self._publishable or self._happens(0.5):
            properties["correlation_id"] = b"%d" % self._count
        if self._happens(0.5):
            properties["message_type"] = draft.name.encode()
        return properties, [(b"outplan_id", b"S" + bytes(4))] if self._happens(0.3) else []

    def _make_routing_key(self, name: str) -> str:
        if self._happens(0.97):
            return f"{name}.{self._rng.choice(SLOTS)}" if self._happens(0.6) else name
        key = self._rng.choice(_WRONG_KEYS)
        return key.decode("utf-8", "surrogateescape")

    def _happens(self, share: float) -> bool:
        return self._rng.random() < share


def _read_examples(names: Iterable[str]) -> list[tuple[str, Any]]:
    """Return the valid and the invalid examples of these schemas, each with its schema's name."""
    return [
        (name, json.loads(path.read_text()))
        for name in names
        for kind in ("valid", "invalid")
        for path in sorted((_EXAMPLES / kind / name).glob("*.json"))
    ]


def _make_uuid(rng: random.Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))
