"""Run a worker: one session after another until it is told to stop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from random import uniform
from typing import Final

import structlog
from tenacity import AsyncRetrying

from outplan.contract.times import Clock
from outplan.contract.topology import PREFETCH, Topology
from outplan.errors import BrokerUnavailable, OutplanError, StoreConflict, StoreUnavailable
from outplan.retry import retrying
from outplan.worker.handler import Handler
from outplan.worker.pipeline import SESSION_ENDED, Pipeline
from outplan.worker.ports import BrokerSession, OutplanStore
from outplan.worker.telemetry import Health, Metrics

# Between sessions, in seconds.
_SHORTEST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """The parts that a worker works with, from ``bootstrap``; ``name`` tells workers apart."""

    name: str
    store: OutplanStore
    open_session: Callable[[], AbstractAsyncContextManager[BrokerSession]]
    topology: Topology
    clock: Clock
    health: Health
    metrics: Metrics

    def new_handler(self, confirm_ownership: Callable[[], Awaitable[None]]) -> Handler:
        """Make the handler of one session."""
        return Handler(
            store=self.store,
            worker=self.name,
            # Each queue's consumer has a prefetch of its own; delivery tags count all of them.
            window=PREFETCH * len(self.topology.command_queues),
            clock=self.clock,
            on_error=lambda error: self.health.fail("store", error),
            confirm_ownership=confirm_ownership,
        )


class Worker:
    """Consume commands until ``stop``.

    ``batch_size`` is the most commands in one transaction, ``drain_seconds`` the longest drain.
    """

    def __init__(
        self, dependencies: Dependencies, *, batch_size: int, drain_seconds: float
    ) -> None:
        self._parts = dependencies
        self._batch_size = batch_size
        self._drain_seconds = drain_seconds
        self._log = structlog.get_logger()
        self._stopping = asyncio.Event()
        self._session: BrokerSession | None = None
        self._was_ready = False

    def stop(self) -> None:
        """Finish the batches in hand, leave the rest in the queue, and return from ``run``."""
        self._stopping.set()
        if self._session is not None:
            self._session.stop_receiving()

    async def is_blocked(self) -> bool:
        """Tell whether the broker blocks this worker's publishing."""
        return self._session is not None and await self._session.is_blocked()

    async def run(self) -> None:
        """Serve until ``stop``, then drain. Raises Fatal errors."""
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
        self._log.info("drain_started", seconds=self._drain_seconds)
        await asyncio.wait({serving}, timeout=self._drain_seconds)
        if not serving.done():
            self._log.warning("drain_deadline_passed", detail="the broker requeues the rest")

    async def _serve(self) -> None:
        store, health = self._parts.store, self._parts.health
        await self._retrying("store", StoreUnavailable, StoreConflict)(store.prepare)
        pause = _SHORTEST_PAUSE
        while not self._stopping.is_set():
            # Wait for the store before anything is received: each lost delivery raises the
            # message's delivery count.
            await self._retrying("store", StoreUnavailable)(store.ping)
            health.recover("store")
            pipeline: Pipeline | None = None
            try:
                async with self._open_pipeline() as pipeline:
                    await pipeline.run()
            except SESSION_ENDED as error:
                health.fail("broker", error)
            # A session that settles nothing raises the delivery count of every prefetched message.
            is_wasted = pipeline is not None and pipeline.received and not pipeline.settled
            pause = min(_LONGEST_PAUSE, 2 * pause) if is_wasted else _SHORTEST_PAUSE
            await self._pause(pause)

    @asynccontextmanager
    async def _open_pipeline(self) -> AsyncIterator[Pipeline]:
        parts = self._parts
        async with AsyncExitStack() as stack:

            async def enter() -> BrokerSession:
                return await stack.enter_async_context(parts.open_session())

            session: BrokerSession = await self._retrying("broker", BrokerUnavailable)(enter)
            handler = parts.new_handler(session.confirm_ownership)
            self._start_session(session)
            try:
                yield Pipeline(
                    session=session,
                    handler=handler,
                    topology=parts.topology,
                    clock=parts.clock,
                    batch_size=self._batch_size,
                    health=parts.health,
                    metrics=parts.metrics,
                )
            except (*SESSION_ENDED, asyncio.CancelledError):
                await handler.refund_attempts()
                raise
            finally:
                self._session = None

    def _start_session(self, session: BrokerSession) -> None:
        self._session = session
        if self._stopping.is_set():
            session.stop_receiving()
        self._parts.metrics.sessions.inc()
        for component in ("broker", "publishing"):
            self._parts.health.recover(component)
        self._log.info("session_reopened" if self._was_ready else "ready")
        self._was_ready = True

    async def _pause(self, seconds: float) -> None:
        """Wait for at most so long, or until told to stop."""
        with suppress(TimeoutError):
            # Jitter keeps workers that failed together from coming back together.
            async with asyncio.timeout(uniform(0.2, 1) * seconds):  # noqa: S311
                await self._stopping.wait()

    def _retrying(self, component: str, *errors: type[OutplanError]) -> AsyncRetrying:
        health = self._parts.health
        return retrying(*errors, on_error=lambda error: health.fail(component, error))
