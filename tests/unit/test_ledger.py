"""Verdicts without trace: which are kept, for how long, and who may have them back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from outplan.bootstrap import wire
from outplan.contract.amqp import Delivery
from outplan.contract.topology import PREFETCH
from outplan.domain.codec import Request
from outplan.domain.dedup import MAX_TRIALS, Ledger
from outplan.domain.records import Fence, Trial, Verdict
from outplan.settings import Settings
from outplan.worker.telemetry import Health, Metrics
from tests.support.samples import ID, delivery, request

QUEUE = "outplan.commands"


async def at_once() -> None:
    """Nothing to wait for."""


def asked(id_: str = "c-1", redelivered: bool = True, tag: int = 1, **fields: Any) -> Request:
    body = {"id": ID, "name": "x", **fields}
    return request(body, "outplan_update", message_id=id_, redelivered=redelivered, tag=tag)


def sent_again(**properties: Any) -> Request:
    body = {"id": ID, "name": "x"}
    return request(body, "outplan_update", message_id="c-1", redelivered=True, tag=1, **properties)


def verdict(of: Request, tag: int = 1, code: str = "not_found") -> Verdict:
    return Verdict(of.delivery.fingerprint, tag, code, "because")


def ledger(*verdicts: Verdict, window: int = 3) -> Ledger:
    return Ledger(Fence(QUEUE, 7, verdicts), window)


def at(tag: int, redelivered: bool = False) -> list[Delivery]:
    return [delivery({}, tag=tag, redelivered=redelivered)]


def committed(book: Ledger, batch: Sequence[Delivery], *judged: Verdict) -> tuple[Verdict, ...]:
    fence = book.fence(batch, judged)
    book.keep(fence)
    return fence.verdicts


# --- recall ------------------------------------------------------------------------------------


def test_a_redelivered_command_has_its_verdict_back() -> None:
    kept = verdict(asked())
    assert ledger(kept).recall(asked().delivery) is kept


def test_what_comes_back_within_the_session_has_its_verdict_back() -> None:
    book, kept = ledger(), verdict(asked(), tag=1)
    committed(book, at(1), kept)
    assert book.recall(asked(tag=2).delivery) is kept
    assert book.recall(asked(tag=2, redelivered=False).delivery) is None


def test_a_new_message_is_judged_afresh_whatever_was_said_before() -> None:
    assert ledger(verdict(asked())).recall(asked(redelivered=False).delivery) is None


def test_other_content_under_the_same_message_id_is_another_command() -> None:
    assert ledger(verdict(asked())).recall(asked(name="y").delivery) is None


def test_the_same_content_under_another_message_id_is_another_command() -> None:
    assert ledger(verdict(asked())).recall(asked("c-2").delivery) is None


@pytest.mark.parametrize(
    "told_by", [{"correlation_id": "2"}, {"reply_to": "another"}, {"timestamp": 2}]
)
def test_the_same_command_sent_again_is_another_message(told_by: dict[str, Any]) -> None:
    """It is judged afresh, as the contract says, also when both come back."""
    assert ledger(verdict(asked())).recall(sent_again(**told_by).delivery) is None
    assert ledger(verdict(asked())).recall(sent_again().delivery) is not None


# --- what is kept ------------------------------------------------------------------------------


def test_the_fence_stays_the_claimed_one() -> None:
    fence = ledger().fence(at(1), [])
    assert (fence.queue, fence.epoch, fence.verdicts) == (QUEUE, 7, ())


def test_what_is_accepted_leaves_no_verdict_of_a_message_that_looks_the_same() -> None:
    """With the verdict for both, when both come back, the event would not be published."""
    same = asked(tag=2, redelivered=False)
    book = ledger()
    committed(book, at(1), verdict(asked(tag=1)), verdict(asked("c-2"), tag=1))
    fence = book.fence([same.delivery], [], [same.delivery])
    assert [v.message for v in fence.verdicts] == [asked("c-2").delivery.fingerprint]


def test_verdicts_are_kept_until_a_window_of_messages_has_come_after_them() -> None:
    book, first = ledger(window=3), verdict(asked(), tag=1)
    assert committed(book, at(1), first) == (first,)
    assert committed(book, at(3)) == (first,)
    assert committed(book, at(4)) == ()


def test_the_last_message_of_a_batch_says_how_far_it_has_come() -> None:
    book, first = ledger(window=3), verdict(asked(), tag=1)
    committed(book, at(1), first)
    assert committed(book, [*at(2), *at(3)]) == (first,)
    assert committed(book, [*at(4), *at(5)]) == ()


def test_a_full_batchs_own_verdicts_are_all_kept() -> None:
    batch = [*at(1), *at(2), *at(3), *at(4)]
    judged = [verdict(asked(f"c-{n}"), tag=n) for n in range(1, 5)]
    assert committed(ledger(window=4), batch, *judged) == tuple(judged)


def test_the_window_is_the_prefetch_of_all_partitions_together() -> None:
    """Tags count the whole channel, and the prefetch is each consumer's own."""
    store: Any = None
    metrics = Metrics()
    settings = Settings(partitions=4)
    handler = wire(settings, store, Health(metrics), metrics).make_handler(at_once)
    assert handler._window == 4 * PREFETCH


