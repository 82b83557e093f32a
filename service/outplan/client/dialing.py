"""Apply an outplan's dialing rules. Pure functions: no clock, no I/O, no state.

Times are aware datetimes; a naive one raises ValueError. Durations are milliseconds. The rules
have the numbers of ``docs/dialing.md``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from outplan.contract.fields import NEVER, DialTimeout, Integer
from outplan.contract.invalid import describe_invalid
from outplan.contract.messages import Address, Outplan

DESTINATIONS: Final = 5
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)

Status = Literal["idle", "progressing", "done"]
Destination = Address | Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Up to five destinations for one person, a try count for each, and a status.

    A destination counts as absent if it is None, ``{}`` or has an empty target. ``last_ended`` is
    the end of the last attempt, ``last_changed`` the time of the last change (by default
    ``last_ended``); both are aware. Subclass it to carry an id. Raises ValueError for an invalid
    field, TypeError for a destination that is none of these. Rules 1, 2 and 4.
    """

    destinations: tuple[Destination | None, ...]
    try_counts: tuple[int, ...] = (0,) * DESTINATIONS
    last_ended: datetime | None = None
    last_changed: datetime | None = None
    status: Status = "idle"

    def __post_init__(self) -> None:
        if isinstance(self.destinations, str | Mapping | Address):
            raise TypeError(f"destinations are a tuple of up to {DESTINATIONS}, not a single one")
        for index, destination in enumerate(self.destinations):
            if not isinstance(destination, Address | Mapping | None):
                raise TypeError(
                    f"destination {index} is a {type(destination).__name__}: pass an Address or "
                    'a mapping, such as {"type": "tel", "target": "+15551234567"}'
                )
        if len(self.destinations) > DESTINATIONS:
            raise ValueError(f"a target has at most {DESTINATIONS} destinations")
        if len(self.try_counts) != DESTINATIONS or min(self.try_counts) < 0:
            raise ValueError(f"a target has {DESTINATIONS} try counts of 0 or more")
        if self.status not in get_args(Status):
            raise ValueError(f"status is one of {', '.join(get_args(Status))}")
        for moment in (self.last_ended, self.last_changed):
            _to_utc(moment or _LONG_AGO)


