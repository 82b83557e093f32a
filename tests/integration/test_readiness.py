"""Test /readyz while MongoDB is frozen: it pings MongoDB on each request, also when idle."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from json import loads
from pathlib import Path

from outplan.testing import Deployment
from outplan.testing.servers import Server, Servers
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import create_body, open_world


async def read_readiness(worker: WorkerProcess) -> tuple[int, set[str], bool]:
    """Return the status and the failed components of /readyz, and outplan_ready as a bool."""
    status, text = await worker.get("/readyz")
    _, metrics = await worker.get("/metrics")
    return status, set(loads(text)["troubles"]), "outplan_ready 1.0" in metrics


@asynccontextmanager
async def freeze(server: Server) -> AsyncIterator[None]:
    await asyncio.to_thread(server.pause)
    try:
        yield
    finally:
        await asyncio.to_thread(server.resume)


async def wait_until_ready(worker: WorkerProcess) -> None:
    async with asyncio.timeout(60):
        while (await read_readiness(worker)) != (200, set(), True):
            pass  # Each request waits for MongoDB's answer.


async def test_active_and_standby_workers_are_unready_while_mongodb_is_frozen(
    servers: Servers, deployment: Deployment
) -> None:
    async with (
        run_worker(deployment, http=True) as active,
        run_worker(deployment, http=True) as standby,
    ):
        both = (active, standby)
        assert [await read_readiness(each) for each in both] == [(200, set(), True)] * 2

        async with freeze(servers.mongodb), asyncio.timeout(10):
            assert [await read_readiness(each) for each in both] == [(503, {"store"}, False)] * 2

        for each in both:
            await wait_until_ready(each)


def count_threads(worker: WorkerProcess) -> int:
    return len(list(Path(f"/proc/{worker.process.pid}/task").iterdir()))


async def test_concurrent_readiness_checks_use_one_driver_thread(
    servers: Servers, deployment: Deployment
) -> None:
    """Share one ping: an unanswered ping holds one of the driver's few threads."""
    async with open_world(deployment) as world, run_worker(deployment, http=True) as worker:
        await read_readiness(worker)
        before = count_threads(worker)
        async with freeze(servers.mongodb), asyncio.timeout(10):
            answers = await asyncio.gather(*(worker.get("/readyz") for _ in range(50)))
            added = count_threads(worker) - before

        assert {status for status, _ in answers} == {503}
        assert added <= 1
        assert (await world.ask("outplan_create", create_body()))["status"] == "accepted"


async def test_a_worker_with_an_unanswered_ping_can_stop(
    servers: Servers, deployment: Deployment
) -> None:
    """Exit although the interpreter joins the driver's thread, which waits for the answer."""
    async with run_worker(deployment, http=True) as worker, freeze(servers.mongodb):
        assert (await read_readiness(worker))[0] == 503
        worker.signal(signal.SIGTERM)
        assert await worker.wait(seconds=15) == 0
