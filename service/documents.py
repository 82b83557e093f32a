"""What stands in MongoDB, as values, and the documents that they are made of. Pure."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from service.decider import State
from service.messages import Event, Outplan


class Record(NamedTuple):
    """An event as stored, with the digest of the command that it came from."""

    event: Event
    digest: str


# An outplan's id, and one of its versions.
Version = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was judged of a message that left no event; kept until the broker has its ack.

    ``message`` is the delivery's fingerprint; ``version`` the one that was judged, where it is
    told: of what was unchanged, or in conflict.
    """

    message: str
    tag: int
    code: str | None = None
    detail: str = ""
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A message handled alone, written down before: what is left here has ended a worker."""

    message: str
    times: int


@dataclass(frozen=True, slots=True)
class Fence:
    """A worker's claim on a command queue: ``epoch`` is stale once another has claimed it."""

    queue: str
    epoch: int
    verdicts: tuple[Verdict, ...] = ()
    trial: Trial | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the store knew when the transaction began; ``past`` has the versions asked for."""

    states: dict[str, State] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    past: dict[Version, State] = field(default_factory=dict)


def fence_of(document: dict[str, Any]) -> Fence:
    """The fence that a document of the fences says."""
    verdicts = tuple(Verdict(**item) for item in document["verdicts"])
    trial = Trial(**document["trial"]) if "trial" in document else None
    return Fence(document["_id"], document["epoch"], verdicts, trial)


def state_of(document: dict[str, Any]) -> State:
    """The state that an outplan's document says. Raises ValidationError; takes it apart."""
    version = document.pop("version")
    return State(Outplan.model_validate({"id": document.pop("_id"), **document}), version)


def record_of(document: dict[str, Any]) -> Record:
    """The record that an event's document says. Raises ValidationError."""
    event = Event(
        id=document["_id"],
        type=document["type"],
        version=document["version"],
        time=document["time"],
        **({"changed": document["changed"]} if "changed" in document else {}),
        data=document["data"],
    )
    return Record(event, document["digest"])


def event_document(record: Record) -> dict[str, Any]:
    """The document that keeps a record."""
    event = record.event
    document = {
        "_id": event.id,
        "outplan_id": event.data.id,
        "customer_id": event.data.customer_id,
        "version": event.version,
        "type": event.type,
        "time": event.time,
        "digest": record.digest,
        "data": event.data.model_dump(),
    }
    if event.changed is not None:
        document["changed"] = list(event.changed)
    return document


def outplan_document(event: Event) -> dict[str, Any]:
    """The outplan as its latest event leaves it."""
    document = event.data.model_dump()
    return {"_id": document.pop("id"), **document, "version": event.version}
