"""The rules of contract section 3, by examples and by properties."""

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outplan.contract import schemas
from outplan.contract.fields import NEVER
from outplan.contract.messages import Command, Create, Event, Outplan, Update
from outplan.contract.times import format_time
from outplan.domain.codec import encode_event
from outplan.domain.decider import (
    Decision,
    Refusal,
    State,
    Unchanged,
    decide,
    evolve,
    find_outplan_id,
)
from tests.support.samples import (
    BEFORE,
    CUSTOMER,
    ID,
    LATER,
    NOW,
    OTHER_CUSTOMER,
    OTHER_ID,
    SOURCE,
    create,
    create_body,
    delete,
    deleted_state,
    outplan,
    state,
    update,
)

EVERY_CHANGE: dict[str, Any] = {
    "name": "second",
    "detail": "words",
    "source": {"type": "email", "target": "a@b.example"},
    "dial_timeout": 1_000,
    "try_interval": 0,
    **{f"max_try_count_{n}": n + 1 for n in range(5)},
}


def accept(decision: Decision) -> Event:
    assert isinstance(decision, Event), decision
    return decision


def reject(decision: Decision) -> Refusal:
    assert isinstance(decision, Refusal), decision
    return decision


# --- create ------------------------------------------------------------------------------------


def test_a_create_causes_version_1_with_the_commands_id() -> None:
    event = accept(decide(None, create(), "command-1", NOW))
    assert (event.id, event.type, event.version, event.time) == (
        "command-1", "outplan_created", 1, NOW,
    )  # fmt: skip
    assert event.changed is None


def test_a_create_keeps_every_field_and_adds_the_defaults() -> None:
    event = accept(decide(None, create(), "command-1", NOW))
    assert event.data.model_dump() == {
        "id": ID,
        "customer_id": CUSTOMER,
        "name": "first",
        "detail": "",
        "source": {**SOURCE, "target_name": "", "name": "", "detail": ""},
        "dial_timeout": 30_000,
        "try_interval": 60_000,
        **{f"max_try_count_{n}": 0 for n in range(5)},
        "tm_create": NOW,
        "tm_update": NOW,
        "tm_delete": NEVER,
    }


def test_a_create_keeps_what_its_sender_chose() -> None:
    event = accept(decide(None, create(**EVERY_CHANGE), "command-1", NOW))
    given_ = create(**EVERY_CHANGE).model_dump()
    assert event.data.model_dump(include=set(given_)) == given_


def test_a_create_with_a_used_id_is_rejected() -> None:
    assert reject(decide(state(), create(), "command-2", NOW)).code == "already_exists"


def test_a_create_with_a_deleted_outplans_id_is_rejected() -> None:
    assert reject(decide(deleted_state(), create(), "command-2", NOW)).code == "already_exists"


def test_a_create_with_another_customers_id_reveals_nothing_of_that_customer() -> None:
    refusal = reject(
        decide(state(name="private"), create(customer_id=OTHER_CUSTOMER), "command-2", NOW)
    )
    assert refusal.code == "already_exists"
    assert refusal.current_version is None
    assert CUSTOMER not in refusal.detail
    assert "private" not in refusal.detail


def test_a_derived_id_depends_on_the_message_id_alone() -> None:
    one = Create.model_validate({"customer_id": CUSTOMER, "name": "a", "source": SOURCE})
    two = Create.model_validate({"customer_id": OTHER_CUSTOMER, "name": "b", "source": SOURCE})
    assert find_outplan_id(one, "command-1") == find_outplan_id(two, "command-1")
    assert find_outplan_id(one, "command-1") != find_outplan_id(one, "command-2")
    # Pinned: another namespace after an upgrade would turn a redelivery into a second outplan.
    assert find_outplan_id(one, "command-1") == "3d1529a4-a2ee-5156-85ab-e493e97111a8"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=255))
