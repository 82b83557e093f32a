"""Worker processes of a run, some of them with a wrong clock or a tendency to crash."""

import asyncio
import random
import signal
from typing import Any, Final

from outplan.testing import Deployment
from tests.faults.chaos.history import Document
from tests.faults.chaos.plants import PLANTED_IN_COMMAND
from tests.support.faulty_worker import CRASH_POINTS
from tests.support.worker_process import WorkerProcess, start_worker

_MODULE: Final = "tests.faults.chaos.planted"
# A batch takes a few milliseconds, so a worker crashes every few seconds.
_CRASH_PROBABILITY: Final = 0.02
# The points at which a crash exposes most defects in the code.
_EXPOSING_POINTS: Final = ("committed", "half published")
_CHECK_SECONDS: Final = 0.5


class WorkerPool:
    """Start, replace and end worker processes of one deployment.

    ``running`` has those that should run, ``started`` all. ``unexpected_exits`` collects exit codes
    and stderr that no fault explains.
    """

    def __init__(self, deployment: Deployment, rng: random.Random, planted: str = "") -> None:
        self._deployment = deployment
        self._rng = rng
        self._planted = planted
        self._supervising: asyncio.Task[None] | None = None
        self.running: list[WorkerProcess] = []
        self.started: list[WorkerProcess] = []
        self.unexpected_exits: list[str] = []

    async def start(self, kind: str = "healthy", partitions: int | None = None) -> WorkerProcess:
        """Start a worker: ``healthy``, ``skewed`` (clock a minute off) or ``crashing``.

        Without a number of ``partitions`` it follows the stored layout.
        """
        # Without the watchdog a worker that was frozen for long comes back and meets the fence.
        environment: dict[str, Any] = {
            "PLANTED_FAULT": self._planted,
            "OUTPLAN_HANG_SECONDS": "0",
        }
        if partitions is not None:
            environment["OUTPLAN_PARTITIONS"] = str(partitions)
        if kind == "skewed":
            environment["CLOCK_SKEW"] = str(self._rng.choice([-60, 60]))
        if self._planted and self._planted not in PLANTED_IN_COMMAND:
            point = self._rng.choice(_EXPOSING_POINTS)
            environment["CRASH_AT"] = point
            environment["CRASH_PROBABILITY"] = str(5 * _CRASH_PROBABILITY)
        elif kind == "crashing":
            environment["CRASH_AT"] = self._rng.choice(CRASH_POINTS)
            environment["CRASH_PROBABILITY"] = str(_CRASH_PROBABILITY)
        worker = await start_worker(self._deployment, module=_MODULE, **environment)
        self.running.append(worker)
        self.started.append(worker)
        return worker

    def supervise(self) -> None:
        """From now on, start a healthy worker for each one that ends by itself."""
        self._supervising = asyncio.create_task(self._replace_dead())

    def pick_running(self) -> WorkerProcess | None:
        """Return a random worker that runs, or None."""
        running = [w for w in self.running if w.process.returncode is None]
        return self._rng.choice(running) if running else None

    async def stop(self, worker: WorkerProcess) -> int:
        """Stop a worker gracefully, for good; return its exit code."""
        self.running.remove(worker)
        worker.signal(signal.SIGCONT)
        code = await worker.stop()
        # SIGTERM ends a worker that had no time to install its handler.
        if code not in (0, -signal.SIGKILL, -signal.SIGTERM):
            self.unexpected_exits.append(f"stopped with exit code {code}: {worker.errors[-2_000:]}")
        return code

    async def kill(self, worker: WorkerProcess) -> None:
        """Kill a worker for good."""
        self.running.remove(worker)
        await worker.kill()

    async def stop_all(self) -> None:
        """Stop all workers gracefully and wait until they have settled what is in flight."""
        await self._stop_supervising()
        await asyncio.gather(*(self.stop(worker) for worker in list(self.running)))

    async def kill_all(self) -> None:
        """Kill all workers that still run."""
        await self._stop_supervising()
        await asyncio.gather(*(self.kill(worker) for worker in list(self.running)))

    def read_logs(self) -> list[Document]:
        """Return the log lines of all workers by time, each with its worker's process id."""
        lines = [{"pid": w.process.pid, **line} for w in self.started for line in w.log]
        return sorted(lines, key=lambda line: str(line["timestamp"]))

    async def _replace_dead(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            for worker in [w for w in self.running if w.process.returncode is not None]:
                self.running.remove(worker)
                if worker.process.returncode not in (0, -signal.SIGKILL):
                    code, errors = worker.process.returncode, worker.errors[-2_000:]
                    self.unexpected_exits.append(f"exit code {code}: {errors}")
                await self.start("healthy")

    async def _stop_supervising(self) -> None:
        if self._supervising is not None:
            self._supervising.cancel()
            await asyncio.wait({self._supervising})
            if not self._supervising.cancelled() and (error := self._supervising.exception()):
                self.unexpected_exits.append(f"a worker was not replaced: {error!r}")
            self._supervising = None