def test_of_one_queue_no_more_are_kept_than_it_may_have_in_flight() -> None:
    """However many messages of other queues the window has room for."""
    book = ledger(window=256 * PREFETCH)
    for n in range(1, 4):
        judged = [verdict(asked(f"c-{n}-{m}"), tag=1_000 * n + m) for m in range(500)]
        kept = committed(book, at(1_000 * n + 500), *judged)
    assert len(kept) == PREFETCH
    assert kept[-500:] == tuple(judged)
    assert {v.tag for v in kept} == {*range(2_000, 2_500), *range(3_000, 3_500)}


# --- what is inherited -------------------------------------------------------------------------


def test_inherited_verdicts_are_kept_as_long_as_messages_come_back() -> None:
    one, two = verdict(asked("c-1"), tag=900), verdict(asked("c-2"), tag=901)
    book = ledger(one, two, window=PREFETCH)
    assert committed(book, at(1, redelivered=True)) == (one, two)
    assert committed(book, at(500, redelivered=True)) == (one, two)
    assert book.recall(asked("c-2").delivery) is two


def test_inherited_verdicts_are_dropped_at_the_first_new_message() -> None:
    inherited = verdict(asked(), tag=900)
    book = ledger(inherited)
    assert committed(book, [*at(1, redelivered=True), *at(2)]) == ()
    assert book.recall(asked().delivery) is None


def test_inherited_verdicts_are_kept_while_a_batch_may_still_be_retried() -> None:
    inherited = verdict(asked(), tag=900)
    book = ledger(inherited)
    for _ in range(3):
        assert book.fence(at(1), []).verdicts == ()
        assert book.recall(asked().delivery) is inherited, "only keep changes it"
    book.keep(book.fence(at(1), []))
    assert book.recall(asked().delivery) is None


def test_what_was_settled_sessions_ago_is_not_inherited_for_ever() -> None:
    """Where each session ends soon, all that comes is flagged as delivered before."""
    book = ledger()
    for session in range(30):
        for n in range(100):
            judged = verdict(asked(f"c-{session}-{n}"), tag=n)
            kept = committed(book, at(n, redelivered=True), judged)
        book = ledger(*kept, window=PREFETCH)
    assert len(kept) == PREFETCH
    assert kept[-1].message == asked("c-29-99").delivery.fingerprint


def test_nothing_is_inherited_past_the_window() -> None:
    book = ledger(verdict(asked(), tag=900), window=3)
    assert len(committed(book, at(3, redelivered=True))) == 1
    assert committed(book, at(4, redelivered=True)) == ()


def test_an_inherited_tag_is_another_sessions_and_is_not_compared() -> None:
    old, own = verdict(asked("c-1"), tag=1), verdict(asked("c-2"), tag=50)
    book = ledger(old, window=PREFETCH)
    assert committed(book, at(50, redelivered=True), own) == (old, own)


def test_a_recalled_verdict_that_was_written_down_again_outlives_the_inherited_one() -> None:
    old = verdict(asked(), tag=900)
    book = ledger(old)
    again = replace(old, tag=1)
    committed(book, at(1, redelivered=True), again)
    assert committed(book, at(2)) == (again,)
    assert committed(book, at(4)) == ()


def test_a_verdict_written_down_twice_is_dropped_twice() -> None:
    # Session 1 left the verdict; session 2 recalled it, wrote it down, and ended; this is 3.
    old = verdict(asked(), tag=900)
    book = ledger(old, replace(old, tag=1))
    assert committed(book, at(5)) == ()


def test_a_command_sent_anew_is_not_given_the_verdict_of_two_sessions_ago() -> None:
    old = verdict(asked(), tag=900)
    third = ledger(old, replace(old, tag=1))
    left = committed(third, at(5))  # it goes on with new messages; the first sending is long acked
    left = committed(third, at(50))
    # Now the sender sends it again, as section 2 lets it; the worker dies before it is judged.
    assert ledger(*left).recall(asked(redelivered=True).delivery) is None


# --- an attempt whose end is unknown -----------------------------------------------------------


def landed(book: Ledger, *judged: Verdict) -> Fence:
    """What the store has if a commit whose answer was lost did land."""
    return book.fence(at(len(judged)), judged)


