"""Decide batches in order: precedence, duplicates, and redelivery after a crash."""

from dataclasses import replace
from typing import Any

import pytest

from outplan.domain import batch as batch_module
from outplan.domain.batch import Batch
from outplan.domain.codec import Outcome, ParsedCommand, parse
from outplan.domain.dedup import DeduplicationWindow
from outplan.domain.records import Record, RecordedOutcome, Snapshot
from outplan.errors import Unprocessable
from tests.support.builders import (
    QUEUE,
    create,
    delete,
    make_conflict_pair,
    read_code,
    redeliver,
    update,
)
from tests.support.samples import (
    CUSTOMER,
    ID,
    LATER,
    OTHER_CUSTOMER,
    OTHER_ID,
    create_body,
    delivery,
    request,
    state,
)


def new_batch(
    snapshot: Snapshot | None = None,
    kept: tuple[RecordedOutcome, ...] = (),
    now: str = LATER,
) -> Batch:
    return Batch(snapshot or Snapshot(), {QUEUE: DeduplicationWindow(kept, 100)}, now)


def decide_all(batch: Batch, *commands: ParsedCommand) -> list[Outcome]:
    return [batch.decide(each) for each in commands]


def snapshot_of(version: int = 1, *records: Record, **fields: Any) -> Snapshot:
    return Snapshot({ID: state(version, **fields)}, {r.event.id: r for r in records})


def read_recorded(batch: Batch) -> tuple[RecordedOutcome, ...]:
    return batch.list_outcomes_to_record()[QUEUE]


def record_of(of: ParsedCommand, version: int = 1) -> Record:
    outcome = new_batch(Snapshot() if version == 1 else snapshot_of(version - 1)).decide(of)
    assert outcome.event is not None
    return Record(outcome.event, of.digest)


# --- commands of one batch ---------------------------------------------------------------------


def test_three_commands_for_one_outplan_in_one_batch_see_each_other() -> None:
    batch = new_batch()
    outcomes = decide_all(
        batch, create("c-1"), update("c-2", name="x", expected_version=1),
        delete("c-3", expected_version=2),
    )  # fmt: skip
    assert [(o.status, o.version) for o in outcomes] == [
        ("accepted", 1), ("accepted", 2), ("accepted", 3),
    ]  # fmt: skip
    assert [record.event.id for record in batch.records] == ["c-1", "c-2", "c-3"]
    assert outcomes[1].outplan is not None
    assert outcomes[1].outplan.name == "x"
    assert outcomes[2].outplan is not None
    assert outcomes[2].outplan.deleted
    times = [record.event.time for record in batch.records]
    assert times == sorted(set(times)), "one clock reading for all, and still each one later"


def test_a_rejected_command_has_no_effect_on_the_next() -> None:
    outcomes = decide_all(
        new_batch(snapshot_of()), update("c-1", name="x", expected_version=9), delete("c-2")
    )
    assert [read_code(o) for o in outcomes] == ["version_conflict", "accepted"]
    assert outcomes[1].version == 2


def test_outplans_have_versions_of_their_own() -> None:
    batch = new_batch()
    other = request(create_body(id=OTHER_ID), message_id="c-2")
    assert [o.version for o in decide_all(batch, create("c-1"), other)] == [1, 1]


def test_an_update_before_its_create_is_not_found_and_the_create_is_accepted() -> None:
    outcomes = decide_all(new_batch(), update("c-1", name="x"), create("c-2"))
    assert [read_code(o) for o in outcomes] == ["not_found", "accepted"]


def test_deciding_does_not_change_the_snapshot() -> None:
    """Stored documents are replaced only if they still have the snapshot's versions."""
    before = snapshot_of()
    decide_all(new_batch(before), update("c-1", name="x"))
    assert before == snapshot_of()


def test_an_invalid_delivery_is_rejected_and_the_others_are_decided() -> None:
    batch = new_batch()
    bad = delivery(b"{", message_id="c-1")
    rejection = parse(bad)
    outcomes = [batch.decide(create("c-0")), batch.decide(rejection), batch.decide(delete("c-2"))]
    assert [read_code(o) for o in outcomes] == ["accepted", "invalid_json", "accepted"]
    assert outcomes[1].delivery is bad
    assert read_recorded(batch) == ()


# --- duplicates --------------------------------------------------------------------------------


def test_a_duplicate_in_the_same_batch_has_the_first_event() -> None:
    batch = new_batch()
    first, again = decide_all(batch, create("c-1", tag=1), create("c-1", tag=2))
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.event is first.event
    assert (again.status, again.version, again.outplan) == ("accepted", 1, first.outplan)
    assert again.delivery.tag == 2
    assert len(batch.records) == 1
    assert read_recorded(batch) == ()


def test_a_duplicate_of_a_stored_command_has_the_stored_event_and_outcome() -> None:
    record = record_of(update("c-2", name="x"), version=2)
    batch = new_batch(snapshot_of(5, record, name="much later"))
    outcome = batch.decide(update("c-2", name="x"))
    assert outcome.duplicate
    assert outcome.event is record.event
    assert (outcome.version, outcome.outplan) == (2, record.event.data)
    assert batch.records == []


