"""Send many commands at a time, in bounded memory; yield their results in the order given."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from outplan.client.errors import CommandRejected, OutcomeUnknown
from outplan.client.loop_guard import LoopGuard
from outplan.client.requests import Request


class HasStatus(Protocol):
    """The outcome of a command that was not rejected."""

    @property
    def status(self) -> Literal["accepted", "unchanged"]: ...


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT", bound=HasStatus)
Status = Literal["accepted", "unchanged", "rejected", "unknown"]


@dataclass(frozen=True, slots=True)
class CommandResult(Generic[ResultT]):
    """One of many commands with its ``result``, or with the ``error`` that ``ask`` raises."""

    request: Request
    result: ResultT | None = None
    error: CommandRejected | OutcomeUnknown | None = None

    @property
    def status(self) -> Status:
        if self.result is not None:
            return self.result.status
        return "unknown" if isinstance(self.error, OutcomeUnknown) else "rejected"


@dataclass(slots=True)
class Progress:
    """The number of results so far, by status."""

    accepted: int = 0
    unchanged: int = 0
    rejected: int = 0
    unknown: int = 0

    @property
    def done(self) -> int:
        return self.accepted + self.unchanged + self.rejected + self.unknown

    def count(self, status: Status) -> None:
        setattr(self, status, getattr(self, status) + 1)


def ask_many(
    requests: Iterable[Request] | AsyncIterable[Request],
    ask: Callable[[Request], Awaitable[ResultT]],
    in_flight: int,
    progress: Callable[[Progress], None] | None,
) -> AsyncGenerator[CommandResult[ResultT]]:
    """Call ``ask`` with each request, ``in_flight`` at a time.

    An exception of ``ask`` other than CommandRejected and OutcomeUnknown ends the iteration.
    Iterating raises ValueError for ``in_flight`` below 1, and RuntimeError in another event loop
    than the first one and after a fork.
    """
    return _InOneLoop(_ask_many(requests, ask, in_flight, progress))


async def _ask_many(
    requests: Iterable[Request] | AsyncIterable[Request],
    ask: Callable[[Request], Awaitable[ResultT]],
    in_flight: int,
    progress: Callable[[Progress], None] | None,
) -> AsyncGenerator[CommandResult[ResultT]]:
    if in_flight < 1:
        raise ValueError("in_flight is at least 1")
    counts = Progress()
    window = _Window(ask, in_flight)
    feeding = asyncio.create_task(window.feed(requests))
    try:
        async for result in window.results():
            counts.count(result.status)
            if progress is not None:
                progress(counts)
            yield result
        await feeding
    finally:
        feeding.cancel()
        await window.close()


class _InOneLoop(AsyncGenerator[ItemT]):
    """Guard a generator whose tasks belong to the event loop that iterates it first.

    asyncio closes a loop's generators when the loop ends; iterated in another one, they would look
    finished.
    """

    def __init__(self, items: AsyncGenerator[ItemT]) -> None:
        self._items = items
        self._guard: LoopGuard | None = None

    async def asend(self, value: None) -> ItemT:
        self._check_loop()
        return await self._items.asend(value)

    async def athrow(self, *error: Any) -> ItemT:
        self._check_loop()
        return await self._items.athrow(*error)

    async def aclose(self) -> None:
        if self._guard is not None and not self._guard.is_forked:
            self._guard.check()
            await self._items.aclose()

    def _check_loop(self) -> None:
        if self._guard is None:
            self._guard = LoopGuard("iteration over send_many")
        self._guard.check()


class _Window(Generic[ResultT]):
    """The commands in flight, and those whose results have not been yielded yet."""

    def __init__(self, ask: Callable[[Request], Awaitable[ResultT]], size: int) -> None:
        self._ask = ask
        self._places = asyncio.Semaphore(size)
        self._tasks: asyncio.Queue[asyncio.Task[CommandResult[ResultT]] | None] = asyncio.Queue()
        self._last_of: dict[str, asyncio.Task[CommandResult[ResultT]]] = {}
        self._running: set[asyncio.Task[CommandResult[ResultT]]] = set()

    async def feed(self, requests: Iterable[Request] | AsyncIterable[Request]) -> None:
        """Start each request as soon as there is a place for it."""
        try:
            async for request in _iterate(requests):
                await self._places.acquire()
                self._tasks.put_nowait(self._start(request))
        finally:
            self._tasks.put_nowait(None)

    async def results(self) -> AsyncIterator[CommandResult[ResultT]]:
        """Yield the results in the order of the requests."""
        while (task := await self._tasks.get()) is not None:
            result = await task
            self._places.release()
            yield result

    async def close(self) -> None:
        """Cancel what still runs."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _start(self, request: Request) -> "asyncio.Task[CommandResult[ResultT]]":
        id_ = request.outplan_id or request.message_id
        task = asyncio.create_task(self._run(request, self._last_of.get(id_)))
        self._last_of[id_] = task
        self._running.add(task)
        task.add_done_callback(lambda done: self._forget(id_, done))
        return task

    def _forget(self, id_: str, done: "asyncio.Task[CommandResult[ResultT]]") -> None:
        self._running.discard(done)
        if self._last_of.get(id_) is done:
            del self._last_of[id_]

    async def _run(
        self, request: Request, before: "asyncio.Task[CommandResult[ResultT]] | None"
    ) -> CommandResult[ResultT]:
        if before is not None:
            # The next command for an outplan must not overtake one that is resent.
            await asyncio.wait([before])
        try:
            return CommandResult(request, result=await self._ask(request))
        except (CommandRejected, OutcomeUnknown) as error:
            return CommandResult(request, error=error)


async def _iterate(requests: Iterable[Request] | AsyncIterable[Request]) -> AsyncIterator[Request]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
