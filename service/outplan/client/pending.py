"""One command on its way: the attempts at it, and the verdict.

An answer to any attempt counts when it is "accepted", for that is for ever. A command that changed
nothing or was refused leaves no trace, and each attempt at it is judged afresh; so those two
count only when they answer the latest attempt. Attempts are judged in the order in which they
were sent (see ``session``), so all others have been judged by then.
"""

import asyncio
import itertools
from collections.abc import Iterator

from outplan.client.connection import TransientError
from outplan.client.models import Reply


class PendingCall:
    """The wait for the verdict on one command. ``attempt`` begins each sending of it."""

    def __init__(self, pending_replies: "PendingReplies") -> None:
        self._pending_replies = pending_replies
        self._latest = ""
        self.attempts: list[str] = []
        self.verdict: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def attempt(self) -> str:
        """Begin another attempt: its correlation id."""
        self._latest = self._pending_replies.connect(self)
        self.attempts.append(self._latest)
        return self._latest

    def hear(self, attempt: str, reply: Reply) -> None:
        """Take an answer; one that leaves the verdict open is let go."""
        final = reply.status == "accepted" or attempt == self._latest
        if final and not self.verdict.done():
            self.verdict.set_result(reply)


class PendingReplies:
    """Which call each attempt belongs to, by correlation ids that only this client has."""

    def __init__(self, name: str) -> None:
        self._ids: Iterator[str] = (f"{name}.{n}" for n in itertools.count(1))
        self._calls: dict[str, PendingCall] = {}

    def connect(self, call: PendingCall) -> str:
        attempt = next(self._ids)
        self._calls[attempt] = call
        return attempt

    def discard(self, call: PendingCall) -> None:
        """Forget a call; answers that are still to come say nothing to anybody."""
        for attempt in call.attempts:
            del self._calls[attempt]
        if call.verdict.done():
            call.verdict.exception()  # It may have come too late for anybody to look.

    def on_reply(self, attempt: str | None, body: bytes) -> None:
        """Hand a reply to its call."""
        call = self._calls.get(attempt or "")
        if call is None or attempt is None:
            return
        try:
            call.hear(attempt, Reply.model_validate_json(body))
        except ValueError as error:
            if not call.verdict.done():
                call.verdict.set_exception(TransientError(f"the answer could not be read: {error}"))