def test_a_derived_id_is_a_stored_uuid_whatever_the_message_id(command_id: str) -> None:
    command = Create.model_validate({"customer_id": CUSTOMER, "name": "a", "source": SOURCE})
    id_ = find_outplan_id(command, command_id)
    assert str(UUID(id_)) == id_
    event = accept(decide(None, command, command_id, NOW))
    assert event.data.id == id_


def test_a_given_id_is_used() -> None:
    assert find_outplan_id(create(), "command-1") == ID
    assert find_outplan_id(update(name="x"), "command-1") == ID
    assert find_outplan_id(delete(), "command-1") == ID


# --- update ------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", EVERY_CHANGE)
def test_an_update_changes_its_field_and_no_other(field: str) -> None:
    before = state()
    command = update(**{field: EVERY_CHANGE[field]})
    event = accept(decide(before, command, "command-2", LATER))
    expected = {
        **before.outplan.model_dump(),
        field: command.model_dump()[field],
        "tm_update": LATER,
    }
    assert event.data.model_dump() == expected
    assert event.changed == (field,)
    assert (event.id, event.type, event.version, event.time) == (
        "command-2", "outplan_updated", 2, LATER,
    )  # fmt: skip


def test_an_update_of_everything_lists_every_field_in_the_documents_order() -> None:
    event = accept(decide(state(), update(**EVERY_CHANGE), "command-2", LATER))
    assert event.changed == Update.CHANGEABLE
    assert [name for name in Outplan.model_fields if name in event.changed] == list(event.changed)


def test_changed_lists_only_fields_with_a_new_value() -> None:
    command = update(name="second", detail="", dial_timeout=30_000, try_interval=0)
    event = accept(decide(state(), command, "command-2", LATER))
    assert event.changed == ("name", "try_interval")


def test_an_update_to_the_same_values_is_unchanged() -> None:
    same = {name: value for name, value in create().model_dump().items() if name in EVERY_CHANGE}
    assert decide(state(), update(**same), "command-2", LATER) == Unchanged()


def test_a_source_is_compared_in_its_stored_form() -> None:
    whole = {**SOURCE, "target_name": "", "name": "", "detail": ""}
    assert decide(state(), update(source=SOURCE), "command-2", LATER) == Unchanged()
    assert decide(state(), update(source=whole), "command-2", LATER) == Unchanged()


def test_a_source_is_replaced_whole() -> None:
    before = state(source={**SOURCE, "name": "Ann", "detail": "desk"})
    event = accept(decide(before, update(source={**SOURCE, "name": "Bob"}), "c", LATER))
    assert event.data.source.model_dump() == {
        **SOURCE, "target_name": "", "name": "Bob", "detail": "",
    }  # fmt: skip
    assert event.changed == ("source",)


def test_an_update_of_an_absent_outplan_is_not_found() -> None:
    refusal = reject(decide(None, update(name="x"), "command-2", NOW))
    assert refusal.code == "not_found"
    assert refusal.current_version is None


def test_an_update_of_a_deleted_outplan_is_not_found() -> None:
    assert reject(decide(deleted_state(), update(name="x"), "c", LATER)).code == "not_found"


def test_the_owners_customer_id_is_let_through() -> None:
    command = update(name="x", customer_id=CUSTOMER)
    assert accept(decide(state(), command, "c", LATER)).data.name == "x"
    assert accept(decide(state(), delete(customer_id=CUSTOMER), "c", LATER)).data.deleted


COMMANDS: list[Command] = [update(name="x"), delete()]


def with_fields(command: Command, **fields: Any) -> Command:
    return type(command).model_validate({**command.model_dump(exclude_unset=True), **fields})


@pytest.mark.parametrize("command", COMMANDS, ids=["update", "delete"])
@pytest.mark.parametrize("before", [state(7), deleted_state(7)], ids=["living", "deleted"])
def test_another_customers_outplan_is_not_found_before_other_checks(
    command: Command, before: State
) -> None:
    asked = with_fields(command, customer_id=OTHER_CUSTOMER, expected_version=3)
    refusal = reject(decide(before, asked, "command-2", LATER))
    nothing = reject(decide(None, asked, "command-2", LATER))
    assert refusal == nothing, "it can be told from one that does not exist"


