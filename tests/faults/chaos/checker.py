"""The verdict on a run: a pure function over its record.

It believes what the publishers, the subscriber and the collections say, nothing that the service
says of itself, and judges by ``rules``. Each rule of the contract's sections 3, 4 and 6 is a
generator of violations below.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from tests.faults.chaos.record import Copied, Heard, Record, Sent
from tests.support.contract_rules import NEVER, Command, Document, command, ruling, settings

_TYPES = {"outplan_create": "outplan_created", "outplan_update": "outplan_updated",
          "outplan_delete": "outplan_deleted"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, by whom, and how it shows."""

    rule: str
    subject: str
    detail: str


def check(record: Record) -> list[Violation]:
    """List every violation; none is the verdict that all promises were kept."""
    history = History(record)
    rules = (
        _answers, _provenance, _versions, _fold, _heard, _first_heard, _fates, _copies, _replies,
        _order,
    )  # fmt: skip
    return [violation for rule in rules for violation in rule(history)]


class History:
    """A record, looked at from the sides that the rules need."""

    def __init__(self, record: Record) -> None:
        self.record = record
        events = [s.document for s in record.stored if s.collection == "outplan_events"]
        self.outplans = {
            s.document["_id"]: s.document for s in record.stored if s.collection == "outplans"
        }
        self.event_of = {event["_id"]: event for event in events}
        self.events_of: dict[str, list[Document]] = defaultdict(list)
        for event in sorted(events, key=lambda e: int(e["version"])):
            self.events_of[event["outplan_id"]].append(event)
        self.copies_of: dict[str, list[Copied]] = defaultdict(list)
        for copy in record.copied:
            self.copies_of[copy.send_id].append(copy)
        self.replies_of: dict[str, list[Document]] = defaultdict(list)
        for reply in record.replied:
            self.replies_of[reply.send_id].append(json.loads(reply.body))
        self.heard_of: dict[str, list[Heard]] = defaultdict(list)
        for heard in record.heard:
            self.heard_of[heard.message_id].append(heard)

    @cached_property
    def sends(self) -> dict[str, Sent]:
        return {sent.send_id: sent for sent in self.record.sent}

    @cached_property
    def commands(self) -> dict[str, Command]:
        """The well-formed commands, by send id."""
        return {s.send_id: command(s.name, s.body) for s in self.record.sent if s.wrong is None}

    @cached_property
    def sends_under(self) -> dict[str, list[Sent]]:
        """All that may have arrived under each message_id."""
        found: dict[str, list[Sent]] = defaultdict(list)
        for sent in self.record.sent:
            if sent.verdict != "returned":
                found[sent.message_id].append(sent)
        return found

    @cached_property
    def origin(self) -> dict[str, Command]:
        """For each event the command that explains it; absent where none does."""
        found = {}
        for events in self.events_of.values():
            before: Document | None = None
            for event in events:
                if given := self._explanation(event, before):
                    found[event["_id"]] = given
                before = event["data"]
        return found

    def _explanation(self, event: Document, before: Document | None) -> Command | None:
        for sent in self.sends_under.get(event["_id"], ()):
            given = self.commands.get(sent.send_id)
            if given is None or _TYPES[given.name] != event["type"]:
                continue
            decided = ruling(before, event["version"] - 1, given)
            wanted = {"id": event["data"]["id"], **(decided.settings or {})}
            if decided.outcome == "accepted" and wanted == settings(event["data"]):
                return given
        return None

    def accepted(self, sent: Sent) -> Document | None:
        """The event of this very content, where its message_id has one."""
        event = self.event_of.get(sent.message_id)
        if event is None or sent.wrong is not None:
            return None
        return event if self.origin.get(event["_id"]) == self.commands[sent.send_id] else None

    def has_fate(self, sent: Sent) -> bool:
        """Whether there is anything to show that it arrived."""
        seen = self.copies_of[sent.send_id] or self.replies_of[sent.send_id]
        return bool(seen) or self.accepted(sent) is not None

    def state(self, outplan_id: str, version: int) -> Document | None:
        data: Document | None = self.events_of[outplan_id][version - 1]["data"] if version else None
        return data


def _answers(history: History) -> Iterator[Violation]:
    """Every confirmed command is answered: it asked for that, on a queue that takes everything."""
    for sent in history.record.sent:
        if sent.verdict == "confirmed" and not history.replies_of[sent.send_id]:
            yield Violation("no reply", sent.send_id, f"confirmed, and never answered: {sent}")


def _provenance(history: History) -> Iterator[Violation]:
    """Nothing that was never sent has any fate, and each event follows from a command sent."""
    for id_ in history.event_of:
        if id_ not in history.sends_under:
            yield Violation("never sent", id_, "there is an event under an id that was never sent")
        elif id_ not in history.origin:
            yield Violation("unexplained", id_, "no command sent under its id makes this event")
    for send_id in history.copies_of.keys() | history.replies_of.keys():
        sent = history.sends.get(send_id)
        if sent is None or sent.verdict == "returned":
            yield Violation("never sent", send_id, "it has an outcome, but no queue ever took it")


