"""Kill workers at each step of a batch: every command takes effect once, every event is sent."""

import signal

import pytest

from outplan.domain.poison import MAX_ATTEMPTS
from outplan.testing import Deployment
from outplan.worker.pipeline import SUSPICIOUS_DELIVERIES
from tests.support.faulty_worker import CRASH_POINTS
from tests.support.scenario import assert_scenario, build_scenario, send_scenario
from tests.support.worker_process import run_worker, start_worker
from tests.support.world import World, create_body

FAULTY_WORKER = "tests.support.faulty_worker"


@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_a_worker_killed_at_any_step_loses_and_repeats_no_command(
    deployment: Deployment, world: World, point: str
) -> None:
    scenario = build_scenario()
    await send_scenario(world, scenario)

    victim = await start_worker(deployment, module=FAULTY_WORKER, CRASH_AT=point)
    assert await victim.wait() == -signal.SIGKILL, victim.errors
    async with run_worker(deployment) as successor:
        # Commands are processed in order: once this event arrives, all earlier ones are done.
        last = scenario.add("outplan_create", create := create_body(), "accepted")
        await world.send("outplan_create", create, message_id=last)
        await world.wait_for_event(last)
        assert await successor.stop() == 0

    await assert_scenario(world, scenario)
    assert await world.count_waiting() == 0


async def test_a_series_of_killed_workers_finishes_the_load(
    deployment: Deployment, world: World
) -> None:
    scenario = build_scenario(outplans=12, rounds=8)
    await send_scenario(world, scenario)

    for point in (*CRASH_POINTS, "committed"):
        victim = await start_worker(
            deployment, module=FAULTY_WORKER, CRASH_AT=point, OUTPLAN_BATCH_SIZE="40"
        )
        assert await victim.wait() == -signal.SIGKILL, victim.errors
    async with run_worker(deployment):
        await assert_scenario(world, scenario)


async def test_a_poison_message_is_rejected_and_no_other_command(
    deployment: Deployment, world: World
) -> None:
    healthy = [await world.send("outplan_create", create_body()) for _ in range(20)]
    poison = await world.send("outplan_create", create_body(name="crash"))
    healthy += [await world.send("outplan_create", create_body()) for _ in range(20)]

    for _ in range(SUSPICIOUS_DELIVERIES + MAX_ATTEMPTS):
        victim = await start_worker(deployment, module=FAULTY_WORKER)
        assert await victim.wait() == -signal.SIGKILL, victim.errors
    async with run_worker(deployment, module=FAULTY_WORKER):
        await world.wait_for(lambda: all(world.find_events(id_) for id_ in healthy))

    copy = await world.wait_for_rejected(poison)
    assert copy.headers["x-problem-code"] == "delivery_limit"
    assert world.replies[poison][0]["problem"]["status"] == 500
    assert len(world.rejected) == 1


async def test_a_command_that_raises_is_rejected_and_delays_no_other(
    deployment: Deployment, world: World
) -> None:
    async with run_worker(deployment, module=FAULTY_WORKER):
        before = await world.send("outplan_create", create_body())
        bug = await world.send("outplan_create", create_body(name="bug"))
        after = await world.send("outplan_create", create_body())
        await world.wait_for(lambda: bool(world.find_events(before) and world.find_events(after)))

    assert (await world.wait_for_rejected(bug)).headers["x-problem-code"] == "delivery_limit"
