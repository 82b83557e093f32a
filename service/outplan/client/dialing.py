"""How a dialer obeys an outplan, as pure functions: no clock, no I/O, no state.

Times are aware datetimes, and a naive one raises ValueError; durations are milliseconds. The
rules are numbered as in ``docs/dialing.md``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from outplan.contract.fields import NEVER, DialTimeout, Integer
from outplan.contract.messages import Address, Outplan

DESTINATIONS: Final = 5
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)

Status = Literal["idle", "progressing", "done"]
Destination = Address | Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to reach: up to five destinations, how often each was tried, and how it stands.

    A destination that is None, ``{}`` or has an empty target counts as absent. ``last_ended`` is
    when the last attempt ended, ``last_changed`` when anything changed (by default ``last_ended``);
    both aware. Subclass it to carry an id. ValueError for what cannot be. Rules 1, 2 and 4.
    """

    destinations: tuple[Destination | None, ...]
    try_counts: tuple[int, ...] = (0,) * DESTINATIONS
    last_ended: datetime | None = None
    last_changed: datetime | None = None
    status: Status = "idle"

    def __post_init__(self) -> None:
        if len(self.destinations) > DESTINATIONS:
            raise ValueError(f"a target has up to {DESTINATIONS} destinations")
        if len(self.try_counts) != DESTINATIONS or min(self.try_counts) < 0:
            raise ValueError(f"a target has {DESTINATIONS} try counts, none below 0")
        if self.status not in get_args(Status):
            raise ValueError(f"status is one of {', '.join(get_args(Status))}")
        for moment in (self.last_ended, self.last_changed):
            _utc(moment or _LONG_AGO)


