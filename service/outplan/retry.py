"""How long to wait for what only time mends: for ever as a rule, backing off, with jitter."""

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
    """Retry on these errors and no others; ``on_error`` hears of each before the wait (seconds).

    After so many ``attempts``, if there is a limit, the last error is raised.
    """

    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None:
            on_error(error)

    return AsyncRetrying(
        # Positive types only: "all but …" would retry a cancellation.
        retry=retry_if_exception_type(errors),
        wait=wait_exponential_jitter(multiplier=initial, max=longest, jitter=initial),
        stop=stop_after_attempt(attempts) if attempts else stop_never,
        before_sleep=before_sleep,
        reraise=True,
    )
