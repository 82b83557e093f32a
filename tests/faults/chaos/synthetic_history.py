"""A service that keeps every promise, imagined: a record to try the checker on."""

import json
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tests.faults.chaos.record import Copied, Heard, Record, Replied, Sent, Stored, Verdict
from tests.support.command_generator import Draft, Generator, Outplans
from tests.support.contract_rules import NEVER, Command, Document, command, ruling

TYPES = {
    "outplan_create": "outplan_created",
    "outplan_update": "outplan_updated",
    "outplan_delete": "outplan_deleted",
}
_START = datetime(2026, 11, 24, tzinfo=UTC)


@dataclass
class Imagined:
    """Applies commands one after another, and writes the record of it."""

    luck: random.Random
    record: Record = field(default_factory=Record)
    documents: dict[str, Document] = field(default_factory=dict)
    events: dict[str, Document] = field(default_factory=dict)
    origins: dict[str, Command] = field(default_factory=dict)
    clock: int = 0

    def take(self, publisher: str, draft: Draft) -> None:
        """Let a publisher send a command, and all that follows from it happen."""
        verdict: Verdict = "unknown" if self.luck.random() < 0.05 else "confirmed"
        sent = Sent(
            send_id=f"{publisher} {len(self.record.sent)}",
            publisher=publisher,
            name=draft.name,
            message_id=draft.message_id,
            outplan_id=draft.outplan_id,
            body=draft.body.decode("latin-1"),
            verdict=verdict,
            wrong=draft.wrong,
        )
        self.record.add(sent)
        if verdict == "confirmed" or self.luck.random() < 0.5:
            self._judge(sent)

    def end(self) -> Record:
        """The record, with the collections as they are."""
        for event in self.events.values():
            self.record.add(Stored("outplan_events", event))
        for document in self.documents.values():
            stored = {**document, "_id": document["id"]}
            stored.pop("id")
            self.record.add(Stored("outplans", stored))
        return self.record

    def _judge(self, sent: Sent) -> None:
        if sent.wrong:
            self._reject(sent, sent.wrong)
            return
        given = command(sent.name, sent.body)
        if (first := self.events.get(sent.message_id)) is not None:
            if self.origins[sent.message_id] == given:
                self._accept(sent, first, duplicate=True)
            else:
                self._reject(sent, "message_id_reused")
            return
        self._decide(sent, given)

    def _decide(self, sent: Sent, given: Command) -> None:
        document = self.documents.get(sent.outplan_id)
        version = document["version"] if document else 0
        before = {k: v for k, v in document.items() if k != "version"} if document else None
        decided = ruling(before, version, given)
        if decided.outcome == "unchanged":
            self._reply(sent, {"status": "unchanged", "version": version, "outplan": before})
        elif decided.settings is None:
            extra = {"current_version": version} if decided.outcome == "version_conflict" else {}
            self._reject(sent, decided.outcome, **extra)
        else:
            event = self._event(sent, decided.settings, before, version + 1)
            self.origins[sent.message_id] = given
            self._accept(sent, event, duplicate=False)

    def _event(
        self, sent: Sent, settings: Document, before: Document | None, version: int
    ) -> Document:
        self.clock += 1
        now = (_START + timedelta(microseconds=self.clock)).strftime("%Y-%m-%d %H:%M:%S.%f")
        data = {
            **settings,
            "tm_create": before["tm_create"] if before else now,
            "tm_update": now,
            "tm_delete": now if sent.name == "outplan_delete" else NEVER,
        }
        event = {
            "_id": sent.message_id,
            "type": TYPES[sent.name],
            "outplan_id": data["id"],
            "customer_id": data["customer_id"],
            "version": version,
            "time": now,
            "data": data,
        }
        self.events[sent.message_id] = event
        self.documents[data["id"]] = {**data, "version": version}
        return event

    def _accept(self, sent: Sent, event: Document, duplicate: bool) -> None:
        body = {name: event[name] for name in ("type", "version", "time", "data")}
        key = f"{event['type']}.{event['customer_id']}.{event['outplan_id']}"
        heard = Heard(event["_id"], key, json.dumps({"id": event["_id"], **body}))
        for _ in range(self.luck.choice([1, 1, 1, 2])):
            self.record.add(heard)
        told = {"version": event["version"], "outplan": event["data"]}
        self._reply(sent, {"status": "accepted", "duplicate": duplicate, **told})

    def _reject(self, sent: Sent, code: str, **extra: int) -> None:
        problem = {"code": code, "command_id": sent.message_id or None, **extra}
        copy = Copied(
            sent.send_id, sent.message_id, sent.name, sent.outplan_id, sent.body, code,
            json.dumps(problem),
        )  # fmt: skip
        self.record.add(copy)
        self._reply(sent, {"status": "rejected", "problem": problem})

    def _reply(self, sent: Sent, reply: Document) -> None:
        if sent.verdict == "confirmed" or self.luck.random() < 0.8:
            body = {"command_id": sent.message_id or None, **reply}
            self.record.add(Replied(sent.send_id, json.dumps(body)))


def imagined(seed: int, commands: int = 600, publishers: int = 3) -> Record:
    """The record of a faultless run."""
    luck = random.Random(seed)
    service = Imagined(luck)
    outplans = Outplans(seed, 12)
    generators = {f"p{n}": Generator(seed, f"p{n}", outplans) for n in range(publishers)}
    for _ in range(commands):
        publisher = luck.choice(list(generators))
        service.take(publisher, generators[publisher].draft())
    return service.end()
