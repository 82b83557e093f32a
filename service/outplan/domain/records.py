"""Values that the store keeps: events with their digests, fences, recorded outcomes. Pure."""

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

    ``crashes`` counts the sessions in a row before this one that did not end cleanly.
    """

    queue: str
    epoch: int
    outcomes: tuple[RecordedOutcome, ...] = ()
    attempt: Attempt | None = None
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The stored values that a batch needs, as of the start of its transaction.

    ``states`` by outplan id, ``records`` by command id, ``past`` by the versions asked for.
    """

    states: dict[str, State] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    past: dict[OutplanVersion, State] = field(default_factory=dict)
