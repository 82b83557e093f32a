"""Match replies with the commands that wait for them.

An ``accepted`` reply is final, whichever attempt it answers. A command that changed nothing or was
rejected leaves no trace, and the worker judges each attempt at it afresh: ``unchanged`` and
``rejected`` are final only for the latest attempt. The worker judges attempts in the order in
which they were sent (see ``session``), so it has judged all others by then.
"""

import asyncio
import itertools
from collections.abc import Iterator

from pydantic import ValidationError

from outplan.client.models import Reply
from outplan.contract.invalid import describe_invalid
from outplan.errors import BrokerUnavailable


class PendingCall:
    """A command that waits for its final ``reply``."""

    def __init__(self, pending_replies: "PendingReplies") -> None:
        self._pending_replies = pending_replies
        self._latest = ""
        self.attempts: list[str] = []
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def start_attempt(self) -> str:
        """Register another attempt; return its correlation id."""
        self._latest = self._pending_replies.register(self)
        self.attempts.append(self._latest)
        return self._latest

    def receive(self, attempt: str, reply: Reply) -> None:
        """Take a reply; ignore one that is not final."""
        is_final = reply.status == "accepted" or attempt == self._latest
        if is_final and not self.reply.done():
            self.reply.set_result(reply)


class PendingReplies:
    """Find the call that an attempt belongs to, by correlation ids that only this client uses."""

    def __init__(self, name: str) -> None:
        self._ids: Iterator[str] = (f"{name}.{n}" for n in itertools.count(1))
        self._calls: dict[str, PendingCall] = {}

    def register(self, call: PendingCall) -> str:
        """Make a correlation id for an attempt at this call."""
        attempt = next(self._ids)
        self._calls[attempt] = call
        return attempt

    def discard(self, call: PendingCall) -> None:
        """Forget a call, and ignore the replies that are still to come."""
        for attempt in call.attempts:
            del self._calls[attempt]
        if call.reply.done():
            call.reply.exception()  # It may have come too late for anybody to look.

    def on_reply(self, attempt: str | None, body: bytes) -> None:
        """Hand a reply to its call."""
        call = self._calls.get(attempt or "")
        if call is None or attempt is None:
            return
        try:
            call.receive(attempt, Reply.model_validate_json(body))
        except ValidationError as error:
            if not call.reply.done():
                unreadable = BrokerUnavailable(f"this is no reply: {describe_invalid(error)}")
                call.reply.set_exception(unreadable)
