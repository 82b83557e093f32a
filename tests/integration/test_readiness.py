"""Readiness is asked for, not remembered: also of workers that have nothing to do."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from json import loads
from pathlib import Path

from outplan.testing.servers import Server, Servers
from tests.support.deployment import Deployment
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import create_body, open_world


async def told(worker: WorkerProcess) -> tuple[int, set[str], bool]:
    """The status and the places of /readyz, and whether /metrics calls it ready."""
    status, text = await worker.get("/readyz")
    _, metrics = await worker.get("/metrics")
    return status, set(loads(text)["troubles"]), "outplan_ready 1.0" in metrics


@asynccontextmanager
async def frozen(server: Server) -> AsyncIterator[None]:
    await asyncio.to_thread(server.pause)
    try:
        yield
    finally:
        await asyncio.to_thread(server.resume)


async def ready_again(worker: WorkerProcess) -> None:
    async with asyncio.timeout(60):
        while (await told(worker)) != (200, set(), True):
            pass  # Each question waits for the store's answer.


async def test_a_frozen_store_makes_an_idle_worker_and_its_standby_unready_at_once(
    servers: Servers, deployment: Deployment
) -> None:
    async with (
        run_worker(deployment, http=True) as active,
        run_worker(deployment, http=True) as standby,
    ):
        both = (active, standby)
        assert [await told(each) for each in both] == [(200, set(), True)] * 2

        async with frozen(servers.mongodb), asyncio.timeout(10):
            assert [await told(each) for each in both] == [(503, {"store"}, False)] * 2

        for each in both:
            await ready_again(each)


def threads(worker: WorkerProcess) -> int:
    return len(list(Path(f"/proc/{worker.process.pid}/task").iterdir()))


async def test_many_questions_during_a_freeze_hold_one_of_the_drivers_threads(
    servers: Servers, deployment: Deployment
) -> None:
    """It has a few only, and each ping that is not answered would hold one of them."""
    async with open_world(deployment) as world, run_worker(deployment, http=True) as worker:
        await told(worker)
        before = threads(worker)
        async with frozen(servers.mongodb), asyncio.timeout(10):
            answers = await asyncio.gather(*(worker.get("/readyz") for _ in range(50)))
            held = threads(worker) - before

        assert {status for status, _ in answers} == {503}
        assert held <= 1
        assert (await world.ask("outplan_create", create_body()))["status"] == "accepted"


async def test_who_has_asked_a_frozen_store_can_still_leave(
    servers: Servers, deployment: Deployment
) -> None:
    """The interpreter waits for the driver's thread that waits for the answer."""
    async with run_worker(deployment, http=True) as worker, frozen(servers.mongodb):
        assert (await told(worker))[0] == 503
        worker.signal(signal.SIGTERM)
        assert await worker.wait(seconds=15) == 0
