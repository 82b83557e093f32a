"""Lifecycle: sessions one after another, batches through them, and the end of it all."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from random import uniform
from typing import Final, Protocol

import structlog
from tenacity import AsyncRetrying

from outplan.contract.amqp import Delivery, Publication
from outplan.contract.topology import Topology
from outplan.domain.codec import Outcome, publications
from outplan.errors import (
    BrokerUnavailable,
    Fatal,
    Fenced,
    OutplanError,
    StoreConflict,
    StoreUnavailable,
    Unprocessable,
)
from outplan.mongodb.store import Store
from outplan.retry import retrying
from outplan.worker.handler import Handler
from outplan.worker.telemetry import Health, Metrics

# Deliveries that a message may have behind it before it is suspected of having ended them.
SUSPICIOUS: Final = 3
# Between sessions, in seconds.
_SHORTEST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 30.0
_END_OF_SESSION: Final = (BrokerUnavailable, Fenced)


class Session(Protocol):
    """What the worker needs of ``broker.Session``, which has the contract of each."""

    async def receive(self, most: int) -> list[Delivery]: ...
    def stop_receiving(self) -> None: ...
    async def publish(self, publications: Sequence[Publication]) -> None: ...
    async def ack(self, delivery: Delivery) -> None: ...
    async def confirm_ownership(self) -> None: ...
    async def watch(self) -> None: ...
    async def blocked(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a worker works with; ``bootstrap`` puts it together."""

    store: Store
    open_session: Callable[[], AbstractAsyncContextManager[Session]]
    make_handler: Callable[[Callable[[], Awaitable[None]]], Handler]
    topology: Topology
    clock: Callable[[], str]
    health: Health
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Limits:
    """How many commands at a time, and how long to drain (seconds)."""

    batch: int
    drain: float


# What the committing side hands to the settling side; an error, or None, is the last of it.
_Handover = asyncio.Queue[list[Outcome] | OutplanError | None]


