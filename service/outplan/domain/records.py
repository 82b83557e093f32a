"""Values that the store keeps: events with their digests, fences, recorded outcomes. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from outplan.contract.messages import Event
from outplan.domain.decider import State


class Record(NamedTuple):
    """An event with the digest of the command that caused it."""

    event: Event
    digest: str


# An outplan's id and one of its versions.
OutplanVersion = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RecordedOutcome:
    """The outcome of a command that left no event, kept while it can be redelivered.

    ``fingerprint`` is the delivery's. ``code`` is None for an unchanged outplan. ``version`` is
    the version that an unchanged or conflicting command was compared with.
    """

    fingerprint: str
    tag: int
    code: str | None = None
    detail: str = ""
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One handling of a suspected poison message, recorded before it starts.

    An attempt that is still on the fence when a worker starts has ended another worker.
    """

    fingerprint: str
    number: int


@dataclass(frozen=True, slots=True)
class Fence:
    """A worker's claim on a command queue. ``epoch`` is the fencing token.

    ``crashes`` counts the sessions in a row before this one that did not end cleanly. ``lag`` is
    the age in seconds of the oldest command of a batch; None if no command has a timestamp.
    """

    queue: str
    epoch: int
    outcomes: tuple[RecordedOutcome, ...] = ()
    attempt: Attempt | None = None
    crashes: int = 0
    lag: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker announces about itself once a second.

    ``active`` names the queues of which it is the single active consumer, ``unacked`` counts the
    deliveries that it has not acked, and ``failures`` has the last error of each failed component.
    ``unordered`` counts the commands that it got outside of their partition.
    """

    active: tuple[str, ...] = ()
    unacked: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    unordered: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The stored values that a batch needs, as of the start of its transaction.

    ``states`` by outplan id, ``records`` by command id, ``past`` by the versions asked for.
    """

    states: dict[str, State] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    past: dict[OutplanVersion, State] = field(default_factory=dict)
