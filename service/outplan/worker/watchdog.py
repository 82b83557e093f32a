"""A worker that stands still is worse than one that is gone: it is ended, and replaced."""

import asyncio
import faulthandler
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

# Signs of life within the time that the loop may stand still.
_SIGNS: Final = 5


@asynccontextmanager
async def watched(seconds: float) -> AsyncIterator[None]:
    """End the process where its loop stands still for ``seconds`` within the block; 0: never.

    It ends as by a crash, with exit code 1 and every thread's stack on standard error.
    """
    if seconds == 0:
        yield
        return
    living = asyncio.create_task(_live(seconds))
    try:
        yield
    finally:
        living.cancel()
        faulthandler.cancel_dump_traceback_later()


async def _live(seconds: float) -> None:
    while True:
        # Its timer needs no lock of the interpreter's, which what hangs may hold.
        faulthandler.dump_traceback_later(seconds, exit=True)
        await asyncio.sleep(seconds / _SIGNS)
