"""Retry with exponential backoff and jitter, for ever by default."""

from collections.abc import Callable

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_never,
    wait_exponential_jitter,
)

from outplan.errors import OutplanError


def retrying(
    *errors: type[OutplanError],
    on_error: Callable[[BaseException], None],
    initial: float = 0.05,
    longest: float = 5,
    attempts: int | None = None,
) -> AsyncRetrying:
    """Retry on these errors and no others; call ``on_error`` before each wait.

    ``initial`` and ``longest`` are in seconds. After so many ``attempts`` raise the last error.
    """

    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None:
            on_error(error)

    return AsyncRetrying(
        # Name the types to retry: tenacity's "all but these" retries a cancellation.
        retry=retry_if_exception_type(errors),
        wait=wait_exponential_jitter(multiplier=initial, max=longest, jitter=initial),
        stop=stop_after_attempt(attempts) if attempts else stop_never,
        before_sleep=before_sleep,
        reraise=True,
    )
