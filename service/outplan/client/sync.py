"""Send commands and receive events without an event loop: scripts, Django, Celery.

Each client and each stream runs its asynchronous twin in a thread of its own.
"""

import asyncio
import atexit
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from queue import SimpleQueue
from threading import Lock
from types import TracebackType
from typing import Generic, Self, TypeVar, Unpack
from uuid import UUID

from outplan.client.bulk import CommandResult, Progress
from outplan.client.client import RESEND_SECONDS, OutplanClient, Result
from outplan.client.errors import OutcomeUnknown
from outplan.client.events import Events, Item, Reconnected, events
from outplan.client.portal import Portal, PortalStopped
from outplan.client.requests import CreateFields, Preconditions, Request, UpdateFields
from outplan.contract.messages import EventType

T = TypeVar("T")


class _Background(Generic[T]):
    """Keep an asynchronous context manager entered, in a thread with an event loop.

    ``make`` makes a new one each time, because a forked process cannot use its parent's.
    """

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]], what: str) -> None:
        self._make = make
        self._what = what
        self._lock = Lock()
        self._opened: tuple[Portal, AbstractAsyncContextManager[T], T] | None = None

    def open(self) -> None:
        """Start the thread and enter. Raises RuntimeError if it is open already."""
        self._raise_if_open()
        with self._lock:
            self._raise_if_open()
            portal, manager = Portal(f"outplan-{self._what}", self._what), self._make()
            try:
                value = portal.run(_enter(manager))
            except BaseException:
                portal.stop()
                raise
            self._opened = portal, manager, value
        # The thread cannot answer any more when the interpreter ends.
        atexit.register(self.close)

    def close(self) -> None:
        """Exit and end the thread; do nothing if it is closed, or if a parent process opened it."""
        opened = self._opened
        if opened is not None and not opened[0].is_usable:
            # Another thread of the parent may have held the lock.
            self._opened, self._lock = None, Lock()
            return
        with self._lock:
            opened, self._opened = self._opened, None
            if opened is None:
                return
            portal, manager, _ = opened
            try:
                portal.run(_exit(manager))
            finally:
                portal.stop()
        atexit.unregister(self.close)

    def require_open(self) -> tuple[Portal, T]:
        """Return what runs. Raises RuntimeError if it is not open, and after a fork."""
        opened = self._opened
        if opened is None:
            raise RuntimeError(f"the {self._what} is not open: call it inside of `with`")
        portal, _, value = opened
        portal.raise_if_forked()
        return portal, value

    def _raise_if_open(self) -> None:
        if self._opened is not None:
            self._opened[0].raise_if_forked()
            raise RuntimeError(f"the {self._what} is open already")


