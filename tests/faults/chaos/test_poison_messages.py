"""Check poison messages, which end every worker that handles them, and workers that keep dying."""

import asyncio
import signal
from collections import Counter

import pytest

from outplan.testing import Deployment
from tests.faults.chaos.supervisor import supervise_worker
from tests.support.rejects import run
from tests.support.scenario import Scenario, assert_scenario, build_scenario, send_scenario
from tests.support.worker_process import run_worker
from tests.support.world import World, create_body, open_world

FAULTY_WORKER = "tests.support.faulty_worker"
HANG_SECONDS = 1.5
CRASHES = 10
# The worker gives up on a poison message after several attempts, slowly on a busy machine.
TIMEOUT_SECONDS = 240.0

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("kind", ["crash", "hang"])
async def test_a_poison_message_alone_is_rejected_and_can_be_redriven_after_a_fix(
    deployment: Deployment, kind: str
) -> None:
    # Leave the rejected queue to the operator's commands.
    async with open_world(deployment, watch_rejected=False) as world:
        healthy = [await world.send("outplan_create", create_body()) for _ in range(20)]
        poison = await world.send("outplan_create", create_body(name=kind))
        healthy += [await world.send("outplan_create", create_body()) for _ in range(20)]

        async with supervise_worker(
            deployment, module=FAULTY_WORKER, OUTPLAN_HANG_SECONDS=str(HANG_SECONDS)
        ) as codes:
            await world.wait_for(lambda: has_events(world, healthy), TIMEOUT_SECONDS)
            await world.wait_for(lambda: bool(world.replies[poison]), TIMEOUT_SECONDS)
        assert set(codes) == {-signal.SIGKILL if kind == "crash" else 1}
        assert world.replies[poison][0]["problem"]["code"] == "delivery_limit"

        async with run_worker(deployment):
            code, _, output = await run(deployment, "redrive", poison)
            assert (code, output) == (0, "1 of 1 message: 1 accepted\n")
            await world.wait_for_event(poison)
    assert set(Counter(e.message_id for e in world.events)) == {*healthy, poison}


async def test_workers_that_die_every_second_reject_no_healthy_command(
    deployment: Deployment,
) -> None:
    async with open_world(deployment) as world:
        scenario = build_scenario(outplans=40, rounds=10)
        await send_scenario(world, scenario)

        async with (
            asyncio.timeout(TIMEOUT_SECONDS),
            supervise_worker(deployment, module=FAULTY_WORKER, CRASH_AFTER="1") as codes,
        ):
            while len(codes) < CRASHES:
                await send_and_wait(world, scenario)
        async with run_worker(deployment) as survivor:
            await assert_scenario(world, scenario)
            assert await survivor.stop() == 0

        assert set(codes) == {-signal.SIGKILL}
        codes_rejected = {copy.headers["x-problem-code"] for copy in world.rejected}
        assert "delivery_limit" not in codes_rejected


async def send_and_wait(world: World, scenario: Scenario) -> None:
    """Send 50 healthy commands and wait for their events."""
    ids = [scenario.add("outplan_create", create_body(), "accepted") for _ in range(50)]
    for id_, name, body in scenario.commands[-len(ids) :]:
        await world.send(name, body, message_id=id_)
    await world.wait_for(lambda: has_events(world, ids), TIMEOUT_SECONDS)


def has_events(world: World, ids: list[str]) -> bool:
    return world.event_ids() >= set(ids)
