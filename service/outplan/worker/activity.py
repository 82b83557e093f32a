"""Know what a worker does now: which queues are active, and what is in hand."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final, Literal

import structlog

from outplan.domain.records import WorkerReport
from outplan.errors import OutplanError
from outplan.worker.ports import BrokerSession
from outplan.worker.telemetry import Health, Metrics

_LOOK_SECONDS: Final = 1
_MAX_PAUSE_SECONDS: Final = 60


class Activity:
    """What a worker does, for its log, its metrics, /readyz and its announcements.

    A queue is active while this worker is its single active consumer. AMQP does not tell a
    consumer that it has become active. So the worker sends barriers through the queue and sees
    whether they come to it. Before the first one has come, a queue without another consumer counts.
    """

    def __init__(self, health: Health, metrics: Metrics) -> None:
        self._health = health
        self._metrics = metrics
        self._assumed: set[str] = set()
        self._session: BrokerSession | None = None
        self._log = structlog.get_logger()
        metrics.queues_active.set_function(lambda: len(self.active))

    @property
    def active(self) -> tuple[str, ...]:
        """The active queues, sorted."""
        delivered = self._session.delivered if self._session is not None else ()
        return tuple(sorted(self._assumed.union(delivered)))

    @property
    def role(self) -> Literal["active", "standby"]:
        return "active" if self.active else "standby"

    def start_session(self, session: BrokerSession) -> None:
        self._session = session
        self._assumed = {q for q, others in session.other_consumers.items() if not others}

    def end_session(self) -> None:
        self._session = None
        self._assumed = set()

    def report(self) -> WorkerReport:
        """Return what the worker announces."""
        return WorkerReport(
            self.active,
            self._session.unacked if self._session is not None else 0,
            self._health.failures,
            self._metrics.count_unordered(),
        )

    async def watch(self, session: BrokerSession, workers: Callable[[], Collection[str]]) -> None:
        """Send barriers through the queues that have not delivered anything, until cancelled.

        Send them ever more rarely, and sooner again when a worker comes or goes; ``workers``
        returns the live ones. A barrier that does not come back has gone to another consumer.
        """
        known = set(self.active)
        alive, pause, waited = frozenset(workers()), _LOOK_SECONDS, 0
        has_asked = False
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            waited += _LOOK_SECONDS
            for queue in sorted(session.delivered - known):
                known.add(queue)
                self._log.info("queue_taken_over", queue=queue)
            before, alive = alive, frozenset(workers())
            if alive != before:
                pause = _LOOK_SECONDS
            if waited < pause:
                continue
            waited, pause = 0, min(2 * pause, _MAX_PAUSE_SECONDS)
            if has_asked:
                self._assumed &= session.delivered
            has_asked = False
            # The session's end says what is wrong; an alarm blocks the barriers.
            with suppress(OutplanError, TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await session.send_barriers(session.other_consumers.keys() - session.delivered)
                has_asked = True
