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
from outplan.retry import retrying


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
