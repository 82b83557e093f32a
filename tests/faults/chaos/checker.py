"""Check a run's history against the contract: a pure function, no I/O.

Believe only the publishers, the subscriber and the collections, nothing that the service reports
about itself. Judge commands by ``tests.support.contract_rules``. Each rule of the contract's
sections 3, 4 and 6 is a generator of violations.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from itertools import pairwise

from tests.faults.chaos.history import History, ReceivedEvent, RejectedCopy, SentCommand
from tests.support.contract_rules import (
    NEVER,
    Command,
    Document,
    judge,
    parse_command,
    without_times,
)

EVENT_TYPES = {
    "outplan_create": "outplan_created",
    "outplan_update": "outplan_updated",
    "outplan_delete": "outplan_deleted",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise: the rule, the message or outplan that broke it, and the evidence."""

    rule: str
    subject: str
    detail: str


def check(history: History) -> list[Violation]:
    """Return every violation, empty if the service kept all promises."""
    index = HistoryIndex(history)
    rules = (
        _check_answered,
        _check_provenance,
        _check_versions,
        _check_documents,
        _check_received_events,
        _check_event_order,
        _check_single_outcome,
        _check_copies,
        _check_replies,
        _check_command_order,
    )
    return [violation for rule in rules for violation in rule(index)]


class HistoryIndex:
    """Look-ups over a history, by send id, message id and outplan."""

    def __init__(self, history: History) -> None:
        self.history = history
        events = [d.document for d in history.documents if d.collection == "outplan_events"]
        self.outplans = {
            d.document["_id"]: d.document for d in history.documents if d.collection == "outplans"
        }
        self.event_by_id = {event["_id"]: event for event in events}
        self.events_of: dict[str, list[Document]] = defaultdict(list)
        for event in sorted(events, key=lambda e: int(e["version"])):
            self.events_of[event["outplan_id"]].append(event)
        self.copies_of: dict[str, list[RejectedCopy]] = defaultdict(list)
        for copy in history.copies:
            self.copies_of[copy.send_id].append(copy)
        self.replies_to: dict[str, list[Document]] = defaultdict(list)
        for reply in history.replies:
            self.replies_to[reply.send_id].append(json.loads(reply.body))
        self.deliveries_of: dict[str, list[ReceivedEvent]] = defaultdict(list)
        for received in history.events:
            self.deliveries_of[received.message_id].append(received)

    @cached_property
    def sent_by_id(self) -> dict[str, SentCommand]:
        return {sent.send_id: sent for sent in self.history.sent}

    @cached_property
    def commands(self) -> dict[str, Command]:
        """Map send ids to the well-formed commands."""
        return {
            sent.send_id: parse_command(sent.name, sent.body)
            for sent in self.history.sent
            if sent.invalid_code is None
        }

    @cached_property
    def sent_under(self) -> dict[str, list[SentCommand]]:
        """Map each message_id to the sends that may have reached the service."""
        found: dict[str, list[SentCommand]] = defaultdict(list)
        for sent in self.history.sent:
            if sent.outcome != "returned":
                found[sent.message_id].append(sent)
        return found

    @cached_property
    def origins(self) -> dict[str, Command]:
        """Map each event to the command that explains it; leave out unexplained events."""
        found = {}
        for events in self.events_of.values():
            before: Document | None = None
            for event in events:
                if command := self._find_origin(event, before):
                    found[event["_id"]] = command
                before = event["data"]
        return found

    def _find_origin(self, event: Document, before: Document | None) -> Command | None:
        for sent in self.sent_under.get(event["_id"], ()):
            command = self.commands.get(sent.send_id)
            if command is None or EVENT_TYPES[command.name] != event["type"]:
                continue
            ruling = judge(before, event["version"] - 1, command)
            expected = {"id": event["data"]["id"], **(ruling.fields or {})}
            if ruling.outcome == "accepted" and expected == without_times(event["data"]):
                return command
        return None

    def find_event(self, sent: SentCommand) -> Document | None:
        """Return the event that this command, or a resend with equal content, caused."""
        event = self.event_by_id.get(sent.message_id)
        if event is None or sent.invalid_code is not None:
            return None
        return event if self.origins.get(event["_id"]) == self.commands[sent.send_id] else None

    def has_outcome(self, sent: SentCommand) -> bool:
        """Tell whether a copy, a reply or an event proves that the service handled it."""
        proof = self.copies_of[sent.send_id] or self.replies_to[sent.send_id]
        return bool(proof) or self.find_event(sent) is not None

    def document_at(self, outplan_id: str, version: int) -> Document | None:
        data: Document | None = self.events_of[outplan_id][version - 1]["data"] if version else None
        return data


