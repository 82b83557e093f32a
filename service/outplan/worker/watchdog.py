"""End a worker whose event loop hangs, so that it is replaced."""

import asyncio
import faulthandler
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

# How often the timer is set again within the time that the loop may hang.
_RESETS: Final = 5


@asynccontextmanager
async def watchdog(seconds: float) -> AsyncIterator[None]:
    """End the process if its event loop hangs for ``seconds`` within the block; 0: never.

    The process ends as in a crash: exit code 1, and every thread's stack on standard error.
    """
    if seconds == 0:
        yield
        return
    resetting = asyncio.create_task(_reset_timer(seconds))
    try:
        yield
    finally:
        resetting.cancel()
        faulthandler.cancel_dump_traceback_later()


async def _reset_timer(seconds: float) -> None:
    while True:
        # faulthandler's timer needs no interpreter lock, which the hanging code may hold.
        faulthandler.dump_traceback_later(seconds, exit=True)
        await asyncio.sleep(seconds / _RESETS)
