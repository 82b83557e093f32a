"""Waiting: only for what time mends, and never through a cancellation."""

import asyncio

import pytest
from tenacity import wait_none

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
    """Fails as it is told, then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.count = 0

    async def __call__(self) -> str:
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_it_is_tried_until_it_succeeds_and_each_failure_is_told() -> None:
    errors = [StoreUnavailable(str(n)) for n in range(30)]
    attempts, noticed = Attempts(*errors), list[BaseException]()
    wait = retrying(StoreUnavailable, on_error=noticed.append, wait=wait_none())
    assert await wait(attempts) == "done"
    assert (attempts.count, noticed) == (31, errors)


@pytest.mark.parametrize("error", [BrokerUnavailable("x"), Fatal("x"), ValueError("x")])
async def test_another_error_is_passed_on_as_it_is(error: Exception) -> None:
    attempts, noticed = Attempts(error), list[BaseException]()
    wait = retrying(StoreUnavailable, StoreConflict, on_error=noticed.append, wait=wait_none())
    with pytest.raises(type(error)) as caught:
        await wait(attempts)
    assert caught.value is error
    assert (attempts.count, noticed) == (1, [])


async def test_a_cancellation_is_not_retried() -> None:
    attempts, noticed = Attempts(asyncio.CancelledError()), list[BaseException]()
    with pytest.raises(asyncio.CancelledError):
        await retrying(Unavailable, on_error=noticed.append, wait=wait_none())(attempts)
    assert (attempts.count, noticed) == (1, [])


async def test_the_errors_below_a_class_are_retried_too() -> None:
    attempts = Attempts(Nacked("x"), StoreUnavailable("x"))
    wait = retrying(Unavailable, on_error=lambda _: None, wait=wait_none())
    assert await wait(attempts) == "done"


def test_waits_grow_from_the_first_to_the_longest_and_stay_there() -> None:
    from tenacity import RetryCallState  # noqa: PLC0415  only to ask how long it would wait

    wait = retrying(Unavailable, on_error=lambda _: None)
    waits = []
    for attempt in (1, 2, 3, 8, 50, 100_000):
        state = RetryCallState(wait, None, (), {})
        state.attempt_number = attempt
        assert not wait.stop(state), "for ever"
        waits.append(wait.wait(state))
    assert 0.05 <= waits[0] <= 0.1
    assert waits == sorted(waits)
    assert waits[-1] == waits[-2] == 5
