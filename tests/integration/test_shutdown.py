"""Stop workers by signal: they finish the current batch and leave the rest in the queue."""

import asyncio
import signal

import pytest

from outplan.testing import Deployment
from outplan.testing.servers import Servers
from tests.support.worker_process import run_worker, start_worker
from tests.support.world import World, create_body

COMMANDS = 2_000


async def publish_commands(world: World, count: int) -> None:
    for n in range(0, count, 200):
        sends = (
            world.send("outplan_create", create_body(), reply_to=None) for _ in range(n, n + 200)
        )
        await asyncio.gather(*sends)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_load_finishes_the_batch_and_leaves_the_rest(
    deployment: Deployment, world: World, number: signal.Signals
) -> None:
    await publish_commands(world, COMMANDS)
    async with run_worker(deployment, OUTPLAN_BATCH_SIZE="10") as worker:
        await world.wait_for(lambda: len(world.events) >= COMMANDS // 10)
        worker.signal(number)

        assert await worker.wait() == 0

    assert [line["event"] for line in worker.log[-2:]] == ["drain_started", "worker_stopped"]
    waiting = await wait_for_requeue(world)
    _, history = await world.read_documents()
    assert 0 < waiting < COMMANDS
    assert waiting + len(history) == COMMANDS
    await world.wait_for(lambda: len(world.events) == len(history))
    assert sorted(e.message_id or "" for e in world.events) == sorted(e["_id"] for e in history)


async def wait_for_requeue(world: World) -> int:
    """Wait until the broker has requeued the prefetched messages; return the queue's length."""
    async with asyncio.timeout(20):
        while True:
            before = await world.count_waiting()
            await asyncio.sleep(0.3)
            if before and before == await world.count_waiting():
                return before


async def test_an_idle_worker_stops_at_once(deployment: Deployment, world: World) -> None:
    async with run_worker(deployment) as worker:
        async with asyncio.timeout(3):
            assert await worker.stop() == 0


async def test_a_second_signal_stops_at_once(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    async with run_worker(deployment) as worker:
        await world.ask("outplan_create", create_body())
        await asyncio.to_thread(servers.mongodb.pause)
        try:
            await world.send("outplan_create", create_body())
            await asyncio.sleep(0.3)  # Let the worker take the command and wait for MongoDB.
            worker.signal(signal.SIGTERM)
            await worker.wait_for_log("drain_started")
            worker.signal(signal.SIGTERM)
            async with asyncio.timeout(2):
                assert await worker.wait() == 128 + signal.SIGTERM
        finally:
            await asyncio.to_thread(servers.mongodb.resume)

    async with run_worker(deployment):
        await world.wait_for(lambda: len(world.events) == 2)


async def test_a_batch_that_misses_the_drain_deadline_stays_in_the_queue(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    async with run_worker(deployment, OUTPLAN_DRAIN_SECONDS="1") as worker:
        await world.ask("outplan_create", create_body())
        await asyncio.to_thread(servers.mongodb.stop)
        try:
            await world.send("outplan_create", create_body())
            await worker.wait_for_log("component_failed")
            assert await worker.stop() == 0
            assert any("deadline" in line["event"] for line in worker.log)
        finally:
            await asyncio.to_thread(servers.mongodb.start)

    async with run_worker(deployment):
        await world.wait_for(lambda: len(world.events) == 2)


async def test_a_worker_that_waits_for_a_server_stops_at_once(
    servers: Servers, deployment: Deployment
) -> None:
    nowhere = Deployment(
        "amqp://guest:guest@127.0.0.1:9/",
        deployment.mongo_url,
        deployment.prefix,
        deployment.database,
    )
    worker = await start_worker(nowhere)
    await worker.wait_for_log("component_failed")
    async with asyncio.timeout(5):
        assert await worker.stop() == 0
