"""Calls that may depend on a worker, and so end with it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from outplan.testing.place import WorkerFailed

T = TypeVar("T")

# Done when a worker ended by itself; its result is the error that says so.
Death = asyncio.Future[WorkerFailed]


async def unless_it_dies(death: Death, call: Coroutine[Any, Any, T]) -> T:
    """The call's result, or at once the error that says that the worker has died."""
    calling = asyncio.create_task(call)
    try:
        either: set[asyncio.Future[Any]] = {calling, death}
        if not death.done():
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not calling.done():
            check(death)
        return await calling
    finally:
        calling.cancel()


def check(death: Death) -> None:
    """Raise WorkerFailed where the worker has ended by itself."""
    if death.done():
        raise death.result()
