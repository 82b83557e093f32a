"""Count the attempts at a suspected poison message.

A poison message ends every worker that handles it. The broker counts deliveries, but it counts
healthy prefetched messages too. So a worker handles suspected messages one at a time and records
each attempt before it starts: only an attempt that is found again has ended a worker (ADR 0006).
"""

from dataclasses import replace
from typing import Final

from outplan.domain.records import Attempt

MAX_ATTEMPTS: Final = 5


class PoisonGuard:
    """The attempt on one queue's fence, and whether this session may refund it."""

    def __init__(self, attempt: Attempt | None = None) -> None:
        self.attempt = attempt
        self._own: Attempt | None = None
        self._is_handled = False

    def next_attempt(self, fingerprint: str) -> Attempt | None:
        """Return the attempt to record for a message, or None when it has used all of them."""
        last = self.attempt
        used = last.number if last and last.fingerprint == fingerprint else 0
        return Attempt(fingerprint, used + 1) if used < MAX_ATTEMPTS else None

    def record_attempt(self, attempt: Attempt) -> None:
        """Start an attempt that is on the fence now."""
        self.attempt = self._own = attempt
        self._is_handled = False

    def mark_handled(self) -> None:
        """Note that the message has its outcome, so that it is not why the session ends."""
        self._is_handled = True

    def clear(self) -> None:
        """Forget the attempt, since the message is acked."""
        self.attempt = self._own = None

    def refund(self) -> Attempt | None:
        """Return the attempt to record if the session ends after the message has its outcome."""
        if self._own is None or not self._is_handled:
            return None
        return replace(self._own, number=self._own.number - 1)