def _versions(history: History) -> Iterator[Violation]:
    """Versions run 1, 2, 3 …, and times only grow."""
    for outplan_id, events in history.events_of.items():
        versions = [event["version"] for event in events]
        if versions != list(range(1, len(events) + 1)):
            yield Violation("versions", outplan_id, f"they are {versions}")
        for one, next_ in pairwise(event["data"] for event in events):
            if next_["tm_update"] <= one["tm_update"]:
                yield Violation("tm_update", outplan_id, f"{one} before {next_}")
            if next_["tm_create"] != one["tm_create"]:
                yield Violation("tm_create", outplan_id, f"{one} before {next_}")
        yield from _deletions(outplan_id, events)


def _deletions(outplan_id: str, events: list[Document]) -> Iterator[Violation]:
    for event in events:
        deleted = event["data"]["tm_delete"] != NEVER
        if deleted != (event["type"] == "outplan_deleted"):
            yield Violation("tm_delete", outplan_id, f"{event}")


def _fold(history: History) -> Iterator[Violation]:
    """The fold of the events is the document."""
    for outplan_id in history.outplans.keys() | history.events_of.keys():
        events = history.events_of.get(outplan_id)
        document = history.outplans.get(outplan_id)
        if not events or document is None:
            yield Violation("fold", outplan_id, f"{len(events or [])} events, document: {document}")
            continue
        last = {**events[-1]["data"], "_id": outplan_id, "version": events[-1]["version"]}
        last.pop("id")
        if last != document:
            yield Violation("fold", outplan_id, f"events come to {last}, stored is {document}")


def _heard(history: History) -> Iterator[Violation]:
    """Every event reached the subscriber, as it was stored, and nothing else did."""
    for id_, event in history.event_of.items():
        if id_ not in history.heard_of:
            yield Violation("lost event", id_, f"version {event['version']} was never heard")
    for id_, times in history.heard_of.items():
        if id_ not in history.event_of:
            yield Violation("phantom event", id_, f"was heard and is not stored: {times[0].body}")
            continue
        if len({heard.body for heard in times}) > 1:
            yield Violation("repeat differs", id_, f"{[heard.body for heard in times]}")
        yield from _as_stored(history.event_of[id_], times[0])


def _as_stored(event: Document, heard: Heard) -> Iterator[Violation]:
    told = json.loads(heard.body)
    names = ("type", "version", "time", "data") + (("changed",) if "changed" in told else ())
    differing = [name for name in names if told.get(name) != event.get(name)]
    key = f"{event['type']}.{event['customer_id']}.{event['outplan_id']}"
    if differing or told["id"] != event["_id"] or heard.routing_key != key:
        yield Violation("event differs", event["_id"], f"{differing}: {heard} but stored {event}")


def _first_heard(history: History) -> Iterator[Violation]:
    """For one outplan, first publications are in version order."""
    last: Counter[str] = Counter()
    seen: set[str] = set()
    for heard in history.record.heard:
        event = history.event_of.get(heard.message_id)
        if event is None or heard.message_id in seen:
            continue
        seen.add(heard.message_id)
        id_, version = event["outplan_id"], event["version"]
        if version != last[id_] + 1:
            detail = f"version {version} was first heard after version {last[id_]}"
            yield Violation("events out of order", id_, detail)
        last[id_] = version


def _fates(history: History) -> Iterator[Violation]:
    """Every confirmed command has one kind of fate; "unchanged" is looked at under order."""
    for sent in history.record.sent:
        copies, replies = history.copies_of[sent.send_id], history.replies_of[sent.send_id]
        fates = {copy.code for copy in copies} | {_told(reply) for reply in replies}
        if history.accepted(sent) and not fates:
            continue
        if len(fates) > 1:
            yield Violation("more than one fate", sent.send_id, f"{sorted(fates)}")
        if sent.wrong and fates != {sent.wrong} and (fates or sent.verdict == "confirmed"):
            yield Violation("wrongly judged", sent.send_id, f"{fates}, not {sent.wrong}: {sent}")


def _copies(history: History) -> Iterator[Violation]:
    """Every rejected copy is what was sent, and whoever was told of one has one."""
    for copy in history.record.copied:
        sent = history.sends.get(copy.send_id)
        if sent is None:
            continue
        for name in ("message_id", "name", "outplan_id", "body"):
            if getattr(copy, name) != getattr(sent, name):
                yield Violation("copy differs", copy.send_id, f"{name}: {copy} of {sent}")
        told = json.loads(copy.problem)
        if (told["code"], told["command_id"]) != (copy.code, sent.message_id or None):
            yield Violation("copy differs", copy.send_id, f"its problem: {copy.problem}")
    for send_id, replies in history.replies_of.items():
        if any(r["status"] == "rejected" for r in replies) and not history.copies_of[send_id]:
            yield Violation("lost copy", send_id, "it was told to be rejected, and has no copy")


