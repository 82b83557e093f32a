"""Outages that last: longer than the broker waits for an acknowledgement, and a minute's alarm."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from outplan.testing.servers import RabbitServer, Servers
from tests.support.deployment import Deployment
from tests.support.scenario import Scenario, assert_scenario, build_scenario, send_scenario
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import World, create_body, open_world

# The broker looks for consumers that take too long once in a tick.
ACK_MILLISECONDS = 2_000
TICK_MILLISECONDS = 500
ALARM_SECONDS = 60

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_store_that_is_away_for_longer_than_a_consumer_may_take_costs_nothing(
    either: Servers, deployment: Deployment, how: str
) -> None:
    async with (
        impatient(either.rabbitmq),
        open_world(deployment) as world,
        run_worker(deployment) as worker,
    ):
        await world.ask("outplan_create", {"name": "wrong"})
        await asyncio.to_thread(getattr(either.mongodb, how))
        scenario = build_scenario()
        await send_scenario(world, scenario)
        await worker.wait_for_log_line(
            lambda line: "delivery acknowledgement" in str(line.get("detail")), 60
        )
        await asyncio.to_thread(either.mongodb.start)

        await world.wait_for(lambda: heard(world, scenario), 60)
        await assert_scenario(world, scenario)
        assert await worker.stop() == 0


async def test_a_minutes_memory_alarm_is_told_and_nothing_comes_twice(
    either: Servers, deployment: Deployment
) -> None:
    scenario = build_scenario(outplans=20, rounds=8)
    async with open_world(deployment) as world, run_worker(deployment, http=True) as worker:
        # In an alarm nobody can publish, so the commands come first.
        worker.signal(signal.SIGSTOP)
        await send_scenario(world, scenario)
        async with alarmed(either.rabbitmq):
            worker.signal(signal.SIGCONT)
            await readiness(worker, 503)
            told = [answer async for answer in answers(worker, ALARM_SECONDS)]
        await readiness(worker, 200)
        await world.wait_for(lambda: heard(world, scenario), 60)

        assert {(ready, alive) for ready, _, alive in told} == {(503, 200)}
        assert all("alarm" in reason for _, reason, _ in told)
        await assert_scenario(world, scenario)
        # One event for each sending that was accepted: some commands are sent twice.
        assert Counter(e.message_id for e in world.events) == Counter(accepted(scenario))
        assert (await world.ask("outplan_create", create_body()))["status"] == "accepted"


@asynccontextmanager
async def impatient(broker: RabbitServer) -> AsyncIterator[None]:
    """A broker that soon gives up on consumers who keep messages; it has half an hour else."""
    await asyncio.to_thread(set_patience, broker, ACK_MILLISECONDS, TICK_MILLISECONDS)
    yield
    await asyncio.to_thread(set_patience, broker, 1_800_000, 60_000)


def set_patience(broker: RabbitServer, ack: int, tick: int) -> None:
    for name, value in (("consumer_timeout", ack), ("channel_tick_interval", tick)):
        broker.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")


@asynccontextmanager
async def alarmed(broker: RabbitServer) -> AsyncIterator[None]:
    """A broker that is short of memory by its own account."""
    await asyncio.to_thread(broker.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
    yield
    await asyncio.to_thread(broker.ctl, "set_vm_memory_high_watermark", "absolute", "2GB")


async def readiness(worker: WorkerProcess, wanted: int) -> None:
    async with asyncio.timeout(30):
        while (await worker.get("/readyz"))[0] != wanted:
            await asyncio.sleep(0.1)


async def answers(worker: WorkerProcess, seconds: float) -> AsyncIterator[tuple[int, str, int]]:
    """What /readyz says, and whether /livez is green, again and again."""
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        ready, reason = await worker.get("/readyz")
        alive, _ = await worker.get("/livez")
        yield ready, reason, alive
        await asyncio.sleep(0.25)


def accepted(scenario: Scenario) -> list[str]:
    return [id_ for id_, _, _ in scenario.commands if scenario.expected[id_] == "accepted"]


def heard(world: World, scenario: Scenario) -> bool:
    return world.event_ids() >= set(accepted(scenario))