@pytest.mark.parametrize("command", COMMANDS, ids=["update", "delete"])
@pytest.mark.parametrize("expected", [1, 3, 9_007_199_254_740_991])
def test_a_version_conflict_tells_the_current_version(command: Command, expected: int) -> None:
    asked = with_fields(command, expected_version=expected)
    refusal = reject(decide(state(2), asked, "command-2", LATER))
    assert (refusal.code, refusal.current_version) == ("version_conflict", 2)


@pytest.mark.parametrize("command", COMMANDS, ids=["update", "delete"])
def test_the_expected_version_is_let_through(command: Command) -> None:
    asked = with_fields(command, expected_version=2)
    assert accept(decide(state(2), asked, "command-2", LATER)).version == 3


def test_a_version_conflict_comes_before_unchanged() -> None:
    refusal = reject(decide(state(2), update(name="first", expected_version=1), "c", LATER))
    assert refusal.code == "version_conflict"


def test_an_update_of_a_deleted_outplan_is_not_found_before_any_conflict() -> None:
    refusal = reject(decide(deleted_state(2), update(name="x", expected_version=1), "c", LATER))
    assert (refusal.code, refusal.current_version) == ("not_found", None)


# --- delete ------------------------------------------------------------------------------------


def test_a_delete_sets_the_time_and_keeps_the_rest() -> None:
    event = accept(decide(state(), delete(), "command-2", LATER))
    expected = {**outplan().model_dump(), "tm_update": LATER, "tm_delete": LATER}
    assert event.data.model_dump() == expected
    assert (event.id, event.type, event.version, event.time, event.changed) == (
        "command-2", "outplan_deleted", 2, LATER, None,
    )  # fmt: skip


def test_a_delete_of_a_deleted_outplan_is_unchanged() -> None:
    assert decide(deleted_state(2), delete(), "command-3", LATER) == Unchanged()
    assert decide(deleted_state(2), delete(expected_version=2), "c", LATER) == Unchanged()


def test_a_delete_of_an_absent_outplan_is_not_found() -> None:
    assert reject(decide(None, delete(), "command-2", NOW)).code == "not_found"


# --- time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", [BEFORE, NOW, "0001-01-01 00:00:00.000000"])
@pytest.mark.parametrize("command", COMMANDS, ids=["update", "delete"])
def test_tm_update_grows_by_a_microsecond_if_the_clock_does_not(
    command: Command, clock: str
) -> None:
    event = accept(decide(state(), command, "command-2", clock))
    assert event.data.tm_update == LATER
    assert event.time == LATER
    assert event.data.tm_create == NOW


def test_a_microsecond_carries_into_the_seconds() -> None:
    before = state(tm_update="2026-12-31 23:59:59.999999")
    event = accept(decide(before, update(name="x"), "command-2", NOW))
    assert event.data.tm_update == "2027-01-01 00:00:00.000000"


def test_a_delete_behind_the_clock_has_one_time_for_both() -> None:
    event = accept(decide(state(), delete(), "command-2", BEFORE))
    assert event.data.tm_delete == event.data.tm_update == LATER


def test_a_time_is_written_with_six_decimals_and_no_zone() -> None:
    assert format_time(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2026-01-02 03:04:05.000000"
    assert format_time(datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)) == "2026-01-02 03:04:05.000006"


# --- evolve ------------------------------------------------------------------------------------


def test_evolve_returns_the_events_document() -> None:
    event = accept(decide(None, create(), "command-1", NOW))
    assert evolve(None, event) == State(event.data, 1)


