"""Run coroutines in an event loop in a thread of its own, for callers with any loop or none.

`SyncOutplanClient` blocks on it. The test harness awaits it too: each pytest plugin for tests that
are asynchronous ties fixtures to event loops in its own way, and the harness works under all.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from threading import Thread
from typing import Any, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from outplan.client.loop_guard import raise_if_forked

T = TypeVar("T")


class PortalStopped(RuntimeError):
    """Raised by calls after ``stop``."""


class Portal:
    """Run an event loop in a thread, called ``name``, until ``stop``. Any thread may call it.

    Calls raise PortalStopped after ``stop``, and RuntimeError after a fork. ``what`` names the
    portal's user in messages.
    """

    # Not anyio's start_blocking_portal: it is a generator, and hangs when it is collected in a
    # forked process or at the interpreter's exit, where its thread is gone.

    def __init__(self, name: str, what: str) -> None:
        self._what = what
        self._process = os.getpid()
        self._is_stopped = False
        self._thread = Thread(target=self._run_loop, name=name, daemon=True)
        self._started: Future[BlockingPortal] = Future()
        self._thread.start()
        self._portal = self._started.result()

    @property
    def is_usable(self) -> bool:
        """True until ``stop``, in the process that started the thread."""
        return os.getpid() == self._process and not self._is_stopped

    def raise_if_forked(self) -> None:
        """Raise RuntimeError if this is not the process that started the thread."""
        raise_if_forked(self._process, self._what)

    def stop(self) -> None:
        """Wait until the calls that run have ended, and end the thread."""
        self._is_stopped = True
        self._portal.start_task_soon(self._portal.stop).result()
        self._thread.join()

    def start(
        self, function: Callable[..., Coroutine[Any, Any, T] | T], *arguments: Any
    ) -> "Future[T]":
        """Call the function in the portal's loop, await what it returns, and do not wait for it."""
        self.raise_if_forked()
        if self._is_stopped:
            raise PortalStopped(f"the {self._what} was closed")
        return self._portal.start_task_soon(function, *arguments)  # type: ignore[arg-type]

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Block until the call is done; cancel it on Ctrl-C or a timeout of pytest's."""
        future = self._start_call(call)
        try:
            return future.result()
        finally:
            future.cancel()

    async def run_async(self, call: Coroutine[Any, Any, T]) -> T:
        """Await the call from another asyncio event loop; cancelling the caller cancels it."""
        return await asyncio.wrap_future(self._start_call(call))

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

    def _start_call(self, call: Coroutine[Any, Any, T]) -> "Future[T]":
        try:
            return self.start(lambda: call)
        except BaseException:
            call.close()
            raise

    def _run_loop(self) -> None:
        try:
            anyio.run(self._serve, backend="asyncio")
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            self._started.set_result(portal)
            await portal.sleep_until_stopped()


@contextmanager
def open_portal(name: str, what: str) -> Iterator[Portal]:
    """Run a portal while the block runs."""
    portal = Portal(name, what)
    try:
        yield portal
    finally:
        portal.stop()
