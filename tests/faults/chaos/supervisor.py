"""Restart a worker whenever it ends, as a container runtime does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from outplan.testing import Deployment
from tests.support.worker_process import start_worker


@asynccontextmanager
async def supervise_worker(deployment: Deployment, **how: Any) -> AsyncIterator[list[int]]:
    """Run one worker at a time, and yield the list of exit codes so far."""
    codes: list[int] = []
    supervising = asyncio.create_task(_restart(deployment, codes, how))
    try:
        yield codes
        if supervising.done():
            supervising.result()  # Raises what went wrong there.
    finally:
        supervising.cancel()
        await asyncio.wait({supervising})


async def _restart(deployment: Deployment, codes: list[int], how: dict[str, Any]) -> None:
    while True:
        worker = await start_worker(deployment, **how)
        try:
            codes.append(await worker.wait(seconds=3_600))
        finally:
            await worker.kill()
