"""Retry what only time mends: forever by default, with backoff and jitter."""

from collections.abc import Callable
from typing import Final

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_never,
    wait_exponential_jitter,
    wait_random_exponential,
)
from tenacity.wait import wait_base

BACKOFF: Final = wait_exponential_jitter(multiplier=0.05, max=5, jitter=0.05)
# Full jitter, for many clients that lose one broker at the same moment.
SPREAD_BACKOFF: Final = wait_random_exponential(multiplier=0.1, max=2)


def retrying(
    *errors: type[Exception],
    on_error: Callable[[BaseException], None],
    wait: wait_base = BACKOFF,
    attempts: int | None = None,
) -> AsyncRetrying:
    """Retry on these errors and no others, calling ``on_error`` with each before the wait.

    Without ``attempts``, retry forever; with it, raise the error of the last attempt.
    """

    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None:
            on_error(error)

    return AsyncRetrying(
        # Name the types to retry: "all but these" would retry a cancellation.
        retry=retry_if_exception_type(errors),
        wait=wait,
        stop=stop_after_attempt(attempts) if attempts else stop_never,
        before_sleep=before_sleep,
        reraise=True,
    )
