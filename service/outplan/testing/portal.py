"""Run the harness in an event loop of its own, for tests with any event loop or none.

Each pytest plugin for asynchronous tests ties fixtures to event loops in its own way. With a loop
of its own the harness works under all of them.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

T = TypeVar("T")


class Portal:
    """Run coroutines in the portal's event loop, for callers in other threads."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Block until the call is done; cancel it on Ctrl-C or a timeout of pytest's."""
        future: Future[T] = self._portal.start_task_soon(lambda: call)
        try:
            return future.result()
        finally:
            future.cancel()

    async def run_async(self, call: Coroutine[Any, Any, T]) -> T:
        """Await the call from another asyncio event loop; cancelling the caller cancels it."""
        return await asyncio.wrap_future(self._portal.start_task_soon(lambda: call))

    @contextmanager
    def open(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Enter an asynchronous context manager and exit it with the block."""
        blocking = self._portal.wrap_async_context_manager(manager)
        try:
            value = blocking.__enter__()
        except Exception:
            raise
        except BaseException:
            # Ctrl-C while it was entered: it still runs and would be entered for ever.
            blocking.__exit__(None, None, None)
            raise
        try:
            yield value
        finally:
            blocking.__exit__(None, None, None)


@contextmanager
def open_portal() -> Iterator[Portal]:
    """Run an event loop in a thread while the block runs."""
    with start_blocking_portal("asyncio", name="outplan-harness") as portal:
        yield Portal(portal)
