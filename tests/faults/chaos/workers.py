"""Worker processes of a run, some of them with a wrong clock or a tendency to crash."""

import asyncio
import random
import signal
from typing import Any, Final

from outplan.testing import Deployment
from tests.support.faulty_worker import CRASH_POINTS
from tests.support.worker_process import WorkerProcess, start_worker

_MODULE: Final = "tests.faults.chaos.worker"
# A batch takes a few milliseconds, so a worker crashes every few seconds.
_CRASH_PROBABILITY: Final = 0.02
# The points at which a crash exposes most defects in the code.
_EXPOSING_POINTS: Final = ("committed", "half published")


class WorkerPool:
    """Start, replace and drain worker processes of one deployment.

    ``unexpected_exits`` collects exit codes and stderr that no fault explains.
    """

    def __init__(
        self, deployment: Deployment, rng: random.Random, planted: str = "", partitions: int = 1
    ) -> None:
        self._deployment = deployment
        self._rng = rng
        self._planted = planted
        self._partitions = partitions
        self.running: list[WorkerProcess] = []
        self.unexpected_exits: list[str] = []

    async def start(self, kind: str = "healthy") -> WorkerProcess:
        """Start a worker: ``healthy``, ``skewed`` (clock a minute off) or ``crashing``."""
        # Without the watchdog a worker that was frozen for long comes back and meets the fence.
        environment: dict[str, Any] = {
            "PLANTED_FAULT": self._planted,
            "OUTPLAN_HANG_SECONDS": "0",
            "OUTPLAN_PARTITIONS": str(self._partitions),
        }
        if kind == "skewed":
            environment["CLOCK_SKEW"] = str(self._rng.choice([-60, 60]))
        if self._planted:
            point = self._rng.choice(_EXPOSING_POINTS)
            environment["CRASH_AT"] = point
            environment["CRASH_PROBABILITY"] = str(5 * _CRASH_PROBABILITY)
        elif kind == "crashing":
            environment["CRASH_AT"] = self._rng.choice(CRASH_POINTS)
            environment["CRASH_PROBABILITY"] = str(_CRASH_PROBABILITY)
        worker = await start_worker(self._deployment, module=_MODULE, **environment)
        self.running.append(worker)
        return worker

    async def replace_dead(self) -> None:
        """Start a healthy worker for each one that ended."""
        for worker in list(self.running):
            if worker.process.returncode is None:
                continue
            self.running.remove(worker)
            if worker.process.returncode not in (0, -signal.SIGKILL):
                code, errors = worker.process.returncode, worker.errors[-2_000:]
                self.unexpected_exits.append(f"exit code {code}: {errors}")
            await self.start("healthy")

    def pick_running(self) -> WorkerProcess | None:
        """Return a random worker that runs, or None."""
        running = [w for w in self.running if w.process.returncode is None]
        return self._rng.choice(running) if running else None

    async def drain(self) -> None:
        """Stop all workers gracefully and wait until they have settled what is in flight."""
        for worker in self.running:
            worker.signal(signal.SIGCONT)
        codes = await asyncio.gather(*(worker.stop() for worker in self.running))
        # SIGTERM ends a worker that had no time to install its handler.
        expected = (0, -signal.SIGKILL, -signal.SIGTERM)
        self.unexpected_exits += [
            f"drained with exit code {code}" for code in codes if code not in expected
        ]
        self.running.clear()

    async def kill(self) -> None:
        """Kill all workers that still run."""
        await asyncio.gather(*(worker.kill() for worker in self.running))
