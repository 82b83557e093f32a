"""The workers of a run: they come and go, and some have something wrong with them."""

import asyncio
import random
import signal
from typing import Any, Final

from tests.faults.chaos.worker import POINTS
from tests.support.deployment import Deployment
from tests.support.worker_process import WorkerProcess, start_worker

_MODULE: Final = "tests.faults.chaos.worker"
# With a batch every few milliseconds that is a death every few seconds.
_FRAGILITY: Final = 0.02
# Where a death shows most of what is wrong in the code.
_TELLING: Final = ("committed", "half published")


class Crew:
    """Worker processes at one place. Whoever is asked for is any of those that run."""

    def __init__(
        self, place: Deployment, luck: random.Random, planted: str = "", partitions: int = 1
    ) -> None:
        self._place = place
        self._luck = luck
        self._planted = planted
        self._partitions = partitions
        self.workers: list[WorkerProcess] = []
        self.ended: list[str] = []

    async def hire(self, kind: str = "sound") -> WorkerProcess:
        """Start a worker, ``sound``, ``clock`` (a minute off) or ``fragile``."""
        # One that was frozen for long is to come back, so that it meets the fence.
        environment: dict[str, Any] = {
            "PLANTED": self._planted,
            "OUTPLAN_HANG_SECONDS": "0",
            "OUTPLAN_PARTITIONS": str(self._partitions),
        }
        if kind == "clock":
            environment["CLOCK_OFF"] = str(self._luck.choice([-60, 60]))
        if self._planted:
            environment["FRAGILE"] = f"{self._luck.choice(_TELLING)}:{5 * _FRAGILITY}"
        elif kind == "fragile":
            environment["FRAGILE"] = f"{self._luck.choice(POINTS)}:{_FRAGILITY}"
        worker = await start_worker(self._place, module=_MODULE, **environment)
        self.workers.append(worker)
        return worker

    async def replace_the_dead(self) -> None:
        """Start a worker for each that has died; each death must be one that was meant."""
        for worker in list(self.workers):
            if worker.process.returncode is None:
                continue
            self.workers.remove(worker)
            if worker.process.returncode not in (0, -signal.SIGKILL):
                self.ended.append(f"{worker.process.returncode}: {worker.errors[-2_000:]}")
            await self.hire("sound")

    def any(self) -> WorkerProcess | None:
        """One that runs."""
        running = [w for w in self.workers if w.process.returncode is None]
        return self._luck.choice(running) if running else None

    async def dismiss(self) -> None:
        """Have all of them drain; all is settled when the last has ended."""
        for worker in self.workers:
            worker.signal(signal.SIGCONT)
        codes = await asyncio.gather(*(worker.stop() for worker in self.workers))
        # One that had only just been started knows nothing of draining yet.
        meant = (0, -signal.SIGKILL, -signal.SIGTERM)
        self.ended += [f"drained with {code}" for code in codes if code not in meant]
        self.workers.clear()

    async def kill(self) -> None:
        """End whatever still runs."""
        await asyncio.gather(*(worker.kill() for worker in self.workers))