def _check_answered(index: HistoryIndex) -> Iterator[Violation]:
    """Require a reply to each confirmed command: all set reply_to to an unbounded queue."""
    for sent in index.history.sent:
        if sent.outcome == "confirmed" and not index.replies_to[sent.send_id]:
            yield Violation("no reply", sent.send_id, f"confirmed but never answered: {sent}")


def _check_provenance(index: HistoryIndex) -> Iterator[Violation]:
    """Require a sent command behind each event, reply and copy."""
    for id_ in index.event_by_id:
        if id_ not in index.sent_under:
            yield Violation("never sent", id_, "an event has an id that nobody sent")
        elif id_ not in index.origins:
            yield Violation("unexplained event", id_, "no command sent under its id causes it")
    for send_id in index.copies_of.keys() | index.replies_to.keys():
        sent = index.sent_by_id.get(send_id)
        if sent is None or sent.outcome == "returned":
            yield Violation("never sent", send_id, "it has an outcome, but no queue took it")


def _check_versions(index: HistoryIndex) -> Iterator[Violation]:
    """Require versions 1, 2, 3 … and strictly increasing tm_update."""
    for outplan_id, events in index.events_of.items():
        versions = [event["version"] for event in events]
        if versions != list(range(1, len(events) + 1)):
            yield Violation("version gap", outplan_id, f"its versions are {versions}")
        for one, next_ in pairwise(event["data"] for event in events):
            if next_["tm_update"] <= one["tm_update"]:
                yield Violation("wrong tm_update", outplan_id, f"{one} before {next_}")
            if next_["tm_create"] != one["tm_create"]:
                yield Violation("wrong tm_create", outplan_id, f"{one} before {next_}")
        yield from _check_deletions(outplan_id, events)


def _check_deletions(outplan_id: str, events: list[Document]) -> Iterator[Violation]:
    for event in events:
        is_deleted = event["data"]["tm_delete"] != NEVER
        if is_deleted != (event["type"] == "outplan_deleted"):
            yield Violation("wrong tm_delete", outplan_id, f"{event}")


def _check_documents(index: HistoryIndex) -> Iterator[Violation]:
    """Require each document to equal the data of its last event."""
    for outplan_id in index.outplans.keys() | index.events_of.keys():
        events = index.events_of.get(outplan_id)
        document = index.outplans.get(outplan_id)
        if not events or document is None:
            detail = f"{len(events or [])} events, document: {document}"
            yield Violation("document differs", outplan_id, detail)
            continue
        last = {**events[-1]["data"], "_id": outplan_id, "version": events[-1]["version"]}
        last.pop("id")
        if last != document:
            detail = f"the last event has {last}, the document is {document}"
            yield Violation("document differs", outplan_id, detail)


def _check_received_events(index: HistoryIndex) -> Iterator[Violation]:
    """Require the subscriber to have every stored event, as stored, and no other."""
    for id_, event in index.event_by_id.items():
        if id_ not in index.deliveries_of:
            yield Violation("lost event", id_, f"version {event['version']} never arrived")
    for id_, deliveries in index.deliveries_of.items():
        if id_ not in index.event_by_id:
            detail = f"arrived but is not stored: {deliveries[0].body}"
            yield Violation("phantom event", id_, detail)
            continue
        if len({received.body for received in deliveries}) > 1:
            yield Violation("repeat differs", id_, f"{[each.body for each in deliveries]}")
        yield from _compare_with_stored(index.event_by_id[id_], deliveries[0])


def _compare_with_stored(event: Document, received: ReceivedEvent) -> Iterator[Violation]:
    body = json.loads(received.body)
    names = ("type", "version", "time", "data") + (("changed",) if "changed" in body else ())
    differing = [name for name in names if body.get(name) != event.get(name)]
    key = f"{event['type']}.{event['customer_id']}.{event['outplan_id']}"
    if differing or body["id"] != event["_id"] or received.routing_key != key:
        detail = f"{differing}: received {received}, stored {event}"
        yield Violation("event differs", event["_id"], detail)


def _check_event_order(index: HistoryIndex) -> Iterator[Violation]:
    """Require the first delivery of an outplan's events in version order."""
    last: Counter[str] = Counter()
    known: set[str] = set()
    for received in index.history.events:
        event = index.event_by_id.get(received.message_id)
        if event is None or received.message_id in known:
            continue
        known.add(received.message_id)
        id_, version = event["outplan_id"], event["version"]
        if version != last[id_] + 1:
            detail = f"version {version} arrived after version {last[id_]}"
            yield Violation("events out of order", id_, detail)
        last[id_] = version


