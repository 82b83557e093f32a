"""Run a worker: one session after another until it is told to stop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import structlog
from tenacity import AsyncRetrying

from outplan.contract.times import Clock
from outplan.contract.topology import PREFETCH
from outplan.domain.layout import Share
from outplan.errors import (
    BrokerUnavailable,
    LayoutChanged,
    OutplanError,
    StoreConflict,
    StoreUnavailable,
)
from outplan.retry import SessionBackoff, retrying
from outplan.worker.activity import Activity
from outplan.worker.handler import Handler
from outplan.worker.membership import Membership
from outplan.worker.pipeline import SESSION_ENDED, Pipeline
from outplan.worker.ports import BrokerSession, OutplanStore, Registry
from outplan.worker.telemetry import Health, Metrics

OpenSession = Callable[
    [Share, Callable[[], Awaitable[None]], bool, bool], AbstractAsyncContextManager[BrokerSession]
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """The parts that a worker works with, from ``bootstrap``; ``name`` tells workers apart.

    ``open_session`` takes the worker's share, a function that raises LayoutChanged once it is
    outdated, whether it is the first session, and whether the one before was lost. ``place`` has
    the names, without secrets, that tell in the log what the worker is connected to.
    """

    name: str
    prefix: str
    place: Mapping[str, str | int]
    store: OutplanStore
    registry: Registry
    membership: Membership
    open_session: OpenSession
    clock: Clock
    health: Health
    metrics: Metrics
    activity: Activity

    def new_handler(
        self, share: Share, confirm_ownership: Callable[[], Awaitable[None]]
    ) -> Handler:
        """Make the handler of one session."""
        return Handler(
            store=self.store,
            registry=self.registry,
            worker=self.name,
            generation=share.layout.generation,
            # Each queue's consumer has a prefetch of its own; delivery tags count all of them.
            window=PREFETCH * len(share.consumed),
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
        self._share: Share | None = None
        self._is_lost = False

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
        if self._share is not None:
            await self._parts.membership.leave()
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
        require_setting = self._parts.membership.require_setting
        await self._retrying("store", StoreUnavailable)(require_setting)
        backoff = SessionBackoff()
        while not self._stopping.is_set():
            # Wait for the store before anything is received: each lost delivery raises the
            # message's delivery count.
            await self._retrying("store", StoreUnavailable)(store.ping)
            health.recover("store")
            backoff.start_session()
            pipeline: Pipeline | None = None
            has_progressed = True
            try:
                async with self._open_pipeline() as pipeline:
                    await pipeline.run()
            except LayoutChanged as error:
                self._log.info("session_ended", detail=str(error))
            except StoreUnavailable as error:
                # While a session opened. Its connections must not wait for the store.
                health.fail("store", error)
            except SESSION_ENDED as error:
                self._is_lost = True
                health.fail("broker", error)
                # A session that settles nothing raises the delivery count of every prefetched
                # message.
                has_progressed = pipeline is not None and pipeline.settled > 0
            if has_progressed:
                backoff.note_progress()
            await self._pause(backoff.next_pause())

    @asynccontextmanager
    async def _open_pipeline(self) -> AsyncIterator[Pipeline]:
        parts, read_share = self._parts, self._parts.membership.read_share
        async with AsyncExitStack() as stack:

            async def enter() -> tuple[Share, BrokerSession]:
                share: Share = await self._retrying("store", StoreUnavailable)(read_share)
                require_layout = partial(parts.membership.require_layout, share)
                is_first = self._share is None
                opening = parts.open_session(share, require_layout, is_first, self._is_lost)
                try:
                    return share, await stack.enter_async_context(opening)
                except BrokerUnavailable:
                    self._is_lost = True
                    raise

            entered: tuple[Share, BrokerSession]
            entered = await self._retrying("broker", BrokerUnavailable)(enter)
            share, session = entered
            handler = parts.new_handler(share, session.confirm_ownership)
            self._start_session(session, share)
            following = asyncio.create_task(self._follow_share(session, share))
            watching = asyncio.create_task(
                parts.activity.watch(session, lambda: parts.membership.workers)
            )
            try:
                yield Pipeline(
                    session=session,
                    handler=handler,
                    topology=share.layout.build_topology(parts.prefix),
                    clock=parts.clock,
                    batch_size=self._batch_size,
                    health=parts.health,
                    metrics=parts.metrics,
                )
            except (*SESSION_ENDED, asyncio.CancelledError):
                await handler.release()
                raise
            else:
                await handler.release()
            finally:
                self._session = None
                following.cancel()
                watching.cancel()
                await asyncio.wait({following, watching})
                parts.activity.end_session()

    async def _follow_share(self, session: BrokerSession, share: Share) -> None:
        """Stop the session once the worker has another share."""
        await self._parts.membership.wait_for_change(share)
        session.stop_receiving()

    def _start_session(self, session: BrokerSession, share: Share) -> None:
        self._session = session
        if self._stopping.is_set():
            session.stop_receiving()
        self._parts.metrics.sessions.inc()
        self._parts.activity.start_session(session)
        for component in ("broker", "publishing"):
            self._parts.health.recover(component)
        if self._share is None and session.known_defect:
            self._log.warning("broker_defect_found", detail=session.known_defect)
        self._log.info(
            "session_reopened" if self._share else "ready",
            role=self._parts.activity.role,
            **self._parts.place,
            phase=share.layout.phase,
            partitions=share.layout.partitions,
            own=len(share.own),
            workers=share.workers,
        )
        self._share = share
        self._is_lost = False

    async def _pause(self, seconds: float) -> None:
        """Wait for at most so long, or until told to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _retrying(self, component: str, *errors: type[OutplanError]) -> AsyncRetrying:
        health = self._parts.health
        return retrying(*errors, on_error=lambda error: health.fail(component, error))
