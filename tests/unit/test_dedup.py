"""The deduplication window: which outcomes it keeps, for how long, and for which deliveries."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from outplan.bootstrap import compose
from outplan.contract.amqp import Delivery
from outplan.contract.topology import PREFETCH
from outplan.domain.codec import ParsedCommand
from outplan.domain.dedup import DeduplicationWindow
from outplan.domain.layout import Layout, assign_shares
from outplan.domain.records import RecordedOutcome
from outplan.mongodb.store import MongoStore
from outplan.settings import Settings
from outplan.worker.telemetry import Health, Metrics
from tests.support.samples import ID, delivery, request

QUEUE = "outplan.commands"


async def confirm() -> None:
    """Confirm ownership at once."""


def command(
    id_: str = "c-1", redelivered: bool = True, tag: int = 1, **fields: Any
) -> ParsedCommand:
    body = {"id": ID, "name": "x", **fields}
    return request(body, "outplan_update", message_id=id_, redelivered=redelivered, tag=tag)


def resend(**properties: Any) -> ParsedCommand:
    body = {"id": ID, "name": "x"}
    return request(body, "outplan_update", message_id="c-1", redelivered=True, tag=1, **properties)


def outcome_of(of: ParsedCommand, tag: int = 1, code: str = "not_found") -> RecordedOutcome:
    return RecordedOutcome(of.delivery.fingerprint, tag, code, "because")


def new_window(*recorded: RecordedOutcome, size: int = 3) -> DeduplicationWindow:
    return DeduplicationWindow(recorded, size)


def at(tag: int, redelivered: bool = False) -> list[Delivery]:
    return [delivery({}, tag=tag, redelivered=redelivered)]


def commit(
    window: DeduplicationWindow, batch: Sequence[Delivery], *recorded: RecordedOutcome
) -> tuple[RecordedOutcome, ...]:
    kept = window.select_outcomes(batch[-1], recorded)
    window.commit(kept)
    return kept


# --- recall ------------------------------------------------------------------------------------


def test_a_redelivered_command_has_its_recorded_outcome() -> None:
    kept = outcome_of(command())
    assert new_window(kept).recall(command().delivery) is kept


def test_a_command_redelivered_within_the_session_has_its_recorded_outcome() -> None:
    window, kept = new_window(), outcome_of(command(), tag=1)
    commit(window, at(1), kept)
    assert window.recall(command(tag=2).delivery) is kept
    assert window.recall(command(tag=2, redelivered=False).delivery) is None


def test_a_new_message_has_no_recorded_outcome() -> None:
    assert new_window(outcome_of(command())).recall(command(redelivered=False).delivery) is None


def test_other_content_under_the_same_message_id_is_another_command() -> None:
    assert new_window(outcome_of(command())).recall(command(name="y").delivery) is None


def test_the_same_content_under_another_message_id_is_another_command() -> None:
    assert new_window(outcome_of(command())).recall(command("c-2").delivery) is None


@pytest.mark.parametrize(
    "properties", [{"correlation_id": "2"}, {"reply_to": "another"}, {"timestamp": 2}]
)
def test_a_resend_with_other_properties_is_another_message(properties: dict[str, Any]) -> None:
    """The contract promises a new decision for it, even when both are redelivered."""
    assert new_window(outcome_of(command())).recall(resend(**properties).delivery) is None
    assert new_window(outcome_of(command())).recall(resend().delivery) is not None


# --- outcomes of this session ------------------------------------------------------------------


def test_a_batch_without_outcomes_keeps_none() -> None:
    assert new_window().select_outcomes(at(1)[-1], []) == ()


def test_an_accepted_command_drops_the_outcome_of_a_message_with_its_fingerprint() -> None:
    """Otherwise the event would not be published when both are redelivered."""
    same = command(tag=2, redelivered=False)
    window = new_window()
    commit(window, at(1), outcome_of(command(tag=1)), outcome_of(command("c-2"), tag=1))
    kept = window.select_outcomes(same.delivery, [], [same.delivery])
    assert [o.fingerprint for o in kept] == [command("c-2").delivery.fingerprint]


def test_an_outcome_is_kept_until_a_window_of_messages_has_followed() -> None:
    window, first = new_window(size=3), outcome_of(command(), tag=1)
    assert commit(window, at(1), first) == (first,)
    assert commit(window, at(3)) == (first,)
    assert commit(window, at(4)) == ()


def test_the_last_delivery_of_a_batch_moves_the_window() -> None:
    window, first = new_window(size=3), outcome_of(command(), tag=1)
    commit(window, at(1), first)
    assert commit(window, [*at(2), *at(3)]) == (first,)
    assert commit(window, [*at(4), *at(5)]) == ()


def test_all_outcomes_of_a_full_batch_are_kept() -> None:
    batch = [*at(1), *at(2), *at(3), *at(4)]
    recorded = [outcome_of(command(f"c-{n}"), tag=n) for n in range(1, 5)]
    assert commit(new_window(size=4), batch, *recorded) == tuple(recorded)


def test_the_window_is_the_prefetch_of_all_partitions_together() -> None:
    """Delivery tags count the whole channel; each consumer has its own prefetch."""
    metrics = Metrics()
    store = MongoStore("mongodb://localhost", "outplan")  # Connects at its first call.
    parts = compose(Settings(partitions=4), store, Health(metrics), metrics)
    share = assign_shares(Layout(1, "steady", 4, 4), "outplan", ["me"])["me"]
    assert parts.new_handler(share, confirm)._window == (4 + 1) * PREFETCH


def test_a_queue_keeps_at_most_its_prefetch() -> None:
    """The size of the window counts the messages of all queues together."""
    window = new_window(size=256 * PREFETCH)
    for n in range(1, 4):
        recorded = [outcome_of(command(f"c-{n}-{m}"), tag=1_000 * n + m) for m in range(500)]
        kept = commit(window, at(1_000 * n + 500), *recorded)
    assert len(kept) == PREFETCH
    assert kept[-500:] == tuple(recorded)
    assert {v.tag for v in kept} == {*range(2_000, 2_500), *range(3_000, 3_500)}


# --- inherited outcomes ------------------------------------------------------------------------


def test_inherited_outcomes_are_kept_while_messages_are_redelivered() -> None:
    one, two = outcome_of(command("c-1"), tag=900), outcome_of(command("c-2"), tag=901)
    window = new_window(one, two, size=PREFETCH)
    assert commit(window, at(1, redelivered=True)) == (one, two)
    assert commit(window, at(500, redelivered=True)) == (one, two)
    assert window.recall(command("c-2").delivery) is two


def test_inherited_outcomes_are_dropped_at_the_first_new_message() -> None:
    inherited = outcome_of(command(), tag=900)
    window = new_window(inherited)
    assert commit(window, [*at(1, redelivered=True), *at(2)]) == ()
    assert window.recall(command().delivery) is None


def test_inherited_outcomes_are_kept_while_a_batch_may_be_retried() -> None:
    inherited = outcome_of(command(), tag=900)
    window = new_window(inherited)
    for _ in range(3):
        assert window.select_outcomes(at(1)[-1], []) == ()
        assert window.recall(command().delivery) is inherited, "only commit changes it"
    window.commit(window.select_outcomes(at(1)[-1], []))
    assert window.recall(command().delivery) is None


def test_outcomes_of_former_sessions_are_not_inherited_for_ever() -> None:
    """In short sessions every delivery is flagged as redelivered."""
    window = new_window()
    for session in range(30):
        for n in range(100):
            recorded = outcome_of(command(f"c-{session}-{n}"), tag=n)
            kept = commit(window, at(n, redelivered=True), recorded)
        window = new_window(*kept, size=PREFETCH)
    assert len(kept) == PREFETCH
    assert kept[-1].fingerprint == command("c-29-99").delivery.fingerprint


def test_no_outcome_is_inherited_past_the_window() -> None:
    window = new_window(outcome_of(command(), tag=900), size=3)
    assert len(commit(window, at(3, redelivered=True))) == 1
    assert commit(window, at(4, redelivered=True)) == ()


def test_inherited_delivery_tags_are_not_compared() -> None:
    old, own = outcome_of(command("c-1"), tag=1), outcome_of(command("c-2"), tag=50)
    window = new_window(old, size=PREFETCH)
    assert commit(window, at(50, redelivered=True), own) == (old, own)


def test_an_outcome_recorded_again_outlives_the_inherited_one() -> None:
    old = outcome_of(command(), tag=900)
    window = new_window(old)
    again = replace(old, tag=1)
    commit(window, at(1, redelivered=True), again)
    assert commit(window, at(2)) == (again,)
    assert commit(window, at(4)) == ()


def test_an_outcome_recorded_twice_is_dropped_twice() -> None:
    # Session 1 recorded the outcome, session 2 recorded it again; this is session 3.
    old = outcome_of(command(), tag=900)
    window = new_window(old, replace(old, tag=1))
    assert commit(window, at(5)) == ()


def test_a_resend_does_not_get_the_outcome_of_two_sessions_ago() -> None:
    old = outcome_of(command(), tag=900)
    third = new_window(old, replace(old, tag=1))
    left = commit(third, at(5))  # New messages arrive; the first one is acked long ago.
    left = commit(third, at(50))
    # The sender resends it, as contract section 2 allows; the worker dies before it decides.
    assert new_window(*left).recall(command(redelivered=True).delivery) is None


# --- a commit of unknown result ----------------------------------------------------------------


def select_with(
    window: DeduplicationWindow, *recorded: RecordedOutcome
) -> tuple[RecordedOutcome, ...]:
    """Return what the store holds after a commit whose answer was lost."""
    return window.select_outcomes(at(len(recorded))[-1], recorded)


def test_a_stored_outcome_is_recalled_for_the_very_delivery() -> None:
    window, kept = new_window(), outcome_of(command(), tag=1)
    window.reconcile(select_with(window, kept))
    assert window.recall(command(redelivered=False, tag=1).delivery) == kept
    assert window.recall(command(redelivered=False, tag=2).delivery) is None, "another copy"
    assert window.recall(command(name="y", redelivered=False, tag=1).delivery) is None, (
        "other content"
    )


def test_a_command_that_was_not_stored_has_no_outcome() -> None:
    window = new_window()
    window.reconcile(window.outcomes)
    assert window.recall(command(redelivered=False).delivery) is None


def test_stored_outcomes_are_forgotten_at_the_next_commit() -> None:
    window, kept = new_window(), outcome_of(command(), tag=1)
    window.reconcile(select_with(window, kept))
    assert commit(window, at(1), replace(kept)) == (kept,)
    assert window.recall(command(redelivered=False, tag=1).delivery) is None


def test_stored_outcomes_of_a_split_batch_are_kept_until_their_turn() -> None:
    window, one, two = (
        new_window(),
        outcome_of(command("c-1"), tag=1),
        outcome_of(command("c-2"), tag=2),
    )
    window.reconcile(select_with(window, one, two))
    assert commit(window, at(1), replace(one)) == (one, two)
    assert window.recall(command("c-2", redelivered=False, tag=2).delivery) == two
    assert commit(window, at(2), replace(two)) == (one, two)
    assert window.recall(command("c-2", redelivered=False, tag=2).delivery) is None


def test_a_stored_outcome_is_recalled_instead_of_the_inherited_one() -> None:
    old = outcome_of(command(), tag=900)
    window = new_window(old)
    again = replace(old, tag=1)
    window.reconcile(window.select_outcomes(at(1, redelivered=True)[-1], [again]))
    assert window.recall(command(tag=1).delivery) == again
    assert commit(window, at(1, redelivered=True), again) == (again,)


def test_an_outcome_recorded_again_replaces_its_predecessor() -> None:
    one, two = outcome_of(command("c-1"), tag=900), outcome_of(command("c-2"), tag=901)
    window, again = new_window(one, two), replace(one, tag=1)
    assert commit(window, at(1, redelivered=True), again) == (two, again)