def _check_single_outcome(index: HistoryIndex) -> Iterator[Violation]:
    """Require one kind of outcome for each command; the order rule checks "unchanged"."""
    for sent in index.history.sent:
        copies, replies = index.copies_of[sent.send_id], index.replies_to[sent.send_id]
        outcomes = {copy.code for copy in copies} | {_outcome_of(reply) for reply in replies}
        if index.find_event(sent) and not outcomes:
            continue
        if len(outcomes) > 1:
            yield Violation("more than one outcome", sent.send_id, f"{sorted(outcomes)}")
        code = sent.invalid_code
        if code and outcomes != {code} and (outcomes or sent.outcome == "confirmed"):
            yield Violation("wrong outcome", sent.send_id, f"{outcomes}, not {code}: {sent}")


def _check_copies(index: HistoryIndex) -> Iterator[Violation]:
    """Require rejected copies equal to the commands, one for each "rejected" reply."""
    for copy in index.history.copies:
        sent = index.sent_by_id.get(copy.send_id)
        if sent is None:
            continue
        for name in ("message_id", "routing_key", "outplan_id", "body"):
            if getattr(copy, name) != getattr(sent, name):
                yield Violation("copy differs", copy.send_id, f"{name}: {copy} of {sent}")
        problem = json.loads(copy.problem)
        if (problem["code"], problem["command_id"]) != (copy.code, sent.message_id or None):
            yield Violation("copy differs", copy.send_id, f"its problem: {copy.problem}")
    for send_id, replies in index.replies_to.items():
        if any(r["status"] == "rejected" for r in replies) and not index.copies_of[send_id]:
            yield Violation("lost copy", send_id, "a reply says rejected, but there is no copy")


def _outcome_of(reply: Document) -> str:
    outcome: str = reply["problem"]["code"] if reply["status"] == "rejected" else reply["status"]
    return outcome


def _check_replies(index: HistoryIndex) -> Iterator[Violation]:
    """Require replies that agree with the stored events."""
    for send_id, replies in index.replies_to.items():
        sent = index.sent_by_id.get(send_id)
        for reply in replies if sent else ():
            assert sent is not None
            yield from _compare_reply(index, sent, reply)


def _compare_reply(index: HistoryIndex, sent: SentCommand, reply: Document) -> Iterator[Violation]:
    if reply["command_id"] != (sent.message_id or None):
        yield Violation("reply to another command", sent.send_id, f"{reply} to {sent}")
    if reply["status"] == "accepted":
        event = index.find_event(sent)
        if event is None or (reply["version"], reply["outplan"]) != (
            event["version"], event["data"],
        ):  # fmt: skip
            yield Violation("reply differs", sent.send_id, f"{reply}, but stored is {event}")
    elif reply["status"] == "unchanged":
        events = index.events_of[reply["outplan"]["id"]]
        stored = [event["data"] for event in events if event["version"] == reply["version"]]
        if stored != [reply["outplan"]]:
            yield Violation("reply differs", sent.send_id, f"{reply}, but stored is {stored}")


def _check_command_order(index: HistoryIndex) -> Iterator[Violation]:
    """Require an order of an outplan's commands in which each one's outcome is right.

    Accepted commands are ordered by version. A command that changed nothing must fit at some
    version. Commands must fit in the order in which the broker took them, as far as it is known:
    a connection's commands in the order of their publishing, and a command after all those that
    the broker had confirmed, on any connection, before its publisher sent it.

    A command that changed nothing takes the earliest version that fits, because that leaves the
    most room for later ones; so one pass over the commands decides.
    """
    taken = _TakenCommands(sum(slack.seconds for slack in index.history.slack))
    # The sort is stable: a connection's commands stay in their order.
    for sent in sorted(index.history.sent, key=lambda s: s.published_at):
        if sent.invalid_code is not None or sent.outcome == "returned":
            continue
        earliest, before = taken.find_predecessor(sent)
        version = _find_version(index, sent, earliest)
        if version is not None:
            taken.add(sent, version)
        elif sent.outcome == "confirmed" or index.has_outcome(sent):
            yield _explain_misfit(index, sent, earliest, before)


