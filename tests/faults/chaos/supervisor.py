"""Whatever starts a worker again when it ends, as the runtime of containers does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.deployment import Deployment
from tests.support.worker_process import start_worker


@asynccontextmanager
async def kept_running(place: Deployment, **how: Any) -> AsyncIterator[list[int]]:
    """One worker, started again at once whenever it ends: the exit codes so far."""
    codes: list[int] = []
    keeping = asyncio.create_task(_keep(place, codes, how))
    try:
        yield codes
        # What went wrong there is not to be lost.
        if keeping.done():
            keeping.result()
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})


async def _keep(place: Deployment, codes: list[int], how: dict[str, Any]) -> None:
    while True:
        worker = await start_worker(place, **how)
        try:
            codes.append(await worker.wait(seconds=3_600))
        finally:
            await worker.kill()
