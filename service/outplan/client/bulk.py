"""Many commands at a time, in bounded memory, their verdicts in the order given."""

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
from typing import Generic, Literal, Protocol, TypeVar

from outplan.client.errors import CommandRejected, OutcomeUnknown
from outplan.client.requests import Request


class Granted(Protocol):
    """What a granted command returns."""

    @property
    def status(self) -> Literal["accepted", "unchanged"]: ...


ResultT = TypeVar("ResultT", bound=Granted)
Status = Literal["accepted", "unchanged", "rejected", "unknown"]


@dataclass(frozen=True, slots=True)
class CommandResult(Generic[ResultT]):
    """What became of one of many: its ``result``, or the ``error`` that ``ask`` raises."""

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
    """How many have come to which verdict so far."""

    accepted: int = 0
    unchanged: int = 0
    rejected: int = 0
    unknown: int = 0

    @property
    def done(self) -> int:
        return self.accepted + self.unchanged + self.rejected + self.unknown

    def count(self, status: Status) -> None:
        setattr(self, status, getattr(self, status) + 1)


async def flow(
    requests: Iterable[Request] | AsyncIterable[Request],
    ask: Callable[[Request], Awaitable[ResultT]],
    in_flight: int,
    progress: Callable[[Progress], None] | None,
) -> AsyncGenerator[CommandResult[ResultT]]:
    """Ask for each; what ``ask`` raises beside a verdict ends the flow. ValueError below 1."""
    if in_flight < 1:
        raise ValueError("in_flight is at least 1")
    so_far = Progress()
    window = _Window(ask, in_flight)
    feeding = asyncio.create_task(window.feed(requests))
    try:
        async for verdict in window.verdicts():
            so_far.count(verdict.status)
            if progress is not None:
                progress(so_far)
            yield verdict
        await feeding
    finally:
        feeding.cancel()
        await window.close()


class _Window(Generic[ResultT]):
    """The commands in flight, and those whose verdict is not taken yet."""

    def __init__(self, ask: Callable[[Request], Awaitable[ResultT]], size: int) -> None:
        self._ask = ask
        self._places = asyncio.Semaphore(size)
        self._tasks: asyncio.Queue[asyncio.Task[CommandResult[ResultT]] | None] = asyncio.Queue()
        self._last_of: dict[str, asyncio.Task[CommandResult[ResultT]]] = {}
        self._running: set[asyncio.Task[CommandResult[ResultT]]] = set()

    async def feed(self, requests: Iterable[Request] | AsyncIterable[Request]) -> None:
        try:
            async for request in _each(requests):
                await self._places.acquire()
                self._tasks.put_nowait(self._begin(request))
        finally:
            self._tasks.put_nowait(None)

    async def verdicts(self) -> AsyncIterator[CommandResult[ResultT]]:
        while (task := await self._tasks.get()) is not None:
            verdict = await task
            self._places.release()
            yield verdict

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _begin(self, request: Request) -> "asyncio.Task[CommandResult[ResultT]]":
        id_ = request.outplan_id or request.message_id
        task = asyncio.create_task(self._verdict(request, self._last_of.get(id_)))
        self._last_of[id_] = task
        self._running.add(task)
        task.add_done_callback(lambda done: self._ended(id_, done))
        return task

    def _ended(self, id_: str, done: "asyncio.Task[CommandResult[ResultT]]") -> None:
        self._running.discard(done)
        if self._last_of.get(id_) is done:
            del self._last_of[id_]

    async def _verdict(
        self, request: Request, before: "asyncio.Task[CommandResult[ResultT]] | None"
    ) -> CommandResult[ResultT]:
        if before is not None:
            # One that is sent again must not be overtaken by the next for the same outplan.
            await asyncio.wait([before])
        try:
            return CommandResult(request, result=await self._ask(request))
        except (CommandRejected, OutcomeUnknown) as error:
            return CommandResult(request, error=error)


async def _each(requests: Iterable[Request] | AsyncIterable[Request]) -> AsyncIterator[Request]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
