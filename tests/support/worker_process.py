"""Run worker processes as an operator does: settings by environment, JSON log, exit code.

The harness has a WorkerProcess, too (``outplan.testing.live``). This one also runs other modules
than ``outplan``, such as ``tests.support.faulty_worker``, and keeps stderr apart from the log.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from outplan.testing import Deployment
from outplan.testing.servers import reserve_ports
from tests.support.plain_words import find_foreign_words


class WorkerProcess:
    """Control one ``outplan run`` and keep its log: one dict a line in ``log``.

    Create one with ``start_worker`` or ``run_worker``.
    """

    def __init__(self, process: asyncio.subprocess.Process, http_port: int) -> None:
        self.process = process
        self.http_port = http_port
        self.log: list[dict[str, Any]] = []
        self.errors = ""
        self._progress = asyncio.Condition()
        self._reading = [
            asyncio.create_task(self._read_log()),
            asyncio.create_task(self._read_errors()),
        ]

    async def wait_for_log(self, event: str, times: int = 1, seconds: float = 30) -> dict[str, Any]:
        """Return the log line number ``times`` of this event; fail if the process ends first."""
        return await self.wait_for_log_line(lambda line: line["event"] == event, seconds, times)

    async def wait_for_log_line(
        self, matches: Callable[[dict[str, Any]], bool], seconds: float, times: int = 1
    ) -> dict[str, Any]:
        """Return the log line number ``times`` that matches; fail if the process ends first."""

        def find_lines() -> list[dict[str, Any]]:
            return [line for line in self.log if matches(line)]

        async with asyncio.timeout(seconds), self._progress:
            await self._progress.wait_for(
                lambda: len(find_lines()) >= times or self._reading[0].done()
            )
        assert len(find_lines()) >= times, f"the worker ended first: {self.log[-5:]} {self.errors}"
        return find_lines()[times - 1]

    async def wait(self, seconds: float = 40) -> int:
        """Wait until the process has ended; return its exit code."""
        async with asyncio.timeout(seconds):
            code = await self.process.wait()
            await asyncio.gather(*self._reading)
        said = "\n".join(map(str, [*self.log, self.errors]))
        assert not find_foreign_words(said, traceback=False), said
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.signal(signal.SIGTERM)
        return await self.wait()

    async def kill(self) -> None:
        """Send SIGKILL and wait until the process has ended."""
        self.signal(signal.SIGKILL)
        await self.wait()

    async def get(self, path: str) -> tuple[int, str]:
        """Request a path of the health server; return the status and the body."""
        url = f"http://127.0.0.1:{self.http_port}{path}"
        async with aiohttp.ClientSession() as client, client.get(url) as response:
            return response.status, await response.text()

    async def _read_log(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.log.append(json.loads(line))
            await self._notify()
        await self._notify()

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = (await self.process.stderr.read()).decode()

    async def _notify(self) -> None:
        async with self._progress:
            self._progress.notify_all()


async def start_worker(
    deployment: Deployment, *, module: str = "outplan", http: bool = False, **environment: str
) -> WorkerProcess:
    """Start a worker without waiting until it is ready; the caller must stop it."""
    # The worker outlives the reservation, which only keeps others from choosing the same port.
    with reserve_ports(1) as (free_port,):
        port = free_port if http else 0
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        "run",
        env=deployment.environment(**{"OUTPLAN_HTTP_PORT": str(port), **environment}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    return WorkerProcess(process, port)


@asynccontextmanager
async def run_worker(deployment: Deployment, **options: Any) -> AsyncIterator[WorkerProcess]:
    """Run a worker for the block: ready at its start, killed at its end. See ``start_worker``."""
    worker = await start_worker(deployment, **options)
    try:
        await worker.wait_for_log("ready")
        yield worker
    finally:
        await worker.kill()