class NoAttempt(StrEnum):
    """Why a target gets no attempt, whatever the time; the first that applies.

    An outplan whose maxima are all 0 leaves every target exhausted. Rules 1, 3, 5 and 6.
    """

    OUTPLAN_DELETED = "outplan deleted"
    TARGET_NOT_IDLE = "target not idle"
    NO_DESTINATIONS = "no destinations"
    ALL_EXHAUSTED = "all exhausted"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The attempt that a target gets next, unless the outplan or the target changes before.

    ``number`` counts from 1 for each destination, ``not_before`` is in UTC, and ``dial_timeout``
    is how long to let it ring, in milliseconds. Rules 2, 3 and 8.
    """

    index: int
    destination: Destination
    number: int
    not_before: datetime
    dial_timeout: int

    @property
    def ring_timeout(self) -> timedelta:
        """How long to let it ring: ``dial_timeout`` as a timedelta. Rule 8."""
        return timedelta(milliseconds=self.dial_timeout)


TargetT = TypeVar("TargetT", bound=Target)


def next_attempt(
    outplan: Outplan | Mapping[str, Any], target: Target, now: datetime
) -> Attempt | NoAttempt:
    """Say which attempt a target gets next and not before when, or why it gets none.

    ``outplan`` is the document or an event's ``data``. ``not_before`` is ``now`` where it may be
    dialled at once, and later while the interval runs. ValueError for a naive ``now`` and for
    what is no outplan. Rules 2, 3, 6, 7 and 8.
    """
    return _judge(_Strategy.of(outplan), target, _utc(now))


def dialable(
    outplan: Outplan | Mapping[str, Any], targets: Iterable[TargetT], now: datetime
) -> list[tuple[TargetT, Attempt]]:
    """Pick the targets that may be dialled now, the one changed longest ago first.

    One whose interval still runs is left out, so that it holds up nobody; targets changed at the
    same time keep their order. ValueError as of ``next_attempt``. Rule 1.
    """
    strategy, moment = _Strategy.of(outplan), _utc(now)
    judged = ((target, _judge(strategy, target, moment)) for target in targets)
    due = [
        (target, attempt)
        for target, attempt in judged
        if isinstance(attempt, Attempt) and attempt.not_before <= moment
    ]
    return sorted(due, key=lambda pair: _changed(pair[0]))


def started(target: TargetT, index: int) -> TargetT:
    """Note that an attempt at one destination starts: it counts from here on.

    ValueError where the target is not idle or has no destination of that index. Rule 4.
    """
    if target.status != "idle":
        raise ValueError(f"an attempt starts at an idle target, and this one is {target.status}")
    if index not in _present(target):
        raise ValueError(f"there is no destination {index}")
    counts = tuple(count + (each == index) for each, count in enumerate(target.try_counts))
    return replace(target, try_counts=counts, status="progressing")


def ended(target: TargetT, when: datetime, success: bool) -> TargetT:
    """Note that the attempt ended: success ends the target, anything else makes it idle again.

    The interval runs from ``when``. ValueError for a naive ``when`` and where no attempt is in
    progress. Rules 4 and 5.
    """
    if target.status != "progressing":
        raise ValueError(f"no attempt is in progress, the target is {target.status}")
    status: Status = "done" if success else "idle"
    return replace(target, last_ended=_utc(when), last_changed=_utc(when), status=status)


class _Strategy(BaseModel):
    """The fields of an outplan that a dialer obeys; any other field may come and go.

    Below 0 the interval and the maxima mean what 0 means (rule 6).
    """

    model_config = ConfigDict(extra="ignore", frozen=True, from_attributes=True)

    dial_timeout: DialTimeout
    try_interval: Annotated[Integer, Field(le=2_147_483_647)]
    max_try_count_0: Integer
    max_try_count_1: Integer
    max_try_count_2: Integer
    max_try_count_3: Integer
    max_try_count_4: Integer
    # VoIPBIN writes this as the contract does, in RFC 3339, or null, by its age.
    tm_delete: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d[ T]")] | None

    @classmethod
    def of(cls, outplan: Outplan | Mapping[str, Any]) -> Self:
        return cls.model_validate(dict(outplan) if isinstance(outplan, Mapping) else outplan)

    @property
    def deleted(self) -> bool:
        return self.tm_delete is not None and self.tm_delete[:10] != NEVER[:10]

    def max_try_count(self, index: int) -> int:
        maximum: int = getattr(self, f"max_try_count_{index}")
        return maximum

    def not_before(self, last_ended: datetime | None, now: datetime) -> datetime:
        if last_ended is None or self.try_interval <= 0:
            return now
        return max(now, _utc(last_ended) + timedelta(milliseconds=self.try_interval))


def _judge(strategy: _Strategy, target: Target, now: datetime) -> Attempt | NoAttempt:
    if strategy.deleted:
        return NoAttempt.OUTPLAN_DELETED
    if target.status != "idle":
        return NoAttempt.TARGET_NOT_IDLE
    present = _present(target)
    for index, destination in present.items():
        tried = target.try_counts[index]
        if tried < strategy.max_try_count(index):
            not_before = strategy.not_before(target.last_ended, now)
            return Attempt(index, destination, tried + 1, not_before, strategy.dial_timeout)
    return NoAttempt.ALL_EXHAUSTED if present else NoAttempt.NO_DESTINATIONS


def _present(target: Target) -> dict[int, Destination]:
    return {
        index: destination
        for index, destination in enumerate(target.destinations)
        if destination is not None and not _is_blank(destination)
    }


def _is_blank(destination: Destination) -> bool:
    if isinstance(destination, Address):
        return not destination.target
    return not destination.get("target")


def _changed(target: Target) -> datetime:
    return _utc(target.last_changed or target.last_ended or _LONG_AGO)


def _utc(moment: datetime) -> datetime:
    """In UTC, where sums and comparisons hold: within a zone Python does both by the wall clock."""
    if moment.utcoffset() is None:
        raise ValueError(f"{moment} has no time zone; give aware datetimes")
    return moment.astimezone(UTC)