@pytest.mark.parametrize("version", [1, 3])
def test_evolve_rejects_a_gap_and_a_repeat(version: int) -> None:
    event = Event.model_construct(
        id="e", type="outplan_updated", version=version, time=NOW, data=outplan()
    )
    with pytest.raises(ValueError, match=f"has version {version}, not 2"):
        evolve(state(1), event)


# --- all together ------------------------------------------------------------------------------

clocks = st.datetimes(datetime(1, 1, 1), datetime(9998, 12, 31)).map(format_time) | st.sampled_from(
    [BEFORE, NOW, LATER]
)
changes = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from([create().model_dump()[name], value])
        for name, value in EVERY_CHANGE.items()
    },
)
guards = st.fixed_dictionaries(
    {},
    optional={
        "customer_id": st.sampled_from([CUSTOMER, CUSTOMER, OTHER_CUSTOMER]),
        "expected_version": st.integers(1, 6),
    },
)
commands: st.SearchStrategy[Command] = (
    st.builds(lambda extra: Create.model_validate(create_body(**extra)), changes)
    | st.builds(
        lambda extra, guard: Update.model_validate({"id": ID, **extra, **guard}),
        changes.filter(bool),
        guards,
    )
    | st.builds(lambda guard: delete(**guard), guards)
)


@given(st.lists(st.tuples(commands, clocks), max_size=25))
def test_the_fold_of_the_events_is_the_document(steps: list[tuple[Command, str]]) -> None:
    current: State | None = None
    events: list[Event] = []
    for number, (command, now) in enumerate(steps):
        decision = decide(current, command, f"command-{number}", now)
        if not isinstance(decision, Event):
            continue
        events.append(decision)
        current = evolve(current, decision)
        assert current == State(decision.data, len(events))
    folded: State | None = None
    for event in events:
        folded = evolve(folded, event)
    assert folded == current
    assert [event.version for event in events] == list(range(1, len(events) + 1))
    times = [event.data.tm_update for event in events]
    assert all(earlier < later for earlier, later in pairwise(times))
    assert len({event.data.tm_create for event in events}) <= 1
    assert len({event.data.customer_id for event in events}) <= 1


@given(st.lists(st.tuples(commands, clocks), max_size=25))
def test_every_event_fits_its_schema_and_says_what_changed(
    steps: list[tuple[Command, str]],
) -> None:
    current: State | None = None
    for number, (command, now) in enumerate(steps):
        decision = decide(current, command, f"command-{number}", now)
        if isinstance(decision, Event):
            Event.model_validate_json(encode_event(decision))
            body = {**decision.model_dump(exclude_none=True)}
            if decision.changed is not None:
                body["changed"] = list(decision.changed)
                assert current is not None
                different = [
                    name
                    for name in Update.CHANGEABLE
                    if getattr(decision.data, name) != getattr(current.outplan, name)
                ]
                assert different == list(decision.changed)
            assert schemas.find_violations(decision.type, body) == ()
            current = evolve(current, decision)


@given(commands, clocks, st.booleans(), st.integers(1, 5))
def test_a_decision_is_pure(command: Command, now: str, gone: bool, version: int) -> None:
    before = deleted_state(version) if gone else state(version)
    copy = before.outplan.model_dump()
    first = decide(before, command, "command-1", now)
    assert first == decide(before, command, "command-1", now)
    assert (before.outplan.model_dump(), before.version) == (copy, version)


@given(commands, clocks)
def test_an_applied_command_is_not_applied_twice(command: Command, now: str) -> None:
    """Decided again at once, an accepted command is unchanged or rejected."""
    before = state(1)
    decision = decide(before, command, "command-1", now)
    if isinstance(decision, Event):
        again = decide(evolve(before, decision), command, "command-2", now)
        assert not isinstance(again, Event)


def test_another_outplan_can_be_created() -> None:
    event = accept(decide(None, create(id=OTHER_ID), "command-2", NOW))
    assert (event.data.id, event.version) == (OTHER_ID, 1)
