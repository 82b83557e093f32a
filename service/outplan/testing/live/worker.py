"""A worker process of a test's own, which can crash, hang, and come back."""

import asyncio
import sys
from pathlib import Path
from typing import Final

from outplan.testing.deployment import Deployment
from outplan.testing.errors import WorkerFailed
from outplan.testing.servers.supervisor import ProcessGroup
from outplan.testing.worker_exit import WorkerExit, raise_if_exited

WORKER_COMMAND: Final = (sys.executable, "-m", "outplan", "run")
_READY: Final = b'"event": "ready"'
_READY_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.02


class Worker:
    """``outplan run`` at a place, its log in ``folder``; it dies with this process.

    ``death`` is done when it ended by itself: its result is the error that says so. Every call may
    be repeated; none is for two tasks at once.
    """

    def __init__(self, deployment: Deployment, folder: Path, will: int) -> None:
        self.death: WorkerExit = asyncio.get_running_loop().create_future()
        self._group = ProcessGroup(
            [WORKER_COMMAND], deployment.environment(OUTPLAN_HANG_SECONDS="0"), folder, will
        )
        self._output = folder / "output.log"
        self._log_before = 0
        self._watching: asyncio.Task[None] | None = None

    async def launch(self) -> None:
        """Start it, without awaiting that it is ready."""
        await self.kill()
        self.death = asyncio.get_running_loop().create_future()
        self._log_before = self._output.stat().st_size if self._output.exists() else 0
        await asyncio.to_thread(self._group.launch)
        self._watching = asyncio.create_task(self._watch())

    async def ready(self) -> None:
        """Await that it consumes. Raises WorkerFailed."""
        try:
            async with asyncio.timeout(_READY_SECONDS):
                while not self._says_ready():
                    self.check()
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise self._failure("the worker does not become ready") from None

    async def start(self) -> None:
        """Have it running: resumed, or started anew and ready. Raises WorkerFailed."""
        if self._watching is None or self.death.done():
            await self.launch()
            await self.ready()
        else:
            await self.resume()

    async def kill(self) -> None:
        """Crash it: SIGKILL."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
        await asyncio.to_thread(self._group.kill)

    async def pause(self) -> None:
        """Have it hang: SIGSTOP. Raises WorkerFailed where it does not run."""
        await self._obeys(await asyncio.to_thread(self._group.pause))

    async def resume(self) -> None:
        """End the hang: SIGCONT. Raises WorkerFailed where it does not run."""
        await self._obeys(await asyncio.to_thread(self._group.resume))

    def check(self) -> None:
        """Raise WorkerFailed where it has ended by itself."""
        raise_if_exited(self.death)

    def log(self) -> str:
        """The end of what it has printed."""
        return self._group.log()

    async def _obeys(self, obeyed: bool) -> None:
        if not obeyed:
            raise self._failure("the worker is not running")

    async def _watch(self) -> None:
        while not self._group.wait(0):  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(_LOOK_SECONDS)
        self.death.set_result(self._failure("the worker has ended by itself"))

    def _says_ready(self) -> bool:
        with self._output.open("rb") as output:
            output.seek(self._log_before)
            return _READY in output.read()

    def _failure(self, complaint: str) -> WorkerFailed:
        return WorkerFailed(f"{complaint}. Its log ends:\n{self.log()}")
