"""End calls that depend on a worker when the worker exits by itself."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from outplan.testing.errors import WorkerFailed

T = TypeVar("T")

# Done when a worker has exited by itself; its result is the error to raise.
WorkerExit = asyncio.Future[WorkerFailed]


async def run_unless_exited(worker_exit: WorkerExit, call: Coroutine[Any, Any, T]) -> T:
    """Return the call's result, or raise WorkerFailed as soon as the worker has exited."""
    task = asyncio.create_task(call)
    try:
        either: set[asyncio.Future[Any]] = {task, worker_exit}
        if not worker_exit.done():
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise_if_exited(worker_exit)
        return await task
    finally:
        task.cancel()


def raise_if_exited(worker_exit: WorkerExit) -> None:
    """Raise WorkerFailed if the worker has exited by itself."""
    if worker_exit.done():
        raise worker_exit.result()