def test_what_has_landed_is_recalled_for_the_very_delivery() -> None:
    book, kept = ledger(), verdict(asked(), tag=1)
    book.learn(landed(book, kept))
    assert book.recall(asked(redelivered=False, tag=1).delivery) == kept
    assert book.recall(asked(redelivered=False, tag=2).delivery) is None, "another copy"
    assert book.recall(asked(name="y", redelivered=False, tag=1).delivery) is None, "other content"


def test_what_has_not_landed_is_judged_afresh() -> None:
    book = ledger()
    book.learn(book.current)
    assert book.recall(asked(redelivered=False).delivery) is None


def test_what_has_landed_is_forgotten_at_the_next_commit() -> None:
    book, kept = ledger(), verdict(asked(), tag=1)
    book.learn(landed(book, kept))
    assert committed(book, at(1), replace(kept)) == (kept,)
    assert book.recall(asked(redelivered=False, tag=1).delivery) is None


def test_what_has_landed_of_a_batch_is_kept_until_its_turn_has_come() -> None:
    book, one, two = ledger(), verdict(asked("c-1"), tag=1), verdict(asked("c-2"), tag=2)
    book.learn(landed(book, one, two))
    assert committed(book, at(1), replace(one)) == (one, two)
    assert book.recall(asked("c-2", redelivered=False, tag=2).delivery) == two
    assert committed(book, at(2), replace(two)) == (one, two)
    assert book.recall(asked("c-2", redelivered=False, tag=2).delivery) is None


def test_what_has_landed_of_an_inherited_verdict_is_recalled_too() -> None:
    old = verdict(asked(), tag=900)
    book = ledger(old)
    again = replace(old, tag=1)
    book.learn(book.fence(at(1, redelivered=True), [again]))
    assert book.recall(asked(tag=1).delivery) == again
    assert committed(book, at(1, redelivered=True), again) == (again,)


def test_a_verdict_that_is_judged_again_takes_its_predecessors_place() -> None:
    one, two = verdict(asked("c-1"), tag=900), verdict(asked("c-2"), tag=901)
    book, again = ledger(one, two), replace(one, tag=1)
    assert committed(book, at(1, redelivered=True), again) == (two, again)


# --- trials ------------------------------------------------------------------------------------


def test_a_message_is_tried_so_often_and_no_more() -> None:
    book = ledger()
    for times in range(1, MAX_TRIALS + 1):
        trial = book.next_trial("m")
        assert trial == Trial("m", times)
        book.put_on_trial(trial)
    assert book.next_trial("m") is None


def test_a_trial_of_its_own_can_be_withdrawn_and_no_other() -> None:
    book = Ledger(Fence(QUEUE, 7, (), Trial("m", 2)), 3)
    assert book.withdrawn() is None, "it is the trial of whoever died"
    book.put_on_trial(Trial("m", 3))
    assert book.withdrawn() is None, "it is still being judged"
    book.exonerate()
    assert book.withdrawn() == Trial("m", 2)
    book.keep(book.fence(at(1), []))
    assert book.withdrawn() == Trial("m", 2), "until it is settled"
    book.acquit()
    assert book.withdrawn() is None


def test_another_message_starts_at_its_first_trial() -> None:
    book = Ledger(Fence(QUEUE, 7, (), Trial("m", MAX_TRIALS)), 3)
    assert book.next_trial("m") is None
    assert book.next_trial("n") == Trial("n", 1)


def test_a_trial_inherited_from_a_dead_worker_counts() -> None:
    assert Ledger(Fence(QUEUE, 7, (), Trial("m", 2)), 3).next_trial("m") == Trial("m", 3)


def test_a_batchs_fence_keeps_epoch_and_trial() -> None:
    fence = Ledger(Fence(QUEUE, 7, (), Trial("m", 2)), 3).fence(at(1), [])
    assert (fence.epoch, fence.trial) == (7, Trial("m", 2))


def test_a_message_that_is_acquitted_starts_again() -> None:
    book = Ledger(Fence(QUEUE, 7, (), Trial("m", MAX_TRIALS)), 3)
    assert book.next_trial("m") is None
    book.acquit()
    assert book.next_trial("m") == Trial("m", 1)
    assert book.current == Fence(QUEUE, 7)


def test_an_acquittal_leaves_the_verdicts_alone() -> None:
    inherited, own = verdict(asked("c-1"), tag=900), verdict(asked("c-2"), tag=1)
    book = ledger(inherited)
    committed(book, at(1, redelivered=True), own)
    book.acquit()
    assert book.recall(asked("c-1").delivery) is inherited
    assert book.current.verdicts == (inherited, own)
