"""Attempts at a suspected poison message: how many it has, and which are refunded."""

from outplan.domain.poison import MAX_ATTEMPTS, PoisonGuard
from outplan.domain.records import Attempt


def test_a_message_has_a_limited_number_of_attempts() -> None:
    guard = PoisonGuard()
    for number in range(1, MAX_ATTEMPTS + 1):
        attempt = guard.next_attempt("m")
        assert attempt == Attempt("m", number)
        guard.record_attempt(attempt)
    assert guard.next_attempt("m") is None


def test_a_session_refunds_its_own_attempt_and_no_other() -> None:
    guard = PoisonGuard(Attempt("m", 2))
    assert guard.refund() is None, "the attempt is that of a dead worker"
    guard.record_attempt(Attempt("m", 3))
    assert guard.refund() is None, "the message has no outcome yet"
    guard.mark_handled()
    assert guard.refund() == Attempt("m", 2)
    assert guard.refund() == Attempt("m", 2), "until the message is acked"
    guard.clear()
    assert guard.refund() is None


def test_another_message_starts_at_its_first_attempt() -> None:
    guard = PoisonGuard(Attempt("m", MAX_ATTEMPTS))
    assert guard.next_attempt("m") is None
    assert guard.next_attempt("n") == Attempt("n", 1)


def test_an_attempt_of_a_dead_worker_counts() -> None:
    assert PoisonGuard(Attempt("m", 2)).next_attempt("m") == Attempt("m", 3)


def test_the_attempt_stays_on_the_fence_until_it_is_cleared() -> None:
    guard = PoisonGuard(Attempt("m", 2))
    assert guard.attempt == Attempt("m", 2)
    guard.record_attempt(Attempt("m", 3))
    guard.mark_handled()
    assert guard.attempt == Attempt("m", 3)


def test_a_cleared_message_starts_again() -> None:
    guard = PoisonGuard(Attempt("m", MAX_ATTEMPTS))
    assert guard.next_attempt("m") is None
    guard.clear()
    assert guard.next_attempt("m") == Attempt("m", 1)
    assert guard.attempt is None
