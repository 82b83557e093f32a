"""Convert between the domain's values and the MongoDB documents that keep them. Pure."""

from typing import Any

from outplan.contract.messages import Event, Outplan
from outplan.domain.decider import State
from outplan.domain.layout import Layout
from outplan.domain.records import Attempt, Fence, Record, RecordedOutcome, WorkerReport

Document = dict[str, Any]


def parse_fence(document: Document) -> Fence:
    """Read a document of ``outplan_fences``."""
    outcomes = tuple(
        RecordedOutcome(
            fingerprint=item["message"],
            tag=item["tag"],
            code=item["code"],
            detail=item["detail"],
            version=item["version"],
        )
        for item in document["verdicts"]
    )
    attempt = None
    if "trial" in document:
        attempt = Attempt(document["trial"]["message"], document["trial"]["times"])
    # A fence from before there were layouts does not say.
    crashes = document.get("crashes", 0)
    return Fence(document["_id"], document["epoch"], outcomes, attempt, crashes)


def parse_layout(document: Document) -> Layout:
    """Read a document of ``outplan_layouts``."""
    return Layout(
        document["generation"],
        document["phase"],
        document["partitions"],
        document["former"],
        document["token"],
        frozenset(document["drained"]),
    )


def build_layout_document(prefix: str, layout: Layout) -> Document:
    """Write a document of ``outplan_layouts``."""
    return {
        "_id": prefix,
        "generation": layout.generation,
        "phase": layout.phase,
        "partitions": layout.partitions,
        "former": layout.former,
        "token": layout.token,
        "drained": sorted(layout.drained),
    }


def build_report_document(report: WorkerReport) -> Document:
    """Write what a document of ``outplan_workers`` has of a worker's report."""
    return {
        "active": list(report.active),
        "unacked": report.unacked,
        "failures": dict(report.failures),
        "unordered": report.unordered,
    }


def parse_report(document: Document) -> WorkerReport:
    """Read the report in a document of ``outplan_workers``."""
    return WorkerReport(
        tuple(document.get("active", ())),
        document.get("unacked", 0),
        document.get("failures", {}),
        document["unordered"],
    )


def build_outcome_document(outcome: RecordedOutcome) -> Document:
    """Write an outcome as an item of a fence's ``verdicts``."""
    return {
        "message": outcome.fingerprint,
        "tag": outcome.tag,
        "code": outcome.code,
        "detail": outcome.detail,
        "version": outcome.version,
    }


def build_attempt_document(attempt: Attempt) -> Document:
    """Write an attempt as a fence's ``trial``."""
    return {"message": attempt.fingerprint, "times": attempt.number}


def parse_state(document: Document) -> State:
    """Read a document of ``outplans``, and consume it. Raises ValidationError."""
    version = document.pop("version")
    return State(Outplan.model_validate({"id": document.pop("_id"), **document}), version)


def parse_record(document: Document) -> Record:
    """Read a document of ``outplan_events``. Raises ValidationError."""
    event = Event(
        id=document["_id"],
        type=document["type"],
        version=document["version"],
        time=document["time"],
        **({"changed": document["changed"]} if "changed" in document else {}),
        data=document["data"],
    )
    return Record(event, document["digest"])


def build_event_document(record: Record) -> Document:
    """Write a document of ``outplan_events``."""
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


def build_outplan_document(event: Event) -> Document:
    """Write the document of ``outplans`` that an event leaves."""
    document = event.data.model_dump()
    return {"_id": document.pop("id"), **document, "version": event.version}
