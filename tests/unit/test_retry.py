"""Test which errors are retried, and how the waits grow."""

import asyncio

import pytest
from tenacity import RetryCallState, wait_none

from outplan.errors import (
    BrokerUnavailable,
    Fatal,
    Nacked,
    StoreConflict,
    StoreUnavailable,
    Unavailable,
)
from outplan.retry import SessionBackoff, retrying


class Attempts:
    """Raise each of ``errors`` once, then succeed."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.count = 0

    async def __call__(self) -> str:
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_retrying_continues_until_success_and_reports_each_error() -> None:
    errors = [StoreUnavailable(str(n)) for n in range(30)]
    attempts, reported = Attempts(*errors), list[BaseException]()
    retry = retrying(StoreUnavailable, on_error=reported.append, wait=wait_none())
    assert await retry(attempts) == "done"
    assert (attempts.count, reported) == (31, errors)


@pytest.mark.parametrize("error", [BrokerUnavailable("x"), Fatal("x"), ValueError("x")])
async def test_other_errors_propagate_unchanged(error: Exception) -> None:
    attempts, reported = Attempts(error), list[BaseException]()
    retry = retrying(StoreUnavailable, StoreConflict, on_error=reported.append, wait=wait_none())
    with pytest.raises(type(error)) as caught:
        await retry(attempts)
    assert caught.value is error
    assert (attempts.count, reported) == (1, [])


async def test_a_cancellation_is_not_retried() -> None:
    attempts, reported = Attempts(asyncio.CancelledError()), list[BaseException]()
    with pytest.raises(asyncio.CancelledError):
        await retrying(Unavailable, on_error=reported.append, wait=wait_none())(attempts)
    assert (attempts.count, reported) == (1, [])


async def test_subclasses_of_an_error_are_retried_too() -> None:
    attempts = Attempts(Nacked("x"), StoreUnavailable("x"))
    retry = retrying(Unavailable, on_error=lambda _: None, wait=wait_none())
    assert await retry(attempts) == "done"


def test_waits_grow_to_five_seconds_and_retries_never_stop() -> None:
    retry = retrying(Unavailable, on_error=lambda _: None)
    waits = []
    for attempt in (1, 2, 3, 8, 50, 100_000):
        state = RetryCallState(retry, None, (), {})
        state.attempt_number = attempt
        assert not retry.stop(state)
        waits.append(retry.wait(state))
    assert 0.05 <= waits[0] <= 0.1
    assert waits == sorted(waits)
    assert waits[-1] == waits[-2] == 5


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("outplan.retry.monotonic", found)
    return found


def run_sessions(backoff: SessionBackoff, count: int) -> list[float]:
    """Return the pauses before so many sessions that end at once."""
    pauses = []
    for _ in range(count):
        pauses.append(backoff.next_pause())
        backoff.start_session()
    return pauses


def test_pauses_between_sessions_without_progress_double_up_to_thirty_seconds(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outplan.retry.uniform", lambda _, high: high)
    expected = [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]
    assert run_sessions(SessionBackoff(), 12) == pytest.approx(expected)


def test_pauses_are_random() -> None:
    pauses = {run_sessions(SessionBackoff(), 4)[-1] for _ in range(50)}
    assert len(pauses) > 25
    assert all(0.08 <= pause <= 0.4 for pause in pauses)


@pytest.mark.parametrize("seconds", [0, 31])
def test_progress_or_a_long_session_makes_the_next_pause_short(clock: Clock, seconds: int) -> None:
    backoff = SessionBackoff()
    run_sessions(backoff, 8)
    if seconds == 0:
        backoff.note_progress()
    clock.now += seconds
    assert backoff.next_pause() <= 0.1
