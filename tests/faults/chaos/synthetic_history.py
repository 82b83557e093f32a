"""Make the history of a service that keeps every promise, to test the checker."""

import json
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tests.faults.chaos.checker import EVENT_TYPES
from tests.faults.chaos.history import (
    History,
    PublishOutcome,
    ReceivedEvent,
    ReceivedReply,
    RejectedCopy,
    SentCommand,
    StoredDocument,
)
from tests.support.command_generator import Draft, Generator, Outplans
from tests.support.contract_rules import NEVER, Command, Document, judge, parse_command

_COMMANDS = 600
_START = datetime(2026, 11, 24, tzinfo=UTC)


@dataclass
class PerfectService:
    """Apply commands one after another and record the history."""

    rng: random.Random
    history: History = field(default_factory=History)
    documents: dict[str, Document] = field(default_factory=dict)
    events: dict[str, Document] = field(default_factory=dict)
    origins: dict[str, Command] = field(default_factory=dict)
    clock: int = 0
    published_at: dict[str, float] = field(default_factory=dict)

    def record(self, connection: str, draft: Draft) -> SentCommand:
        """Record a command; the times of those that are taken one after another overlap."""
        outcome: PublishOutcome = "unknown" if self.rng.random() < 0.05 else "confirmed"
        taken_at = float(len(self.history.sent))
        published_at = max(
            self.published_at.get(connection, 0.0), taken_at - self.rng.uniform(0, 3)
        )
        confirmed_at = taken_at + self.rng.uniform(0, 3) if outcome == "confirmed" else None
        self.published_at[connection] = published_at
        sent = SentCommand.from_draft(
            draft, f"{connection} {taken_at:.0f}", connection, outcome, published_at, confirmed_at
        )
        self.history.add(sent)
        return sent

    def apply(self, sent: SentCommand) -> None:
        """Record the effects of a command, if it arrived."""
        if sent.outcome == "confirmed" or self.rng.random() < 0.5:
            self._judge(sent)

    def finish(self) -> History:
        """Add the collections and return the history."""
        for event in self.events.values():
            self.history.add(StoredDocument("outplan_events", event))
        for document in self.documents.values():
            stored = {**document, "_id": document["id"]}
            stored.pop("id")
            self.history.add(StoredDocument("outplans", stored))
        return self.history

    def _judge(self, sent: SentCommand) -> None:
        if sent.invalid_code:
            self._reject(sent, sent.invalid_code)
            return
        command = parse_command(sent.name, sent.body)
        if (first := self.events.get(sent.message_id)) is not None:
            if self.origins[sent.message_id] == command:
                self._accept(sent, first, duplicate=True)
            else:
                self._reject(sent, "message_id_reused")
            return
        self._decide(sent, command)

    def _decide(self, sent: SentCommand, command: Command) -> None:
        document = self.documents.get(sent.outplan_id)
        version = document["version"] if document else 0
        before = {k: v for k, v in document.items() if k != "version"} if document else None
        ruling = judge(before, version, command)
        if ruling.outcome == "unchanged":
            self._reply(sent, {"status": "unchanged", "version": version, "outplan": before})
        elif ruling.fields is None:
            extra = {"current_version": version} if ruling.outcome == "version_conflict" else {}
            self._reject(sent, ruling.outcome, **extra)
        else:
            event = self._apply(sent, ruling.fields, before, version + 1)
            self.origins[sent.message_id] = command
            self._accept(sent, event, duplicate=False)

    def _apply(
        self, sent: SentCommand, fields: Document, before: Document | None, version: int
    ) -> Document:
        self.clock += 1
        now = (_START + timedelta(microseconds=self.clock)).strftime("%Y-%m-%d %H:%M:%S.%f")
        data = {
            **fields,
            "tm_create": before["tm_create"] if before else now,
            "tm_update": now,
            "tm_delete": now if sent.name == "outplan_delete" else NEVER,
        }
        event = {
            "_id": sent.message_id,
            "type": EVENT_TYPES[sent.name],
            "outplan_id": data["id"],
            "customer_id": data["customer_id"],
            "version": version,
            "time": now,
            "data": data,
        }
        self.events[sent.message_id] = event
        self.documents[data["id"]] = {**data, "version": version}
        return event

    def _accept(self, sent: SentCommand, event: Document, duplicate: bool) -> None:
        body = {name: event[name] for name in ("type", "version", "time", "data")}
        key = f"{event['type']}.{event['customer_id']}.{event['outplan_id']}"
        received = ReceivedEvent(event["_id"], key, json.dumps({"id": event["_id"], **body}))
        for _ in range(self.rng.choice([1, 1, 1, 2])):
            self.history.add(received)
        accepted = {"version": event["version"], "outplan": event["data"]}
        self._reply(sent, {"status": "accepted", "duplicate": duplicate, **accepted})

    def _reject(self, sent: SentCommand, code: str, **extra: int) -> None:
        problem = {"code": code, "command_id": sent.message_id or None, **extra}
        copy = RejectedCopy(
            sent.send_id, sent.message_id, sent.routing_key, sent.outplan_id, sent.body, code,
            json.dumps(problem),
        )  # fmt: skip
        self.history.add(copy)
        self._reply(sent, {"status": "rejected", "problem": problem})

    def _reply(self, sent: SentCommand, reply: Document) -> None:
        if sent.outcome == "confirmed" or self.rng.random() < 0.8:
            body = {"command_id": sent.message_id or None, **reply}
            self.history.add(ReceivedReply(sent.send_id, json.dumps(body)))


def make_synthetic_history(
    seed: int, *, reconnecting: bool = False, overtaking: range = range(0)
) -> History:
    """Make the history of a run without a violation.

    A ``reconnecting`` publisher sends each command on a new connection. The second half of the
    commands in ``overtaking`` is applied before the first half: that is a violation.
    """
    rng = random.Random(seed)
    service = PerfectService(rng)
    outplans = Outplans(seed, 12)
    generators = {name: Generator(seed, name, outplans) for name in ("p0", "p1", "p2")}
    overtaken: list[SentCommand] = []
    for n in range(_COMMANDS):
        publisher = rng.choice(list(generators))
        connection = f"{publisher}.{n}" if reconnecting else publisher
        sent = service.record(connection, generators[publisher].draft())
        if n in overtaking[: len(overtaking) // 2]:
            overtaken.append(sent)
        else:
            service.apply(sent)
        if n == overtaking.stop - 1:
            for each in overtaken:
                service.apply(each)
    return service.finish()