class SyncOutplanClient:
    """`OutplanClient` for programs without an event loop: the same calls, blocking.

    Use it in a ``with`` block, or call ``open`` and ``close``. Threads may share it. It may be
    called where an event loop runs too, and blocks that loop. After a fork each call raises
    RuntimeError: open a client in the process that uses it. Everything else is as for
    `OutplanClient`.
    """

    def __init__(
        self,
        amqp_url: str,
        *,
        prefix: str = "outplan",
        timeout: float = 30,
        validate: bool = True,
        resend_after: float = RESEND_SECONDS,
    ) -> None:
        def make() -> OutplanClient:
            return OutplanClient(
                amqp_url,
                prefix=prefix,
                timeout=timeout,
                validate=validate,
                resend_after=resend_after,
            )

        self._background = _Background(make, "client")

    def open(self) -> Self:
        """Connect, as entering the block does. Raises as entering an OutplanClient does."""
        self._background.open()
        return self

    def close(self) -> None:
        """Close the connection; calls in other threads end with OutcomeUnknown.

        A closed client can be closed again, and opened. In a forked process this leaves the
        parent's connection alone.
        """
        self._background.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def create(
        self,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[CreateFields],
    ) -> Result:
        """Create an outplan. Raises as ``ask`` does."""
        return self.ask(Request.create(message_id=message_id, **fields))

    def update(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[UpdateFields],
    ) -> Result:
        """Change an outplan. Raises as ``ask`` does."""
        return self.ask(Request.update(outplan_id, message_id=message_id, **fields))

    def delete(
        self,
        outplan_id: str | UUID,
        /,
        *,
        message_id: str | UUID | None = None,
        **fields: Unpack[Preconditions],
    ) -> Result:
        """Delete an outplan, softly. Raises as ``ask`` does."""
        return self.ask(Request.delete(outplan_id, message_id=message_id, **fields))

    def ask(self, request: Request) -> Result:
        """Send a command and return its outcome. Raises as `OutplanClient.ask` does."""
        portal, client = self._background.require_open()
        return portal.run(client.ask(request))

    def send(self, request: Request) -> str:
        """Send a command until the broker confirms it; return its message_id.

        Does not wait for the outcome. Raises OutcomeUnknown.
        """
        portal, client = self._background.require_open()
        return portal.run(client.send(request))

    def send_many(
        self,
        requests: Iterable[Request],
        *,
        in_flight: int = 500,
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[CommandResult[Result]]:
        """Send many commands, ``in_flight`` at a time; yield their results in the order given.

        As `OutplanClient.send_many`, but results come only once ``in_flight`` commands have been
        sent, or all. ``requests`` and ``progress`` run in the caller's thread.
        """
        counts = Progress()
        for result in self._send_many(requests, in_flight):
            counts.count(result.status)
            if progress is not None:
                progress(counts)
            yield result

    def _send_many(
        self, requests: Iterable[Request], in_flight: int
    ) -> Iterator[CommandResult[Result]]:
        portal, client = self._background.require_open()
        queue: asyncio.Queue[Request | None] = asyncio.Queue()
        results = client.send_many(_read(queue), in_flight=in_flight)
        waiting: deque[Request] = deque()

        def take() -> CommandResult[Result]:
            request = waiting.popleft()
            try:
                return portal.run(_take(results))
            except PortalStopped as error:  # Another thread has closed the client.
                return CommandResult(request, error=OutcomeUnknown(request.message_id, str(error)))

        try:
            for request in requests:
                portal.start(queue.put_nowait, request)
                waiting.append(request)
                if len(waiting) >= in_flight:
                    yield take()
            portal.start(queue.put_nowait, None)
            while waiting:
                yield take()
        finally:
            if portal.is_usable:
                portal.run(results.aclose())


class SyncEvents:
    """A stream of events, from ``sync_events``: enter it in a ``with`` block and iterate it.

    Only one loop may run at a time; it ends when any thread closes the stream. RuntimeError is
    raised before the block, after a fork, and when a closed stream is entered again.
    """

    def __init__(
        self,
        subscribe: Callable[[Callable[[Reconnected], None]], Events],
        on_reconnect: Callable[[Reconnected], None] | None,
    ) -> None:
        # Of reports and of the item that comes after them.
        self._arrived: SimpleQueue[Reconnected | Future[Item]] = SimpleQueue()
        self._on_reconnect = on_reconnect
        stream = subscribe(self._arrived.put)
        self._background: _Background[Events] = _Background(lambda: stream, "stream of events")
        self._taking: Future[Item] | None = None
        self._is_closed = False

    def __enter__(self) -> Self:
        self._background.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, which ends the loop. The last item stays unacked."""
        self._is_closed = True
        self._background.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        if self._taking is None and self._is_closed:
            raise StopIteration
        if not self._is_closed:
            portal, stream = self._background.require_open()
            if self._taking is None:
                self._taking = portal.start(stream.__anext__)
                self._taking.add_done_callback(self._arrived.put)
        # Left by an exception, this takes the same item at the next call: none is lost.
        while (arrived := self._arrived.get()) is not self._taking:
            if isinstance(arrived, Reconnected) and self._on_reconnect is not None:
                self._on_reconnect(arrived)
        taken, self._taking = self._taking, None
        try:
            return taken.result()
        except StopAsyncIteration:
            raise StopIteration from None

    def settle(self) -> None:
        """Ack the loop's last item, as taking the next one does. Call it when leaving the loop."""
        portal, stream = self._background.require_open()
        if self._taking is None:
            portal.run(stream.settle())


def sync_events(
    amqp_url: str,
    *,
    prefix: str = "outplan",
    kinds: Collection[EventType] = (),
    customer_id: str | UUID | None = None,
    outplan_id: str | UUID | None = None,
    queue: str | None = None,
    seen: Mapping[str, int] | Mapping[UUID, int] | None = None,
    on_reconnect: Callable[[Reconnected], None] | None = None,
) -> SyncEvents:
    """Subscribe to events as ``events`` does, blocking; ``on_reconnect`` runs in the loop's thread.

    Raises ValueError as ``events`` does.
    """

    def subscribe(report: Callable[[Reconnected], None]) -> Events:
        return events(
            amqp_url,
            prefix=prefix,
            kinds=kinds,
            customer_id=customer_id,
            outplan_id=outplan_id,
            queue=queue,
            seen=seen,
            on_reconnect=report,
        )

    return SyncEvents(subscribe, on_reconnect)


async def _enter(manager: AbstractAsyncContextManager[T]) -> T:
    return await manager.__aenter__()


async def _exit(manager: AbstractAsyncContextManager[T]) -> None:
    await manager.__aexit__(None, None, None)


async def _read(queue: "asyncio.Queue[Request | None]") -> AsyncIterator[Request]:
    while (request := await queue.get()) is not None:
        yield request


async def _take(results: AsyncIterator[T]) -> T:
    return await anext(results)