def test_a_duplicate_is_recognised_by_its_values_and_not_by_its_bytes() -> None:
    record = record_of(create("c-1"))
    spelt = request(create_body(dial_timeout=30_000.0, detail=""), message_id="c-1")
    assert new_batch(snapshot_of(1, record)).decide(spelt).duplicate


def test_other_content_under_an_accepted_message_id_is_rejected() -> None:
    record = record_of(create("c-1"))
    batch = new_batch(snapshot_of(1, record))
    outcomes = decide_all(batch, update("c-1", name="x"), delete("c-1"))
    assert [read_code(o) for o in outcomes] == ["message_id_reused"] * 2
    assert all(o.problem and o.problem.status == 409 for o in outcomes)
    assert batch.records == []
    assert len(read_recorded(batch)) == 2


def test_other_content_under_a_message_id_of_the_same_batch_is_rejected() -> None:
    outcomes = decide_all(new_batch(), create("c-1"), update("c-1", name="x"), create("c-1"))
    assert [(read_code(o), o.duplicate) for o in outcomes] == [
        ("accepted", False), ("message_id_reused", False), ("accepted", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "detail"),
    [
        ({"correlation_id": "\udcff"}, "correlation_id is not UTF-8"),
        ({"reply_to": "\udcff"}, "reply_to is not UTF-8"),
        ({"correlation_id": "\udcff", "reply_to": "x\udcff"}, "correlation_id and reply_to are"),
    ],
)
def test_properties_that_are_not_utf8_are_a_problem_of_a_new_command(
    texts: dict[str, str], detail: str
) -> None:
    outcome = new_batch().decide(create(**texts))
    assert read_code(outcome) == "invalid_properties"
    assert outcome.problem is not None
    assert detail in outcome.problem.detail


def test_an_accepted_command_keeps_its_event_whatever_the_properties_of_its_resend() -> None:
    """Its event may not be published yet, by a worker of a version that accepted such commands."""
    stored = record_of(create())
    outcome = new_batch(snapshot_of(1, stored)).decide(create(correlation_id="\udcff"))
    assert (outcome.status, outcome.duplicate, outcome.event) == ("accepted", True, stored.event)


def test_an_accepted_command_keeps_its_event_whatever_rules_came_since() -> None:
    old = parse(delivery(create_body(name="a\u2028b"), message_id="c-1"))
    assert isinstance(old, ParsedCommand)
    stored = record_of(replace(old, objection=None))
    outcome = new_batch(snapshot_of(1, stored)).decide(old)
    assert (outcome.status, outcome.duplicate, outcome.event) == ("accepted", True, stored.event)


def test_a_redelivery_of_a_command_that_breaks_a_later_rule_lists_its_errors_again() -> None:
    old = parse(delivery(create_body(name="a\u2028b"), message_id="c-1"))
    assert isinstance(old, ParsedCommand)
    batch = new_batch()
    first = batch.decide(old)
    again = redeliver(old, 2)
    second = new_batch(kept=read_recorded(batch)).decide(again)
    assert first.problem == second.problem
    assert first.problem is not None
    assert first.problem.errors is not None
    assert [error.pointer for error in first.problem.errors] == ["/name"]


def test_a_rejected_command_leaves_its_message_id_free() -> None:
    outcomes = decide_all(
        new_batch(), update("c-1", name="x"), create("c-2"), update("c-1", name="x")
    )
    assert [read_code(o) for o in outcomes] == ["not_found", "accepted", "accepted"]
    assert not outcomes[2].duplicate


def test_an_unchanged_command_leaves_its_message_id_free() -> None:
    outcomes = decide_all(
        new_batch(snapshot_of()), update("c-1", name="first"), update("c-1", name="x")
    )
    assert [read_code(o) for o in outcomes] == ["unchanged", "accepted"]


def test_message_id_reused_does_not_quote_the_other_command() -> None:
    theirs = record_of(request(create_body(name="private"), message_id="c-1"))
    mine = request(create_body(customer_id=OTHER_CUSTOMER, id=OTHER_ID), message_id="c-1")
    outcome = new_batch(Snapshot({}, {"c-1": theirs})).decide(mine)
    assert outcome.problem is not None
    text = outcome.problem.model_dump_json()
    assert all(word not in text for word in (CUSTOMER, "private", ID))
    assert (outcome.outplan, outcome.event) == (None, None)


# --- outcomes without an event -----------------------------------------------------------------


def test_an_unchanged_outcome_has_the_current_document_and_no_event() -> None:
    outcome = new_batch(snapshot_of(4)).decide(update("c-1", name="first"))
    assert (outcome.status, outcome.version, outcome.event) == ("unchanged", 4, None)
    assert outcome.outplan == state().outplan


def test_only_a_version_conflict_tells_the_current_version() -> None:
    outcomes = decide_all(
        new_batch(snapshot_of(4)), update("c-1", name="x", expected_version=3), create("c-2"),
        update("c-3", name="x", customer_id=OTHER_CUSTOMER, expected_version=3),
    )  # fmt: skip
    problems = [outcome.problem for outcome in outcomes]
    assert [p and (p.code, p.current_version) for p in problems] == [
        ("version_conflict", 4), ("already_exists", None), ("not_found", None),
    ]  # fmt: skip


