"""Decide what a command does to an outplan. Pure: no clock, no I/O, no randomness."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from outplan.contract.fields import NEVER, derive_outplan_id
from outplan.contract.messages import Command, Create, Delete, Event, EventType, Outplan, Update
from outplan.contract.times import format_time

_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class State:
    """An outplan and its version."""

    outplan: Outplan
    version: int


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The decision on a command that changes nothing."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The decision to reject a command, with one of the contract's codes."""

    code: str
    detail: str
    current_version: int | None = None


Decision = Event | Unchanged | Refusal


def find_outplan_id(command: Command, command_id: str) -> str:
    """Return the id of a command's outplan; derive it for a create without one."""
    return command.id or derive_outplan_id(command_id)


def decide(state: State | None, command: Command, command_id: str, now: str) -> Decision:
    """Decide on one command, given the state of its outplan.

    ``now`` is a UTC time in the contract's form.
    """
    if isinstance(command, Create):
        return _create(state, command, command_id, now)
    if refusal := _refuse(state, command):
        return refusal
    assert state is not None
    if isinstance(command, Update):
        return _update(state, command, command_id, now)
    return _delete(state, command_id, now)


def evolve(state: State | None, event: Event) -> State:
    """Apply an event to the state before it. Raises ValueError for a gap in versions."""
    expected = 1 if state is None else state.version + 1
    if event.version != expected:
        raise ValueError(f"event {event.id!r} has version {event.version}, not {expected}")
    return State(event.data, event.version)


def _create(state: State | None, command: Create, command_id: str, now: str) -> Decision:
    if state is not None:
        return Refusal("already_exists", "the id is in use, or was; choose another")
    fields = {name: getattr(command, name) for name in Create.model_fields}
    fields["id"] = find_outplan_id(command, command_id)
    outplan = Outplan.model_construct(**fields, tm_create=now, tm_update=now, tm_delete=NEVER)
    return _event("outplan_created", command_id, 1, outplan)


def _refuse(state: State | None, command: Update | Delete) -> Refusal | None:
    absent = state is None or command.customer_id not in (None, state.outplan.customer_id)
    if absent or (state and state.outplan.deleted and isinstance(command, Update)):
        return Refusal("not_found", f"no outplan {command.id} to {_verb(command)}")
    assert state is not None
    if command.expected_version not in (None, state.version):
        return Refusal(
            "version_conflict",
            f"expected version {command.expected_version}, the outplan has {state.version}",
            state.version,
        )
    return None


def _update(state: State, command: Update, command_id: str, now: str) -> Decision:
    wanted = {
        name: getattr(command, name)
        for name in Update.CHANGEABLE
        if name in command.model_fields_set
    }
    changes = {
        name: value for name, value in wanted.items() if value != getattr(state.outplan, name)
    }
    if not changes:
        return Unchanged()
    outplan = state.outplan.model_copy(update={**changes, "tm_update": _after(state, now)})
    return _event("outplan_updated", command_id, state.version + 1, outplan, tuple(changes))


def _delete(state: State, command_id: str, now: str) -> Decision:
    if state.outplan.deleted:
        return Unchanged()
    time = _after(state, now)
    outplan = state.outplan.model_copy(update={"tm_update": time, "tm_delete": time})
    return _event("outplan_deleted", command_id, state.version + 1, outplan)


def _after(state: State, now: str) -> str:
    """Return ``now``, or a time just after the last change if this clock is behind."""
    last = state.outplan.tm_update
    if now > last:
        return now
    return format_time(datetime.fromisoformat(last) + _MICROSECOND)


def _event(
    type_: EventType,
    command_id: str,
    version: int,
    outplan: Outplan,
    changed: tuple[str, ...] | None = None,
) -> Event:
    return Event.model_construct(
        id=command_id,
        type=type_,
        version=version,
        time=outplan.tm_update,
        changed=changed,
        data=outplan,
    )


def _verb(command: Update | Delete) -> str:
    return "update" if isinstance(command, Update) else "delete"
