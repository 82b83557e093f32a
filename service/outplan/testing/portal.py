"""An event loop in a thread of its own, and the harness through it: from any loop, and from none.

What a fixture opens in a test's event loop is tied to that loop and its scope, which each plugin
for asynchronous tests has its own idea of. So the harness stays in a loop of its own.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractAsyncContextManager, contextmanager
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """Runs coroutines in the loop's thread, for callers in other threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Block until the call is done."""
        calling = self._start(call)
        try:
            return calling.result()
        finally:
            calling.cancel()

    async def awaited(self, call: Coroutine[Any, Any, T]) -> T:
        """Await the call in another asyncio loop; to cancel the one is to cancel the other."""
        loop = asyncio.get_running_loop()
        return await asyncio.wrap_future(self._start(call), loop=loop)

    @contextmanager
    def opened(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Have an asynchronous context manager open while the block runs."""
        entered: Future[T] = Future()
        leave = asyncio.Event()

        async def stay() -> None:
            # Entered and left by one task, as timeouts and task groups inside demand.
            async with manager as value:
                entered.set_result(value)
                await leave.wait()

        staying = self._start(stay())
        try:
            either: list[Future[Any]] = [entered, staying]
            wait(either, return_when=FIRST_COMPLETED)
            if not entered.done():
                staying.result()
            yield entered.result()
        finally:
            self._loop.call_soon_threadsafe(leave.set)
            staying.result()

    def _start(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(call, self._loop)


@contextmanager
def open_portal() -> Iterator[Portal]:
    """A loop in a thread, while the block runs."""
    loops: Future[asyncio.AbstractEventLoop] = Future()
    leave = asyncio.Event()

    async def serve() -> None:
        loops.set_result(asyncio.get_running_loop())
        await leave.wait()

    thread = Thread(target=asyncio.run, args=[serve()], name="outplan-harness", daemon=True)
    thread.start()
    loop = loops.result()
    try:
        yield Portal(loop)
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join()