def test_outcomes_without_an_event_are_recorded_by_delivery_tag() -> None:
    batch = new_batch(snapshot_of(2))
    requests = [
        update("c-1", tag=11, name="first"),
        update("c-2", tag=12, name="x", expected_version=9),
        update("c-3", tag=13, name="x"),
    ]
    decide_all(batch, *requests)
    assert [(o.fingerprint, o.tag, o.code) for o in read_recorded(batch)] == [
        (requests[0].delivery.fingerprint, 11, None),
        (requests[1].delivery.fingerprint, 12, "version_conflict"),
    ]


# --- precedence --------------------------------------------------------------------------------


def conflict_recorded_for(command: ParsedCommand) -> RecordedOutcome:
    return RecordedOutcome(command.delivery.fingerprint, 900, "version_conflict", "said before", 1)


def test_a_recorded_outcome_precedes_the_acceptance_of_a_resend() -> None:
    """The event of the resend may not be published yet, nor those before it."""
    sent = update("c-2", redelivered=True, name="x")
    batch = new_batch(snapshot_of(2, record_of(sent, version=2)), (conflict_recorded_for(sent),))
    assert read_code(batch.decide(sent)) == "version_conflict"


def test_a_stored_command_without_a_recorded_outcome_is_a_duplicate() -> None:
    sent = update("c-2", redelivered=True, name="x")
    assert new_batch(snapshot_of(2, record_of(sent, version=2))).decide(sent).duplicate


def test_a_recorded_outcome_precedes_message_id_reused() -> None:
    """The message_id was accepted with other content after its sender had a reply."""
    sent = update("c-2", redelivered=True, name="x")
    record = record_of(update("c-2", name="y"), version=2)
    batch = new_batch(snapshot_of(2, record), (conflict_recorded_for(sent),))
    assert read_code(batch.decide(sent)) == "version_conflict"


def test_a_recorded_outcome_precedes_a_new_decision() -> None:
    sent = update("c-2", tag=3, redelivered=True, name="x", expected_version=2)
    batch = new_batch(snapshot_of(2), (conflict_recorded_for(sent),))
    outcome = batch.decide(sent)
    assert outcome.problem is not None
    assert (outcome.problem.code, outcome.problem.current_version, outcome.problem.detail) == (
        "version_conflict", 1, "said before",
    )  # fmt: skip
    assert batch.records == []
    [again] = read_recorded(batch)
    assert again.tag == 3, "it is kept under this session's delivery tag"


def test_a_message_that_is_not_redelivered_is_decided_anew() -> None:
    sent = update("c-2", redelivered=False, name="x", expected_version=2)
    assert (
        read_code(new_batch(snapshot_of(2), (conflict_recorded_for(sent),)).decide(sent))
        == "accepted"
    )


def test_a_redelivered_unchanged_command_is_unchanged_against_the_same_version() -> None:
    sent = update("c-2", redelivered=True, name="first")
    kept = RecordedOutcome(sent.delivery.fingerprint, 900, version=2)
    then = replace(snapshot_of(3, name="later"), past={(ID, 2): state(2, name="first")})
    outcome = new_batch(then, (kept,)).decide(sent)
    # The reply shows the version that the command was compared with, not the current one.
    assert (outcome.status, outcome.version, outcome.event) == ("unchanged", 2, None)
    assert outcome.outplan is not None
    assert outcome.outplan.name == "first"


def test_a_bug_in_a_decision_makes_the_batch_unprocessable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(batch_module, "decide", fail)
    with pytest.raises(Unprocessable, match="ZeroDivisionError"):
        new_batch().decide(create())


# --- the case in the docstring of dedup --------------------------------------------------------


def test_after_a_crash_an_earlier_rejection_stands_although_it_would_be_accepted_now() -> None:
    early, late = make_conflict_pair()
    first = new_batch(snapshot_of(1))
    assert [read_code(o) for o in decide_all(first, early, late)] == [
        "version_conflict",
        "accepted",
    ]
    # Version 2 is committed, and the outcome is on the fence. The worker dies before its ack.
    kept = read_recorded(first)
    after = snapshot_of(2, *first.records, name="late", tm_update=first.records[0].event.time)

    second = new_batch(after, kept)
    again = decide_all(second, redeliver(early, 1), redeliver(late, 2))
    assert [(read_code(o), o.duplicate) for o in again] == [
        ("version_conflict", False), ("accepted", True),
    ]  # fmt: skip
    assert second.records == []


def test_without_the_recorded_outcome_the_earlier_command_would_be_applied_last() -> None:
    """If this test failed, the deduplication window would be needless."""
    early, late = make_conflict_pair()
    first = new_batch(snapshot_of(1))
    decide_all(first, early, late)
    forgetful = new_batch(snapshot_of(2, *first.records, tm_update=first.records[0].event.time))
    assert read_code(forgetful.decide(redeliver(early, 1))) == "accepted"