def _told(reply: Document) -> str:
    told: str = reply["problem"]["code"] if reply["status"] == "rejected" else reply["status"]
    return told


def _replies(history: History) -> Iterator[Violation]:
    """Replies agree with history."""
    for send_id, replies in history.replies_of.items():
        sent = history.sends.get(send_id)
        for reply in replies if sent else ():
            assert sent is not None
            yield from _agrees(history, sent, reply)


def _agrees(history: History, sent: Sent, reply: Document) -> Iterator[Violation]:
    if reply["command_id"] != (sent.message_id or None):
        yield Violation("reply for another", sent.send_id, f"{reply} to {sent}")
    if reply["status"] == "accepted":
        event = history.accepted(sent)
        if event is None or (reply["version"], reply["outplan"]) != (
            event["version"], event["data"],
        ):  # fmt: skip
            yield Violation("reply differs", sent.send_id, f"{reply}, but stored is {event}")
    elif reply["status"] == "unchanged":
        events = history.events_of[reply["outplan"]["id"]]
        at = [event["data"] for event in events if event["version"] == reply["version"]]
        if at != [reply["outplan"]]:
            yield Violation("reply differs", sent.send_id, f"{reply}, but stored is {at}")


def _order(history: History) -> Iterator[Violation]:
    """There is an order of all commands for an outplan in which each had the effect that it had.

    The order of the accepted ones is that of the versions. Whatever left no trace must fit in
    somewhere, and each publisher's confirmed commands in the order in which it published them.
    As what left no trace changed nothing, the earliest place that fits is the best for all that
    follow; so one walk a publisher decides.
    """
    places: Counter[tuple[str, str]] = Counter()
    for sent in history.record.sent:
        if sent.wrong is not None or sent.verdict == "returned":
            continue
        where = (sent.publisher, sent.outplan_id)
        place = _place(history, sent, places[where])
        if place is not None:
            # What is unknown may have arrived after all that the publisher sent later.
            places[where] = place if sent.verdict == "confirmed" else places[where]
        elif sent.verdict == "confirmed" or history.has_fate(sent):
            yield _misplaced(history, sent, places[where])


def _place(history: History, sent: Sent, earliest: int) -> int | None:
    """The first version from ``earliest`` on at which the command may have been judged so."""
    found = [
        place
        for place in (
            _place_accepted(history, sent, earliest),
            _place_else(history, sent, earliest),
        )
        if place is not None
    ]
    return min(found, default=None)


def _place_accepted(history: History, sent: Sent, earliest: int) -> int | None:
    """As the one that made the event, or, if another may have done so, as its duplicate."""
    event = history.accepted(sent)
    if event is None or history.copies_of[sent.send_id]:
        return None
    version: int = event["version"]
    again = len(history.sends_under[sent.message_id]) > 1
    return max(version, earliest) if again or version > earliest else None


def _place_else(history: History, sent: Sent, earliest: int) -> int | None:
    """As one that left no trace."""
    replies = history.replies_of[sent.send_id]
    if any(reply["status"] == "accepted" for reply in replies):
        return None
    told = {copy.code for copy in history.copies_of[sent.send_id]} or {"unchanged"}
    exact = {version for reply in replies if (version := _seen_version(reply)) is not None}
    last = len(history.events_of.get(sent.outplan_id, ()))
    for version in range(earliest, last + 1):
        if (not exact or version in exact) and told <= _possible(history, sent, version):
            return version
    return None


def _seen_version(reply: Document) -> int | None:
    """The version that a reply shows the outplan to have had, where it shows one."""
    if reply["status"] == "rejected":
        current: int | None = reply["problem"].get("current_version")
        return current
    version: int = reply["version"]
    return version


def _possible(history: History, sent: Sent, version: int) -> set[str]:
    """What the command could come to if it was judged at that version."""
    given = history.commands[sent.send_id]
    before = history.state(sent.outplan_id, version) if version else None
    decided = {ruling(before, version, given).outcome}
    other = history.event_of.get(sent.message_id)
    if other is None or history.origin.get(other["_id"]) == given:
        return decided
    if other["outplan_id"] != sent.outplan_id:
        return decided | {"message_id_reused"}
    return {"message_id_reused"} if other["version"] <= version else decided


def _misplaced(history: History, sent: Sent, earliest: int) -> Violation:
    event = history.accepted(sent)
    codes = sorted({copy.code for copy in history.copies_of[sent.send_id]})
    if event is None and not codes and not history.replies_of[sent.send_id]:
        detail = f"no event, no copy, and it would have changed something: {sent}"
        return Violation("lost command", sent.send_id, detail)
    fate = f"version {event['version']}" if event else f"{codes or 'unchanged'}"
    detail = f"{fate} fits nowhere from version {earliest} on: {sent}"
    return Violation("commands out of order", sent.send_id, detail)
