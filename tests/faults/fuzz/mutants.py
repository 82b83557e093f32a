"""Hostile messages: valid commands and the schemas' examples, spoilt in one way or several."""

import json
import random
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from outplan.contract.messages import COMMANDS
from tests.faults.fuzz.bodies import Body, HostileBodies, written
from tests.faults.fuzz.properties import HostileProperties, Properties, Table, content_header

_EXAMPLES: Final = Path(__file__).parents[3] / "schemas/examples"
_OUTPLANS: Final = 20
_CUSTOMERS: Final = 4
_REMEMBERED: Final = 200
_SOURCES: Final[tuple[Body, ...]] = (
    {"type": "tel", "target": "+15559876543"},
    {"type": "email", "target": "sales@example.com", "target_name": "Sales"},
    {"type": "sip", "target": "alice@pbx.example.com", "detail": "desk"},
    {"type": "agent", "target": "d5fb7357-7ddb-4f2d-87b5-8ccbfd6c039e", "name": "Front desk"},
    {"type": "line", "target": "l1"},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """A message as it stands on the wire; ``kind`` says how it was made."""

    kind: str
    routing_key: str
    header: bytes
    body: bytes
    redelivered: bool = False


@dataclass(slots=True)
class _Draft:
    name: str
    message_id: bytes
    body: bytes


class Mutator:
    """An endless row of mutants, the same for the same seed.

    The outplans are few, so that commands meet. ``passable`` ones get past a broker: see
    HostileProperties; they have ``reply_to``, and their number for a correlation id.
    """

    def __init__(self, seed: int | str, *, passable: bool = False, reply_to: bytes = b"r") -> None:
        self._luck = luck = random.Random(f"mutants {seed}")
        self._passable = passable
        self._reply_to = reply_to
        self._count = 0
        self._ids = [_uuid(luck) for _ in range(_OUTPLANS)]
        self._customers = [_uuid(luck) for _ in range(_CUSTOMERS)]
        self._examples = [
            (name, json.loads(path.read_text()))
            for name in COMMANDS
            for kind in ("valid", "invalid")
            for path in sorted((_EXAMPLES / kind / name).glob("*.json"))
        ]
        self._earlier: deque[_Draft] = deque(maxlen=_REMEMBERED)
        self._bodies = HostileBodies(luck)
        self._properties = HostileProperties(luck, passable)

    def next(self) -> Mutant:
        """The next mutant."""
        self._count += 1
        name, body = self._command()
        kind, data = self._spoilt(body)
        draft = _Draft(name, b"command %d" % self._count, data)
        if self._earlier and self._luck.random() < 0.08:
            kind, draft = self._again(draft)
        self._earlier.append(draft)
        properties, table = self._sent(draft)
        if self._luck.random() < 0.2:
            kind += ", properties"
            self._properties.spoil(properties, table)
        header = content_header(properties, table or None, len(draft.body))
        if not self._passable and self._luck.random() < 0.02:
            kind += ", header bytes"
            header = header[:12] + self._bodies.spoil_bytes(header[12:])
        return Mutant(kind, self._routing_key(draft.name), header, draft.body, self._chance(0.05))

    def _command(self) -> tuple[str, Any]:
        if self._chance(0.12):
            name, body = self._luck.choice(self._examples)
            return name, json.loads(json.dumps(body))
        index = self._luck.randrange(_OUTPLANS)
        id_, owner = self._ids[index], self._customers[index % _CUSTOMERS]
        if self._chance(0.03):
            self._ids[index] = _uuid(self._luck)
        way = self._luck.random()
        if way < 0.25:
            return "outplan_create", self._create(id_, owner)
        if way < 0.92:
            return "outplan_update", {"id": id_, **self._guards(owner), **self._changes()}
        return "outplan_delete", {"id": id_, **self._guards(owner)}

    def _create(self, id_: str, owner: str) -> Body:
        body = {"customer_id": owner, "name": "n", "source": dict(self._luck.choice(_SOURCES))}
        if self._chance(0.8):
            body["id"] = id_
        return body | (self._changes() if self._chance(0.5) else {})

    def _guards(self, owner: str) -> Body:
        guards: Body = {}
        if self._chance(0.3):
            guards["customer_id"] = (
                owner if self._chance(0.8) else self._luck.choice(self._customers)
            )
        if self._chance(0.2):
            guards["expected_version"] = self._luck.randint(1, 6)
        return guards

    def _changes(self) -> Body:
        luck = self._luck
        possible: Body = {
            "name": f"name {luck.randrange(3)}",
            "detail": "d" * luck.randrange(3),
            "source": dict(luck.choice(_SOURCES)),
            "dial_timeout": luck.choice((1_000, 30_000, 600_000)),
            "try_interval": luck.choice((0, 1_000, 60_000, 2_147_483_647)),
            f"max_try_count_{luck.randrange(5)}": luck.choice((0, 5, 1_000)),
        }
        return {name: possible[name] for name in luck.sample(list(possible), luck.randint(1, 4))}

    def _spoilt(self, body: Any) -> tuple[str, bytes]:
        way = self._luck.random()
        if way < 0.25 or not isinstance(body, dict):
            return "as it is", written(body)
        if way < 0.6:
            return "field by field", self._bodies.spoil_fields(body)
        if way < 0.96:
            return "byte by byte", self._bodies.spoil_bytes(written(body))
        return "as a whole", self._bodies.spoil_shape(written(body))

    def _again(self, draft: _Draft) -> tuple[str, _Draft]:
        earlier = self._luck.choice(self._earlier)
        if self._chance(0.6):
            return "sent again", earlier
        return "id used again", _Draft(draft.name, earlier.message_id, draft.body)

    def _sent(self, draft: _Draft) -> tuple[Properties, Table]:
        properties: Properties = {
            "message_id": draft.message_id,
            "delivery_mode": 2,
            "timestamp": 1_764_000_000,
            "reply_to": self._reply_to,
        }
        if self._passable or self._chance(0.5):
            properties["correlation_id"] = b"%d" % self._count
        if self._chance(0.5):
            properties["message_type"] = draft.name.encode()
        return properties, [(b"outplan_id", b"S" + bytes(4))] if self._chance(0.3) else []

    def _routing_key(self, name: str) -> str:
        if self._chance(0.97):
            return name
        key = self._luck.choice((b"", b"outplan.commands", b"\xff\xfe", b"#", b"*" * 255))
        return key.decode("utf-8", "surrogateescape")

    def _chance(self, share: float) -> bool:
        return self._luck.random() < share


def _uuid(luck: random.Random) -> str:
    return str(UUID(int=luck.getrandbits(128), version=4))
