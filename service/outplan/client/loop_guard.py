"""Refuse calls from another event loop or process than the one where a connection was opened."""

import asyncio
import os
import threading
from typing import Final

_ADVICE: Final = (
    "open one in each event loop that needs one, or use SyncOutplanClient and sync_events, which "
    "any thread can call"
)


def raise_if_forked(process: int, what: str) -> None:
    """Raise RuntimeError if this is not the process in which ``what`` was opened."""
    if os.getpid() != process:
        raise RuntimeError(
            f"the {what} was opened in process {process}, and this is process {os.getpid()}, "
            f"forked from it: open the {what} after the fork, in the process that uses it"
        )


class LoopGuard:
    """Remember the event loop and the process in which it is created.

    ``what`` names the thing that was opened, for the messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._thread = threading.current_thread().name

    @property
    def is_forked(self) -> bool:
        """True in a child of the process: its connections are the parent's, leave them alone."""
        return os.getpid() != self._process

    def check(self) -> None:
        """Raise RuntimeError in any other event loop, and after a fork."""
        raise_if_forked(self._process, self._what)
        if asyncio.get_running_loop() is self._loop:
            return
        state = f"belongs to the thread {self._thread!r}"
        if self._loop.is_closed():
            state = "is closed now"
        raise RuntimeError(
            f"the {self._what} was opened in another event loop, which {state}: {_ADVICE}"
        )