class NoAttempt(StrEnum):
    """The first reason that keeps a target from any attempt, at any time.

    If all maxima of an outplan are 0, every target is exhausted. Rules 1, 3, 5 and 6.
    """

    OUTPLAN_DELETED = "outplan deleted"
    TARGET_NOT_IDLE = "target not idle"
    NO_DESTINATIONS = "no destinations"
    ALL_EXHAUSTED = "all exhausted"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A target's next attempt, valid until the outplan or the target changes.

    ``number`` counts from 1 for each destination. ``not_before`` is in UTC. Let it ring for
    ``dial_timeout`` milliseconds. Rules 2, 3 and 8.
    """

    index: int
    destination: Destination
    number: int
    not_before: datetime
    dial_timeout: int

    @property
    def ring_timeout(self) -> timedelta:
        """``dial_timeout`` as a timedelta. Rule 8."""
        return timedelta(milliseconds=self.dial_timeout)


TargetT = TypeVar("TargetT", bound=Target)


def next_attempt(
    outplan: Outplan | Mapping[str, Any], target: Target, now: datetime
) -> Attempt | NoAttempt:
    """Return a target's next attempt, or the reason why it gets none.

    ``outplan`` is the document or an event's ``data``. ``not_before`` is ``now`` if you may dial at
    once, and the end of the interval while that runs. Raises ValueError for a naive ``now`` and for
    an invalid outplan. Rules 2, 3, 6, 7 and 8.
    """
    return _find_next(_Strategy.of(outplan), target, _to_utc(now))


def dialable(
    outplan: Outplan | Mapping[str, Any], targets: Iterable[TargetT], now: datetime
) -> list[tuple[TargetT, Attempt]]:
    """Return the targets that you may dial now with their attempts, the oldest change first.

    A target whose interval still runs is left out, so it does not hold up the others. Targets that
    changed at the same time keep their order. Raises ValueError as ``next_attempt`` does. Rule 1.
    """
    strategy, moment = _Strategy.of(outplan), _to_utc(now)
    answers = ((target, _find_next(strategy, target, moment)) for target in targets)
    due = [
        (target, attempt)
        for target, attempt in answers
        if isinstance(attempt, Attempt) and attempt.not_before <= moment
    ]
    return sorted(due, key=lambda pair: _get_last_change(pair[0]))


def start_attempt(target: TargetT, index: int) -> TargetT:
    """Return the target as ``progressing``, one destination's try count raised by 1.

    Raises ValueError if the target is not idle or has no destination at that index. Rule 4.
    """
    if target.status != "idle":
        raise ValueError(f"the target is {target.status}: only an idle one can start an attempt")
    if index not in _find_present(target):
        raise ValueError(f"the target has no destination {index}")
    counts = tuple(count + (each == index) for each, count in enumerate(target.try_counts))
    return replace(target, try_counts=counts, status="progressing")


def end_attempt(target: TargetT, when: datetime, success: bool) -> TargetT:
    """Return the target as ``done`` after a success, and as ``idle`` after anything else.

    The interval runs from ``when``. Raises ValueError for a naive ``when`` and if no attempt is in
    progress. Rules 4 and 5.
    """
    if target.status != "progressing":
        raise ValueError(f"the target is {target.status}: it has no attempt to end")
    status: Status = "done" if success else "idle"
    return replace(target, last_ended=_to_utc(when), last_changed=_to_utc(when), status=status)


class _Strategy(BaseModel):
    """The fields of an outplan that a dialer obeys. Ignores any other field.

    An interval or a maximum below 0 means 0 (rule 6).
    """

    model_config = ConfigDict(extra="ignore", frozen=True, from_attributes=True)

    dial_timeout: DialTimeout
    try_interval: Annotated[Integer, Field(le=2_147_483_647)]
    max_try_count_0: Integer
    max_try_count_1: Integer
    max_try_count_2: Integer
    max_try_count_3: Integer
    max_try_count_4: Integer
    # VoIPBIN writes the contract's form, RFC 3339 or null, depending on its version.
    tm_delete: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d[ T]")] | None

    @classmethod
    def of(cls, outplan: Outplan | Mapping[str, Any]) -> Self:
        try:
            return cls.model_validate(dict(outplan) if isinstance(outplan, Mapping) else outplan)
        except ValidationError as error:
            raise ValueError(f"this is no outplan to dial by: {describe_invalid(error)}") from None

    @property
    def is_deleted(self) -> bool:
        return self.tm_delete is not None and self.tm_delete[:10] != NEVER[:10]

    def max_try_count(self, index: int) -> int:
        maximum: int = getattr(self, f"max_try_count_{index}")
        return maximum

    def not_before(self, last_ended: datetime | None, now: datetime) -> datetime:
        if last_ended is None or self.try_interval <= 0:
            return now
        return max(now, _to_utc(last_ended) + timedelta(milliseconds=self.try_interval))


def _find_next(strategy: _Strategy, target: Target, now: datetime) -> Attempt | NoAttempt:
    if strategy.is_deleted:
        return NoAttempt.OUTPLAN_DELETED
    if target.status != "idle":
        return NoAttempt.TARGET_NOT_IDLE
    present = _find_present(target)
    for index, destination in present.items():
        tried = target.try_counts[index]
        if tried < strategy.max_try_count(index):
            not_before = strategy.not_before(target.last_ended, now)
            return Attempt(index, destination, tried + 1, not_before, strategy.dial_timeout)
    return NoAttempt.ALL_EXHAUSTED if present else NoAttempt.NO_DESTINATIONS


def _find_present(target: Target) -> dict[int, Destination]:
    return {
        index: destination
        for index, destination in enumerate(target.destinations)
        if destination is not None and not _is_blank(destination)
    }


def _is_blank(destination: Destination) -> bool:
    if isinstance(destination, Address):
        return not destination.target
    return not destination.get("target")


def _get_last_change(target: Target) -> datetime:
    return _to_utc(target.last_changed or target.last_ended or _LONG_AGO)


def _to_utc(moment: datetime) -> datetime:
    # Within a zone Python adds and compares wall clock times, wrong when the clocks change.
    if moment.utcoffset() is None:
        raise ValueError(f"{moment} has no time zone: pass an aware datetime")
    return moment.astimezone(UTC)
