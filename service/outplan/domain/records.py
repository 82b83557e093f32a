"""Values that the store keeps: events with their digests, fences, recorded outcomes."""

from dataclasses import dataclass, field
from typing import NamedTuple

from outplan.contract.messages import Event
from outplan.domain.decider import State


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
