"""The record of a run: what was sent and what was seen, one JSON line each, so that it replays."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

Document = dict[str, Any]

# confirmed: the broker has it. returned: no queue took it. unknown: the connection went first,
# so it may arrive at any later time, or never.
Verdict = Literal["confirmed", "returned", "unknown"]


@dataclass(frozen=True, slots=True)
class Sent:
    """One publish. ``send_id`` is its correlation id, which no other publish has.

    A publisher's records stand in the order in which it published. ``wrong`` is the code that a
    command deserves for its form alone; ``body`` is as sent, in Latin-1 so that any bytes fit.
    """

    send_id: str
    publisher: str
    name: str
    message_id: str
    outplan_id: str
    body: str
    verdict: Verdict
    wrong: str | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """An event as the durable subscriber got it, in the order of arrival."""

    message_id: str
    routing_key: str
    body: str


@dataclass(frozen=True, slots=True)
class Replied:
    """A reply, by the correlation id that it echoes."""

    send_id: str
    body: str


@dataclass(frozen=True, slots=True)
class Copied:
    """A message in the queue of rejected commands."""

    send_id: str
    message_id: str
    name: str
    outplan_id: str
    body: str
    code: str
    problem: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A document of one of the collections, at the end."""

    collection: Literal["outplans", "outplan_events"]
    document: Document


@dataclass(frozen=True, slots=True)
class Fault:
    """What the nemesis did, ``at`` so many seconds after the start."""

    at: float
    name: str
    detail: str = ""


Line = Sent | Heard | Replied | Copied | Stored | Fault
_KINDS: Final[Mapping[str, type[Line]]] = {
    kind.__name__: kind for kind in (Sent, Heard, Replied, Copied, Stored, Fault)
}


@dataclass(slots=True)
class Record:
    """All that a checker may know."""

    sent: list[Sent] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    replied: list[Replied] = field(default_factory=list)
    copied: list[Copied] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def add(self, line: Line) -> None:
        lists: Mapping[type[Line], list[Any]] = {
            Sent: self.sent,
            Heard: self.heard,
            Replied: self.replied,
            Copied: self.copied,
            Stored: self.stored,
            Fault: self.faults,
        }
        lists[type(line)].append(line)

    def lines(self) -> Iterator[Line]:
        for part in (
            self.sent, self.heard, self.replied, self.copied, self.stored, self.faults
        ):  # fmt: skip
            yield from part


def write(record: Record, path: Path) -> None:
    """Keep a record."""
    with path.open("w") as file:
        for line in record.lines():
            file.write(json.dumps({"kind": type(line).__name__, **asdict(line)}) + "\n")


def read(lines: Iterable[str]) -> Record:
    """Take a kept record up again."""
    record = Record()
    for line in lines:
        fields = json.loads(line)
        record.add(_KINDS[fields.pop("kind")](**fields))
    return record