class _TakenCommands:
    """The commands that the broker took, each at the version that the outplan had after it.

    Add commands in the order of their publishing. ``slack`` is the seconds within which the broker
    may change the order of commands on two connections.
    """

    def __init__(self, slack: float) -> None:
        self._slack = slack
        # The latest version and the command that is there, for each outplan of each connection.
        self._by_connection: dict[tuple[str, str], tuple[int, str]] = {}
        self._by_outplan: dict[str, tuple[int, str]] = {}
        # Commands that are not confirmed yet at the time of the current one, by that time.
        self._unconfirmed: list[tuple[float, str, str, int]] = []

    def add(self, sent: SentCommand, version: int) -> None:
        """Add a command. An unknown one may have arrived after all later ones: it orders none."""
        if sent.outcome != "confirmed" or sent.confirmed_at is None:
            return
        self._by_connection[sent.connection, sent.outplan_id] = (version, sent.send_id)
        due = sent.confirmed_at + self._slack
        heappush(self._unconfirmed, (due, sent.send_id, sent.outplan_id, version))

    def find_predecessor(self, sent: SentCommand) -> tuple[int, str]:
        """Return the latest version, and the id of its send, that must be before this command."""
        while self._unconfirmed and self._unconfirmed[0][0] < sent.published_at:
            _, send_id, outplan_id, version = heappop(self._unconfirmed)
            known = self._by_outplan.get(outplan_id, (0, ""))
            self._by_outplan[outplan_id] = max(known, (version, send_id))
        return max(
            self._by_outplan.get(sent.outplan_id, (0, "")),
            self._by_connection.get((sent.connection, sent.outplan_id), (0, "")),
        )


def _find_version(index: HistoryIndex, sent: SentCommand, earliest: int) -> int | None:
    """Return the first version from ``earliest`` on at which the outcome is right."""
    candidates = (
        _find_accepted_version(index, sent, earliest),
        _find_traceless_version(index, sent, earliest),
    )
    return min((version for version in candidates if version is not None), default=None)


def _find_accepted_version(index: HistoryIndex, sent: SentCommand, earliest: int) -> int | None:
    """Place the command as the one that caused the event, or as a duplicate of that one."""
    event = index.find_event(sent)
    if event is None or index.copies_of[sent.send_id]:
        return None
    version: int = event["version"]
    may_be_duplicate = len(index.sent_under[sent.message_id]) > 1
    return max(version, earliest) if may_be_duplicate or version > earliest else None


def _find_traceless_version(index: HistoryIndex, sent: SentCommand, earliest: int) -> int | None:
    """Place the command as one that changed nothing."""
    replies = index.replies_to[sent.send_id]
    if any(reply["status"] == "accepted" for reply in replies):
        return None
    outcomes = {copy.code for copy in index.copies_of[sent.send_id]} or {"unchanged"}
    exact = {version for reply in replies if (version := _version_in(reply)) is not None}
    last = len(index.events_of.get(sent.outplan_id, ()))
    for version in range(earliest, last + 1):
        if (not exact or version in exact) and outcomes <= _possible_outcomes(index, sent, version):
            return version
    return None


def _version_in(reply: Document) -> int | None:
    """Return the outplan's version that a reply shows, if it shows one."""
    if reply["status"] == "rejected":
        current: int | None = reply["problem"].get("current_version")
        return current
    version: int = reply["version"]
    return version


def _possible_outcomes(index: HistoryIndex, sent: SentCommand, version: int) -> set[str]:
    """Return the outcomes that the contract allows if the command is judged at that version."""
    command = index.commands[sent.send_id]
    before = index.document_at(sent.outplan_id, version) if version else None
    judged = {judge(before, version, command).outcome}
    other = index.event_by_id.get(sent.message_id)
    if other is None or index.origins.get(other["_id"]) == command:
        return judged
    if other["outplan_id"] != sent.outplan_id:
        return judged | {"message_id_reused"}
    return {"message_id_reused"} if other["version"] <= version else judged


def _explain_misfit(
    index: HistoryIndex, sent: SentCommand, earliest: int, before: str
) -> Violation:
    event = index.find_event(sent)
    codes = sorted({copy.code for copy in index.copies_of[sent.send_id]})
    if event is None and not codes and not index.replies_to[sent.send_id]:
        detail = f"no event, no copy, and it would have changed something: {sent}"
        return Violation("lost command", sent.send_id, detail)
    outcome = f"version {event['version']}" if event else f"{codes or 'unchanged'}"
    since = f"{earliest} (of {before})" if before else f"{earliest}"
    detail = f"{outcome} is wrong at every version from {since} on: {sent}"
    return Violation("commands out of order", sent.send_id, detail)
