"""Move batches through one session: receive, commit, publish, ack."""

import asyncio
import time
from collections.abc import Awaitable
from itertools import groupby
from typing import Final, TypeVar

import structlog

from outplan.contract.amqp import Delivery
from outplan.contract.times import Clock
from outplan.contract.topology import BARRIER, Topology
from outplan.domain.codec import Outcome, build_publications, find_disorder
from outplan.errors import BrokerUnavailable, Fatal, Fenced, OutplanError, Unprocessable
from outplan.worker.handler import Handler
from outplan.worker.ports import BrokerSession
from outplan.worker.telemetry import Health, Metrics

T = TypeVar("T")

# A message that was delivered so many times before may be a poison message.
SUSPICIOUS_DELIVERIES: Final = 3
# These end a session; the worker opens another one.
SESSION_ENDED: Final = (BrokerUnavailable, Fenced)


class Pipeline:
    """Commit one batch while publishing the batch before it.

    ``received`` and ``settled`` count deliveries.
    """

    def __init__(
        self,
        *,
        session: BrokerSession,
        handler: Handler,
        topology: Topology,
        clock: Clock,
        batch_size: int,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._session = session
        self._handler = handler
        self._topology = topology
        self._clock = clock
        self._batch_size = batch_size
        self._health = health
        self._metrics = metrics
        # Holds one committed batch at most. The last item is an error, or None.
        self._committed: asyncio.Queue[list[Outcome] | OutplanError | None] = asyncio.Queue(1)
        self._log = structlog.get_logger()
        self.received = 0
        self.settled = 0

    async def run(self) -> None:
        """Run until the session stops receiving. Raises BrokerUnavailable, Fenced or Fatal."""
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._session.watch())
                committing = group.create_task(self._commit_batches())
                await self._settle()
                watching.cancel()
                committing.cancel()
        except BaseExceptionGroup as errors:
            # Python 3.11 lets an error hide that the task is cancelled.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError from errors
            raise _choose_error(errors) from errors

    async def _commit_batches(self) -> None:
        try:
            while deliveries := await self._session.receive(self._batch_size):
                self.received += len(deliveries)
                self._metrics.redelivered.inc(sum(d.redelivered for d in deliveries))
                for is_barrier, some in groupby(deliveries, _is_barrier):
                    await (self._pass_barriers if is_barrier else self._handle)(list(some))
        except SESSION_ENDED as error:
            # Queue the error behind the committed batch, so that that batch is published and acked.
            await self._committed.put(error)
        else:
            await self._committed.put(None)

    async def _pass_barriers(self, barriers: list[Delivery]) -> None:
        """Report each barrier once everything before it is published and acked."""
        await self._committed.join()
        for barrier in barriers:
            await self._handler.pass_barrier(barrier)
        await self._session.ack(barriers[-1])
        self.settled += len(barriers)

    async def _handle(self, deliveries: list[Delivery]) -> None:
        highest = max((d.delivery_count for d in deliveries if d.redelivered), default=0)
        # Sessions that end cleanly raise the broker's count as well.
        if (
            highest >= SUSPICIOUS_DELIVERIES
            and await self._handler.count_crashes(deliveries) >= SUSPICIOUS_DELIVERIES
        ):
            self._log.warning("batch_split", commands=len(deliveries), deliveries=highest)
            return await self._handle_one_by_one(deliveries)
        try:
            outcomes = await self._time_handling(self._handler.handle(deliveries), len(deliveries))
        except Unprocessable as error:
            self._log.error("batch_split", commands=len(deliveries), detail=str(error))
            return await self._handle_one_by_one(deliveries)
        return await self._committed.put(outcomes)

    async def _handle_one_by_one(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            outcome = await self._time_handling(self._handler.handle_alone(delivery), 1)
            await self._committed.put([outcome])
            # Keep the attempt until the ack: publishing may end the worker too.
            await self._committed.join()
            self._handler.end_attempt(delivery)

    async def _time_handling(self, handling: Awaitable[T], commands: int) -> T:
        since = time.monotonic()
        result = await handling
        self._health.recover("store")
        self._metrics.batch_size.observe(commands)
        self._metrics.commit_seconds.observe(time.monotonic() - since)
        return result

    async def _settle(self) -> None:
        """Publish each committed batch, await its confirms, and ack it."""
        while (outcomes := await self._committed.get()) is not None:
            if isinstance(outcomes, OutplanError):
                raise outcomes
            since, now = time.monotonic(), self._clock()
            await self._session.publish(
                [
                    message
                    for o in outcomes
                    for message in build_publications(o, self._topology, now)
                ]
            )
            await self._session.ack(outcomes[-1].delivery)
            self.settled += len(outcomes)
            self._health.recover("publishing")
            self._metrics.publish_seconds.observe(time.monotonic() - since)
            self._count(outcomes)
            self._committed.task_done()

    def _count(self, outcomes: list[Outcome]) -> None:
        now = self._clock().timestamp()
        for outcome in outcomes:
            code = outcome.problem.code if outcome.problem else ""
            status = "duplicate" if outcome.duplicate else outcome.status
            self._metrics.commands.labels(status, code).inc()
            if self._topology.partitions and (reason := find_disorder(outcome)):
                self._metrics.unordered.labels(reason).inc()
            if outcome.problem:
                command_id = outcome.delivery.command_id
                self._log.info("command_rejected", code=code, command_id=command_id)
            sent = outcome.delivery.properties.timestamp
            if sent is not None and sent >= 0:
                self._metrics.lag_seconds.observe(max(0.0, now - sent))


def _is_barrier(delivery: Delivery) -> bool:
    return delivery.properties.message_type == BARRIER


def _choose_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first Fatal error, or else the first error."""
    fatal = errors.subgroup(Fatal)
    found: BaseException = fatal or errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
