"""The history of a run: commands sent and effects observed, as JSON lines that can be replayed."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final, Literal

from tests.support.command_generator import Draft

Document = dict[str, Any]

# confirmed: the broker has it. returned: no queue took it. unknown: the connection broke first,
# so it may arrive at any later time, or never.
PublishOutcome = Literal["confirmed", "returned", "unknown"]


@dataclass(frozen=True, slots=True)
class SentCommand:
    """One publish. ``send_id`` is its correlation id, unique to it.

    A connection's entries stand in publish order. ``published_at`` is before the broker can have
    it, ``confirmed_at`` after the broker's confirm: seconds since the start. ``invalid_code`` is
    the problem code that its form alone calls for, or None. ``body`` is decoded as Latin-1, which
    takes any bytes.
    """

    send_id: str
    connection: str
    published_at: float
    confirmed_at: float | None
    name: str
    routing_key: str
    message_id: str
    outplan_id: str
    body: str
    outcome: PublishOutcome
    invalid_code: str | None = None

    @classmethod
    def from_draft(
        cls,
        draft: Draft,
        send_id: str,
        connection: str,
        outcome: PublishOutcome,
        published_at: float,
        confirmed_at: float | None,
    ) -> "SentCommand":
        return cls(
            send_id=send_id,
            connection=connection,
            published_at=published_at,
            confirmed_at=confirmed_at,
            name=draft.name,
            routing_key=draft.routing_key,
            message_id=draft.message_id,
            outplan_id=draft.outplan_id,
            body=draft.body.decode("latin-1"),
            outcome=outcome,
            invalid_code=draft.invalid_code,
        )


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event as the durable subscriber received it, in order of arrival."""

    message_id: str
    routing_key: str
    body: str


@dataclass(frozen=True, slots=True)
class ReceivedReply:
    """A reply; ``send_id`` is its correlation id."""

    send_id: str
    body: str


@dataclass(frozen=True, slots=True)
class RejectedCopy:
    """A message in the queue of rejected commands."""

    send_id: str
    message_id: str
    routing_key: str
    outplan_id: str
    body: str
    code: str
    problem: str


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document in MongoDB at the end of the run."""

    collection: Literal["outplans", "outplan_events"]
    document: Document


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault that the nemesis injected ``at`` seconds after the start."""

    at: float
    name: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OrderSlack:
    """The servers' limit: seconds within which commands on two connections may change places.

    The nodes of a cluster learn of a changed binding one after the other.
    """

    seconds: float


Entry = (
    SentCommand
    | ReceivedEvent
    | ReceivedReply
    | RejectedCopy
    | StoredDocument
    | InjectedFault
    | OrderSlack
)


@dataclass(slots=True)
class History:
    """Everything that the checker may know about a run.

    ``slack`` has one entry, or none: then the order of commands holds over all connections.
    """

    sent: list[SentCommand] = field(default_factory=list)
    events: list[ReceivedEvent] = field(default_factory=list)
    replies: list[ReceivedReply] = field(default_factory=list)
    copies: list[RejectedCopy] = field(default_factory=list)
    documents: list[StoredDocument] = field(default_factory=list)
    faults: list[InjectedFault] = field(default_factory=list)
    slack: list[OrderSlack] = field(default_factory=list)
    since: float = field(default_factory=monotonic, compare=False)

    def now(self) -> float:
        """Return the seconds since the start."""
        return round(monotonic() - self.since, 6)

    def add(self, entry: Entry) -> None:
        self._lists()[type(entry)].append(entry)

    def entries(self) -> Iterator[Entry]:
        for entries in self._lists().values():
            yield from entries

    def _lists(self) -> Mapping[type[Entry], list[Any]]:
        return {
            SentCommand: self.sent,
            ReceivedEvent: self.events,
            ReceivedReply: self.replies,
            RejectedCopy: self.copies,
            StoredDocument: self.documents,
            InjectedFault: self.faults,
            OrderSlack: self.slack,
        }


_KINDS: Final[Mapping[str, type[Entry]]] = {kind.__name__: kind for kind in History()._lists()}


def write(history: History, path: Path) -> None:
    """Write a history to a file, one JSON object a line."""
    with path.open("w") as file:
        for entry in history.entries():
            file.write(json.dumps({"kind": type(entry).__name__, **asdict(entry)}) + "\n")


def read(lines: Iterable[str]) -> History:
    """Read a history that ``write`` wrote."""
    history = History()
    for line in lines:
        fields = json.loads(line)
        history.add(_KINDS[fields.pop("kind")](**fields))
    return history
