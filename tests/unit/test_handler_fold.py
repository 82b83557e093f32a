"""A batch's judgement in order: precedence, duplicates, and what comes back after a crash."""

from dataclasses import replace
from typing import Any

import pytest

from outplan.domain import batch as batch_module
from outplan.domain.batch import Fold
from outplan.domain.codec import Outcome, Request, parse
from outplan.domain.dedup import Ledger
from outplan.domain.records import Fence, Record, Snapshot, Verdict
from outplan.errors import Unprocessable
from tests.support.builders import (
    QUEUE,
    code,
    create,
    delete,
    redelivered,
    story,
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


def fold(
    known: Snapshot | None = None, verdicts: tuple[Verdict, ...] = (), now: str = LATER
) -> Fold:
    return Fold(known or Snapshot(), {QUEUE: Ledger(Fence(QUEUE, 1, verdicts), 100)}, now)


def judged(of: Fold, *requests: Request) -> list[Outcome]:
    return [of.judge(each) for each in requests]


def known(version: int = 1, *records: Record, **fields: Any) -> Snapshot:
    return Snapshot({ID: state(version, **fields)}, {r.event.id: r for r in records})


def recorded(of: Request, version: int = 1) -> Record:
    outcome = fold(Snapshot() if version == 1 else known(version - 1)).judge(of)
    assert outcome.event is not None
    return Record(outcome.event, of.digest)


# --- one batch sees itself ---------------------------------------------------------------------


def test_three_commands_for_one_outplan_in_one_batch_see_each_other() -> None:
    each = fold()
    outcomes = judged(
        each, create("c-1"), update("c-2", name="x", expected_version=1),
        delete("c-3", expected_version=2),
    )  # fmt: skip
    assert [(o.status, o.version) for o in outcomes] == [
        ("accepted", 1), ("accepted", 2), ("accepted", 3),
    ]  # fmt: skip
    assert [record.event.id for record in each.decided] == ["c-1", "c-2", "c-3"]
    assert outcomes[1].outplan is not None
    assert outcomes[1].outplan.name == "x"
    assert outcomes[2].outplan is not None
    assert outcomes[2].outplan.deleted
    times = [record.event.time for record in each.decided]
    assert times == sorted(set(times)), "one clock reading for all, and still each one later"


def test_what_a_neighbour_did_not_do_has_no_effect() -> None:
    outcomes = judged(fold(known()), update("c-1", name="x", expected_version=9), delete("c-2"))
    assert [code(o) for o in outcomes] == ["version_conflict", "accepted"]
    assert outcomes[1].version == 2


def test_outplans_do_not_see_each_other() -> None:
    each = fold()
    other = request(create_body(id=OTHER_ID), message_id="c-2")
    assert [o.version for o in judged(each, create("c-1"), other)] == [1, 1]


def test_an_update_before_its_create_is_not_found_and_the_create_goes_on() -> None:
    outcomes = judged(fold(), update("c-1", name="x"), create("c-2"))
    assert [code(o) for o in outcomes] == ["not_found", "accepted"]


def test_the_snapshot_is_left_as_it_was() -> None:
    """It is what the documents are written over."""
    before = known()
    judged(fold(before), update("c-1", name="x"))
    assert before == known()


def test_an_invalid_delivery_is_rejected_and_its_neighbours_notice_nothing() -> None:
    each = fold()
    bad = delivery(b"{", message_id="c-1")
    problem = parse(bad)
    assert not isinstance(problem, Request)
    outcomes = [each.judge(create("c-0")), each.judge((bad, problem)), each.judge(delete("c-2"))]
    assert [code(o) for o in outcomes] == ["accepted", "invalid_json", "accepted"]
    assert outcomes[1].delivery is bad
    assert each.verdicts == []


# --- duplicates --------------------------------------------------------------------------------


def test_a_duplicate_inside_a_batch_has_the_first_event() -> None:
    each = fold()
    first, again = judged(each, create("c-1", tag=1), create("c-1", tag=2))
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.event is first.event
    assert (again.status, again.version, again.outplan) == ("accepted", 1, first.outplan)
    assert again.delivery.tag == 2
    assert len(each.decided) == 1
    assert each.verdicts == []


def test_a_duplicate_of_what_is_stored_has_the_stored_event_and_the_outcome_of_then() -> None:
    record = recorded(update("c-2", name="x"), version=2)
    each = fold(known(5, record, name="much later"))
    outcome = each.judge(update("c-2", name="x"))
    assert outcome.duplicate
    assert outcome.event is record.event
    assert (outcome.version, outcome.outplan) == (2, record.event.data)
    assert each.decided == []


def test_a_duplicate_is_known_by_what_it_says_and_not_by_its_spelling() -> None:
    record = recorded(create("c-1"))
    spelt = request(create_body(dial_timeout=30_000.0, detail=""), message_id="c-1")
    assert fold(known(1, record)).judge(spelt).duplicate


def test_other_content_under_an_accepted_message_id_is_refused() -> None:
    record = recorded(create("c-1"))
    each = fold(known(1, record))
    outcomes = judged(each, update("c-1", name="x"), delete("c-1"))
    assert [code(o) for o in outcomes] == ["message_id_reused"] * 2
    assert all(o.problem and o.problem.status == 409 for o in outcomes)
    assert each.decided == []
    assert len(each.verdicts) == 2


def test_a_message_id_is_reused_inside_a_batch_too() -> None:
    outcomes = judged(fold(), create("c-1"), update("c-1", name="x"), create("c-1"))
    assert [(code(o), o.duplicate) for o in outcomes] == [
        ("accepted", False), ("message_id_reused", False), ("accepted", True),
    ]  # fmt: skip


def test_a_refused_command_leaves_its_message_id_free() -> None:
    outcomes = judged(fold(), update("c-1", name="x"), create("c-2"), update("c-1", name="x"))
    assert [code(o) for o in outcomes] == ["not_found", "accepted", "accepted"]
    assert not outcomes[2].duplicate


def test_an_unchanged_command_leaves_its_message_id_free() -> None:
    outcomes = judged(fold(known()), update("c-1", name="first"), update("c-1", name="x"))
    assert [code(o) for o in outcomes] == ["unchanged", "accepted"]


def test_a_message_id_reused_does_not_quote_the_other_command() -> None:
    theirs = recorded(request(create_body(name="private"), message_id="c-1"))
    mine = request(create_body(customer_id=OTHER_CUSTOMER, id=OTHER_ID), message_id="c-1")
    outcome = fold(Snapshot({}, {"c-1": theirs})).judge(mine)
    assert outcome.problem is not None
    text = outcome.problem.model_dump_json()
    assert all(word not in text for word in (CUSTOMER, "private", ID))
    assert (outcome.outplan, outcome.event) == (None, None)


# --- without trace -----------------------------------------------------------------------------


def test_an_unchanged_outcome_has_the_document_as_it_is_and_no_event() -> None:
    outcome = fold(known(4)).judge(update("c-1", name="first"))
    assert (outcome.status, outcome.version, outcome.event) == ("unchanged", 4, None)
    assert outcome.outplan == state().outplan


def test_a_conflict_tells_the_current_version_and_nothing_else_does() -> None:
    outcomes = judged(
        fold(known(4)), update("c-1", name="x", expected_version=3), create("c-2"),
        update("c-3", name="x", customer_id=OTHER_CUSTOMER, expected_version=3),
    )  # fmt: skip
    problems = [outcome.problem for outcome in outcomes]
    assert [p and (p.code, p.current_version) for p in problems] == [
        ("version_conflict", 4), ("already_exists", None), ("not_found", None),
    ]  # fmt: skip


def test_what_leaves_no_trace_is_written_down_under_its_delivery_tag() -> None:
    each = fold(known(2))
    requests = [
        update("c-1", tag=11, name="first"),
        update("c-2", tag=12, name="x", expected_version=9),
        update("c-3", tag=13, name="x"),
    ]
    judged(each, *requests)
    assert [(r.command_id, v.message, v.tag, v.code) for r, v in each.verdicts] == [
        ("c-1", requests[0].delivery.fingerprint, 11, None),
        ("c-2", requests[1].delivery.fingerprint, 12, "version_conflict"),
    ]


# --- precedence --------------------------------------------------------------------------------


def refusal(of: Request, code_: str = "version_conflict", version: int | None = 1) -> Verdict:
    return Verdict(of.delivery.fingerprint, 900, code_, "said before", version)


def test_a_verdict_comes_before_the_acceptance_of_another_sending() -> None:
    """Its event may not be published yet, nor those before it."""
    sent = update("c-2", redelivered=True, name="x")
    each = fold(known(2, recorded(sent, version=2)), (refusal(sent),))
    assert code(each.judge(sent)) == "version_conflict"


def test_a_recorded_command_without_a_verdict_is_a_duplicate() -> None:
    sent = update("c-2", redelivered=True, name="x")
    assert fold(known(2, recorded(sent, version=2))).judge(sent).duplicate


def test_a_verdict_comes_before_the_message_id_is_found_reused() -> None:
    """Its sender was told first; the message_id was accepted with other content later."""
    sent = update("c-2", redelivered=True, name="x")
    record = recorded(update("c-2", name="y"), version=2)
    each = fold(known(2, record), (refusal(sent),))
    assert code(each.judge(sent)) == "version_conflict"


def test_a_verdict_comes_before_a_fresh_judgement() -> None:
    sent = update("c-2", tag=3, redelivered=True, name="x", expected_version=2)
    each = fold(known(2), (refusal(sent),))
    outcome = each.judge(sent)
    assert outcome.problem is not None
    assert (outcome.problem.code, outcome.problem.current_version, outcome.problem.detail) == (
        "version_conflict", 1, "said before",
    )  # fmt: skip
    assert each.decided == []
    [(_, again)] = each.verdicts
    assert again.tag == 3, "it is kept by this session's tag from now on"


def test_a_message_that_was_not_delivered_before_is_judged_afresh() -> None:
    sent = update("c-2", redelivered=False, name="x", expected_version=2)
    assert code(fold(known(2), (refusal(sent),)).judge(sent)) == "accepted"


def test_a_recalled_nothing_to_change_is_unchanged_again() -> None:
    sent = update("c-2", redelivered=True, name="first")
    kept = Verdict(sent.delivery.fingerprint, 900, version=2)
    then = replace(known(3, name="later"), past={(ID, 2): state(2, name="first")})
    outcome = fold(then, (kept,)).judge(sent)
    # It is told what it was judged by, not what has become of that since.
    assert (outcome.status, outcome.version, outcome.event) == ("unchanged", 2, None)
    assert outcome.outplan is not None
    assert outcome.outplan.name == "first"


def test_a_bug_in_deciding_names_the_batch_unprocessable(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(batch_module, "decide", broken)
    with pytest.raises(Unprocessable, match="ZeroDivisionError"):
        fold().judge(create())


# --- the story in ledger's docstring -----------------------------------------------------------


def test_after_a_crash_an_early_refusal_stands_though_it_would_be_granted_now() -> None:
    early, late = story()
    first = fold(known(1))
    assert [code(o) for o in judged(first, early, late)] == ["version_conflict", "accepted"]
    # Committed: version 2, and the verdict on the fence. The worker dies before its ack.
    verdicts = tuple(verdict for _, verdict in first.verdicts)
    after = known(2, *first.decided, name="late", tm_update=first.decided[0].event.time)

    second = fold(after, verdicts)
    again = judged(second, redelivered(early, 1), redelivered(late, 2))
    assert [(code(o), o.duplicate) for o in again] == [
        ("version_conflict", False), ("accepted", True),
    ]  # fmt: skip
    assert second.decided == []


def test_without_the_verdict_the_early_command_would_overtake() -> None:
    """That is what the ledger is there for; were this to fail, it could go."""
    early, late = story()
    first = fold(known(1))
    judged(first, early, late)
    forgetful = fold(known(2, *first.decided, tm_update=first.decided[0].event.time))
    assert code(forgetful.judge(redelivered(early, 1))) == "accepted"
