"""Convert between records and the MongoDB documents that keep them."""

from typing import Any

from outplan.contract.messages import Event, Outplan
from outplan.domain.decider import State
from outplan.domain.records import Fence, Record, Trial, Verdict


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
