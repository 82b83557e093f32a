"""Retry what only time mends: forever by default, with backoff and jitter."""

import asyncio
from collections.abc import Callable
from random import uniform
from time import monotonic
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

# Between sessions, in seconds.
_SHORTEST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 30.0


class SessionBackoff:
    """Space out sessions with the broker: longer each time, until one has made progress.

    A session may open and end at once, for example by a message that ends whoever reads it. Then
    the next one fares no better, and costs the broker as much. The longest pause doubles each time
    from 0.1 s to 30 s; the pause is random, so that many clients do not return at the same moment.
    """

    def __init__(self) -> None:
        self._longest = _SHORTEST_PAUSE
        self._since: float | None = None

    def note_progress(self) -> None:
        """Start with short pauses again."""
        self._longest = _SHORTEST_PAUSE

    def next_pause(self) -> float:
        """Return how many seconds to wait before the next session: none before the first.

        A session that has lasted longer than the longest pause counts as progress.
        """
        if self._since is None:
            return 0.0
        if monotonic() - self._since > _LONGEST_PAUSE:
            self.note_progress()
        limit, self._longest = self._longest, min(_LONGEST_PAUSE, 2 * self._longest)
        return uniform(0.2, 1) * limit  # noqa: S311

    def start_session(self) -> None:
        """Note that a session begins now."""
        self._since = monotonic()

    async def wait(self) -> None:
        """Wait before the next session, which begins then."""
        await asyncio.sleep(self.next_pause())
        self.start_session()


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
