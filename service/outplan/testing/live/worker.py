"""Run `outplan run` as a process that tests can crash, hang and start again."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from outplan.testing.deployment import Deployment
from outplan.testing.errors import WorkerFailed
from outplan.testing.servers.supervisor import ProcessGroup, temporary_folder
from outplan.testing.worker_exit import WorkerExit, raise_if_exited

WORKER_COMMAND: Final = (sys.executable, "-m", "outplan", "run")
_READY: Final = "ready"
_READY_SECONDS: Final = 60.0
_EXIT_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.02

LogLine = dict[str, Any]


class WorkerProcess:
    """A worker process on a deployment; it ends with this process, however that ends.

    It prints to ``output.log`` in ``folder``. ``death_fd`` comes from `run_on_death`. ``exited``
    is done when the worker has exited by itself. Calls may be repeated; do not make two of them
    at once.
    """

    def __init__(
        self,
        deployment: Deployment,
        folder: Path,
        death_fd: int,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        # A paused worker must survive its pause, so its own watchdog is off.
        environment = deployment.environment(**{"OUTPLAN_HANG_SECONDS": "0", **variables})
        self.exited: WorkerExit = asyncio.get_running_loop().create_future()
        self._group = ProcessGroup([WORKER_COMMAND], environment, folder, death_fd)
        self._log_position = 0
        self._log_lines: list[LogLine] = []
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Return the process id of the latest start."""
        return self._group.pid

    @property
    def exit_code(self) -> int | None:
        """Return the exit code, minus the number for a signal; None while it runs."""
        return self._group.exit_code

    async def launch(self) -> None:
        """Start the process without waiting until it is ready."""
        await self.kill()
        self.exited = asyncio.get_running_loop().create_future()
        self._read_log()
        self._log_lines.clear()
        await asyncio.to_thread(self._group.launch)
        self._watcher = asyncio.create_task(self._watch())

    async def wait_until_ready(self) -> None:
        """Wait until it consumes. Raises WorkerFailed."""
        try:
            await self.wait_for_log(_READY, within=_READY_SECONDS)
        except TimeoutError:
            raise self._failure("the worker does not become ready") from None

    async def start(self) -> None:
        """Resume it, or start it anew and wait until it is ready. Raises WorkerFailed."""
        if self._watcher is None or self.exited.done():
            await self.launch()
            await self.wait_until_ready()
        else:
            await self.resume()

    async def stop(self) -> int:
        """Ask it to drain by SIGTERM and return its exit code. Raises WorkerFailed."""
        self._stop_watching()
        if not await asyncio.to_thread(self._group.terminate):
            raise self._failure("the worker did not drain and was killed")
        code = self._group.exit_code
        assert code is not None
        return code

    async def kill(self) -> None:
        """Crash it by SIGKILL."""
        self._stop_watching()
        await asyncio.to_thread(self._group.kill)

    async def pause(self) -> None:
        """Hang it by SIGSTOP. Raises WorkerFailed if it is not running."""
        self._require_running(await asyncio.to_thread(self._group.pause))

    async def resume(self) -> None:
        """End the pause by SIGCONT. Raises WorkerFailed if it is not running."""
        self._require_running(await asyncio.to_thread(self._group.resume))

    async def wait_for_log(
        self, event: str | Callable[[LogLine], object], times: int = 1, *, within: float = 30
    ) -> LogLine:
        """Wait for a log line with this ``event``, or one that the function accepts; return it.

        Raises TimeoutError, and WorkerFailed if the worker exits without it.
        """
        async with asyncio.timeout(within):
            while True:
                has_exited = self.exited.done()  # read before the log, which is then complete
                lines = [line for line in self.log_lines() if _matches(line, event)]
                if len(lines) >= times:
                    return lines[times - 1]
                if has_exited:
                    raise_if_exited(self.exited)
                await asyncio.sleep(_POLL_SECONDS)

    async def wait_until_exited(self, within: float = _EXIT_SECONDS) -> int:
        """Wait until it exits by itself and return the exit code. Raises TimeoutError."""
        async with asyncio.timeout(within):
            await asyncio.wait([self.exited])
        code = self._group.exit_code
        assert code is not None
        return code

    def log_lines(self) -> list[LogLine]:
        """Return the log of the latest start, without lines that are not JSON."""
        self._read_log()
        return list(self._log_lines)

    def log(self) -> str:
        """Return the last lines that it printed."""
        return self._group.log()

    def _read_log(self) -> None:
        if not self._group.output.exists():
            return
        with self._group.output.open("rb") as output:
            output.seek(self._log_position)
            for line in output:
                if not line.endswith(b"\n"):  # still being written
                    break
                self._log_position += len(line)
                with suppress(ValueError):
                    if isinstance(parsed := json.loads(line), dict):
                        self._log_lines.append(parsed)

    def _require_running(self, is_running: bool) -> None:
        if not is_running:
            raise self._failure("the worker is not running")

    def _stop_watching(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()

    async def _watch(self) -> None:
        while not self._group.wait(0):  # noqa: ASYNC110 - asyncio has no event for the exit
            await asyncio.sleep(_POLL_SECONDS)
        self.exited.set_result(self._failure("the worker has exited by itself"))

    def _failure(self, complaint: str) -> WorkerFailed:
        return WorkerFailed(f"{complaint}. Its log ends:\n{self.log()}")


@asynccontextmanager
async def open_worker(deployment: Deployment, **variables: str) -> AsyncIterator[WorkerProcess]:
    """Yield a worker process that is not started yet; kill it with the block.

    ``variables`` are further variables of its environment, by their full names.
    """
    with temporary_folder("worker") as (folder, death_fd):
        worker = WorkerProcess(deployment, folder, death_fd, variables)
        try:
            yield worker
        finally:
            await worker.kill()


def _matches(line: LogLine, event: str | Callable[[LogLine], object]) -> bool:
    return line.get("event") == event if isinstance(event, str) else bool(event(line))
