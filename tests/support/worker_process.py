"""Worker processes as an operator runs them: environment in, log lines and exit code out."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.support.deployment import Deployment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class WorkerProcess:
    """One ``outplan run``; its log is kept as the objects that its lines are."""

    def __init__(self, process: asyncio.subprocess.Process, http_port: int) -> None:
        self.process = process
        self.http_port = http_port
        self.log: list[dict[str, Any]] = []
        self.errors = ""
        self._news = asyncio.Condition()
        self._reading = [
            asyncio.create_task(self._read_log()),
            asyncio.create_task(self._read_errors()),
        ]

    async def wait_for_event(
        self, event: str, times: int = 1, seconds: float = 30
    ) -> dict[str, Any]:
        """Await a log line; fails at once where the process ends without it."""

        return await self.wait_for_line(lambda line: line["event"] == event, seconds, times)

    async def wait_for_line(
        self, wanted: Callable[[dict[str, Any]], bool], seconds: float, times: int = 1
    ) -> dict[str, Any]:
        """Await a log line that is wanted; fails at once where the process ends without it."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.log if wanted(line)]

        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(lambda: len(found()) >= times or self._reading[0].done())
        assert len(found()) >= times, f"ended without it: {self.log[-5:]} {self.errors}"
        return found()[times - 1]

    async def wait(self, seconds: float = 40) -> int:
        """Await the process' end: its exit code."""
        async with asyncio.timeout(seconds):
            code = await self.process.wait()
            await asyncio.gather(*self._reading)
        return code

    def signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return await self.wait()

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.wait()

    async def http(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.http_port}{path}"
        async with aiohttp.ClientSession() as client, client.get(url) as response:
            return response.status, await response.text()

    async def _read_log(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.log.append(json.loads(line))
            await self._tell()
        await self._tell()

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = (await self.process.stderr.read()).decode()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


async def start_worker(
    deployment: Deployment, *, module: str = "outplan", http: bool = False, **environment: str
) -> WorkerProcess:
    """Start a worker process without waiting for it; whoever starts it ends it."""
    port = free_port() if http else 0
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
async def run_worker(deployment: Deployment, **how: Any) -> AsyncIterator[WorkerProcess]:
    """A worker that consumes; killed at the block's end if it still runs."""
    worker = await start_worker(deployment, **how)
    try:
        await worker.wait_for_event("ready")
        yield worker
    finally:
        await worker.kill()
