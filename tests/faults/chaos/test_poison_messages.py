"""Messages that end whoever handles them, and workers that die whatever they handle."""

import signal
from collections import Counter
from time import monotonic

import pytest

from tests.faults.chaos.supervisor import kept_running
from tests.support.deployment import Deployment
from tests.support.rejects import run
from tests.support.scenario import Scenario, assert_scenario, build_scenario, send_scenario
from tests.support.worker_process import run_worker
from tests.support.world import World, create_body, open_world

CRASHING = "tests.integration.crashing_worker"
HANG_SECONDS = 1.5
LOOP_SECONDS = 60.0
# One that can't be judged is tried so often that a slow machine takes its time.
PATIENCE = 150.0

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("kind", ["killer", "endless"])
async def test_a_killer_ends_rejected_alone_and_is_redriven_after_the_mend(
    deployment: Deployment, kind: str
) -> None:
    # The operator's commands read the rejected queue: the witness is not to take it empty.
    async with open_world(deployment, watch_rejected=False) as world:
        healthy = [await world.send("outplan_create", create_body()) for _ in range(20)]
        killer = await world.send("outplan_create", create_body(name=kind))
        healthy += [await world.send("outplan_create", create_body()) for _ in range(20)]

        async with kept_running(
            deployment, module=CRASHING, OUTPLAN_HANG_SECONDS=str(HANG_SECONDS)
        ) as codes:
            await world.wait_for(lambda: heard(world, healthy), PATIENCE)
            await world.wait_for(lambda: bool(world.replies[killer]), PATIENCE)
        assert set(codes) == {-signal.SIGKILL if kind == "killer" else 1}
        assert world.replies[killer][0]["problem"]["code"] == "delivery_limit"

        async with run_worker(deployment):
            code, _, told = await run(deployment, "redrive", killer)
            assert (code, told) == (0, "1 of 1 copy: 1 accepted\n")
            await world.wait_for_event(killer)
    assert set(Counter(e.message_id for e in world.events)) == {*healthy, killer}


async def test_where_workers_die_every_second_no_healthy_command_is_parked(
    deployment: Deployment,
) -> None:
    async with open_world(deployment) as world:
        scenario = build_scenario(outplans=40, rounds=10)
        await send_scenario(world, scenario)

        began = monotonic()
        async with kept_running(deployment, module=CRASHING, CRASH_AFTER="1") as codes:
            while monotonic() - began < LOOP_SECONDS:
                await healthy_ones(world, scenario)
        async with run_worker(deployment) as survivor:
            await assert_scenario(world, scenario)
            assert await survivor.stop() == 0

        assert len(codes) >= LOOP_SECONDS / 4
        assert set(codes) == {-signal.SIGKILL}
        parked = {copy.headers["x-problem-code"] for copy in world.rejected}
        assert "delivery_limit" not in parked


async def healthy_ones(world: World, scenario: Scenario) -> None:
    """Send some more, and await that they have got through."""
    ids = [scenario.add("outplan_create", create_body(), "accepted") for _ in range(50)]
    for id_, name, body in scenario.commands[-len(ids) :]:
        await world.send(name, body, message_id=id_)
    await world.wait_for(lambda: heard(world, ids), PATIENCE)


def heard(world: World, ids: list[str]) -> bool:
    return world.event_ids() >= set(ids)