class Worker:
    """Consumes commands until told to stop."""

    def __init__(self, wiring: Wiring, limits: Limits) -> None:
        self._wiring = wiring
        self._limits = limits
        self._log = structlog.get_logger()
        self._stopping = asyncio.Event()
        self._session: Session | None = None
        self._was_ready = False
        self._taken = 0
        self._settled = 0

    def stop(self) -> None:
        """Finish what is in hand, leave the rest in the queue, and return from ``run``."""
        self._stopping.set()
        if self._session is not None:
            self._session.stop_receiving()

    async def blocked(self) -> bool:
        """Whether the broker holds this worker's publishing up."""
        return self._session is not None and await self._session.blocked()

    async def run(self) -> None:
        """Serve until ``stop``, then for the drain deadline at most. Raises Fatal errors."""
        serving = asyncio.create_task(self._serve())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done() and self._session is not None:
                await self._drain(serving)
        finally:
            stopping.cancel()
            serving.cancel()
            await asyncio.wait({serving})
        if not serving.cancelled():
            serving.result()

    async def _drain(self, serving: "asyncio.Task[None]") -> None:
        self._log.info("draining", seconds=self._limits.drain)
        await asyncio.wait({serving}, timeout=self._limits.drain)
        if not serving.done():
            self._log.warning("drain deadline passed; the queue keeps what was in hand")

    async def _serve(self) -> None:
        wiring = self._wiring
        await self._patiently("store", StoreUnavailable, StoreConflict)(wiring.store.prepare)
        pause = _SHORTEST_PAUSE
        while not self._stopping.is_set():
            taken, settled = self._taken, self._settled
            # A store that is away is waited for here, with nothing taken from the queue: each
            # delivery that comes to nothing counts against the message.
            await self._patiently("store", StoreUnavailable)(wiring.store.ping)
            wiring.health.well("store")
            try:
                await self._one_session()
            except _END_OF_SESSION as error:
                wiring.health.trouble("broker", error)
            # One that comes to nothing counts against all that it was given.
            in_vain = self._taken > taken and self._settled == settled
            pause = min(_LONGEST_PAUSE, 2 * pause) if in_vain else _SHORTEST_PAUSE
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Wait for so long at most, or until told to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(uniform(0.2, 1) * seconds):  # noqa: S311  spread, no secret
                await self._stopping.wait()

    def _patiently(self, place: str, *errors: type[OutplanError]) -> AsyncRetrying:
        health = self._wiring.health
        return retrying(*errors, on_error=lambda error: health.trouble(place, error))

    async def _one_session(self) -> None:
        async with AsyncExitStack() as stack:

            async def enter() -> Session:
                return await stack.enter_async_context(self._wiring.open_session())

            session: Session = await self._patiently("broker", BrokerUnavailable)(enter)
            handler = self._wiring.make_handler(session.confirm_ownership)
            async with self._in_session(session):
                try:
                    await self._pipeline(session, handler)
                except (*_END_OF_SESSION, asyncio.CancelledError):
                    await handler.release()
                    raise

    @asynccontextmanager
    async def _in_session(self, session: Session) -> AsyncIterator[None]:
        self._session = session
        if self._stopping.is_set():
            session.stop_receiving()
        self._wiring.metrics.sessions.inc()
        for place in ("broker", "publishing"):
            self._wiring.health.well(place)
        self._log.info("consuming again" if self._was_ready else "ready")
        self._was_ready = True
        try:
            yield
        finally:
            self._session = None

    async def _pipeline(self, session: Session, handler: Handler) -> None:
        """While one batch is published, the next may be committed."""
        handover: _Handover = asyncio.Queue(maxsize=1)
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(session.watch())
                committing = group.create_task(self._commit(session, handler, handover))
                await self._settle(session, handover)
                watching.cancel()
                committing.cancel()
        except BaseExceptionGroup as errors:
            # Python 3.11 lets an error hide that the task is to end.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError from errors
            raise _foremost(errors) from errors

    async def _commit(self, session: Session, handler: Handler, handover: _Handover) -> None:
        try:
            while batch := await session.receive(self._limits.batch):
                self._taken += len(batch)
                self._wiring.metrics.redelivered.inc(sum(d.redelivered for d in batch))
                await self._judge(handler, batch, handover)
        except _END_OF_SESSION as error:
            # What was committed before it is still published and acknowledged.
            await handover.put(error)
        else:
            await handover.put(None)

    async def _judge(self, handler: Handler, batch: list[Delivery], handover: _Handover) -> None:
        worst = max(delivery.delivery_count for delivery in batch)
        if worst >= SUSPICIOUS:
            self._log.warning("one by one", commands=len(batch), deliveries=worst)
            return await self._judge_one_by_one(handler, batch, handover)
        try:
            outcomes = await self._timed(handler.handle(batch), len(batch))
        except Unprocessable as error:
            self._log.error("one by one", commands=len(batch), detail=str(error))
            return await self._judge_one_by_one(handler, batch, handover)
        return await handover.put(outcomes)

    async def _timed(self, handling: Awaitable[list[Outcome]], commands: int) -> list[Outcome]:
        since = time.monotonic()
        outcomes = await handling
        self._wiring.health.well("store")
        self._wiring.metrics.batch_size.observe(commands)
        self._wiring.metrics.commit_seconds.observe(time.monotonic() - since)
        return outcomes

    async def _judge_one_by_one(
        self, handler: Handler, batch: list[Delivery], handover: _Handover
    ) -> None:
        for delivery in batch:
            await handover.put(await self._timed(handler.handle_alone(delivery), 1))
            # On trial until it is settled: its publication may be what ends the worker.
            await handover.join()
            handler.acquit(delivery)

    async def _settle(self, session: Session, handover: _Handover) -> None:
        while (outcomes := await handover.get()) is not None:
            if isinstance(outcomes, OutplanError):
                raise outcomes
            since = time.monotonic()
            now, topology = self._wiring.clock(), self._wiring.topology
            messages = [p for o in outcomes for p in publications(o, topology, now)]
            await session.publish(messages)
            await session.ack(outcomes[-1].delivery)
            self._settled += len(outcomes)
            self._wiring.health.well("publishing")
            self._wiring.metrics.publish_seconds.observe(time.monotonic() - since)
            self._count(outcomes)
            handover.task_done()

    def _count(self, outcomes: list[Outcome]) -> None:
        metrics, now = self._wiring.metrics, time.time()
        for outcome in outcomes:
            code = outcome.problem.code if outcome.problem else ""
            status = "duplicate" if outcome.duplicate else outcome.status
            metrics.commands.labels(status, code).inc()
            if outcome.problem:
                self._log.info("rejected", code=code, command_id=outcome.delivery.command_id)
            sent = outcome.delivery.properties.timestamp
            if sent is not None and sent >= 0:
                metrics.lag_seconds.observe(max(0.0, now - sent))


def _foremost(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to act on: what only a person can mend, else the first of all."""
    flat = list(_leaves(errors))
    return next((e for e in flat if isinstance(e, Fatal)), flat[0])


def _leaves(errors: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in errors.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
