"""A worker whose output nobody reads goes on working, and tells later what is missing."""

import asyncio
import fcntl
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from outplan.testing import Deployment
from outplan.testing.servers import reserve_ports
from tests.support.world import World, create_body

# Each rejected command logs a line of some 150 bytes.
REJECTED = 300


@dataclass
class UnreadWorker:
    process: asyncio.subprocess.Process
    output: int

    async def read_events(self, until: str) -> list[str]:
        """Read the log up to an event."""
        return await asyncio.to_thread(self._read_events, until)

    def _read_events(self, until: str) -> list[str]:
        found: list[str] = []
        with os.fdopen(os.dup(self.output)) as file:
            for line in file:
                found.append(json.loads(line)["event"])
                if found[-1] == until:
                    return found
        return found


@asynccontextmanager
async def run_unread_worker(deployment: Deployment) -> AsyncIterator[UnreadWorker]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4_096)
    with reserve_ports(1) as (port,):
        environment = deployment.environment(OUTPLAN_HTTP_PORT=str(port), OUTPLAN_HANG_SECONDS="5")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "outplan", "run", env=environment, stdout=writer
    )
    os.close(writer)
    try:
        yield UnreadWorker(process, reader)
    finally:
        os.close(reader)
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("reads_again", [True, False], ids=["read again", "never read"])
async def test_a_worker_goes_on_while_nobody_reads_its_log(
    deployment: Deployment, world: World, reads_again: bool
) -> None:
    async with run_unread_worker(deployment) as worker:
        await worker.read_events("ready")
        for _ in range(REJECTED):
            await world.send("outplan_create", b"{}", reply_to=None)
        await world.wait_for(lambda: len(world.rejected) == REJECTED)
        reply = await world.ask("outplan_create", create_body())
        assert reply["status"] == "accepted"

        worker.process.send_signal(signal.SIGTERM)
        if reads_again:
            found = await worker.read_events("worker_stopped")
            assert found.count("command_rejected") == REJECTED
        async with asyncio.timeout(15):
            assert await worker.process.wait() == 0
