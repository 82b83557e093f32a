"""Two workers at once on the same outplans: order and versions hold whoever falls."""

import asyncio
import signal

import pytest

from tests.support.deployment import Deployment
from tests.support.scenario import Scenario, assert_events_and_documents
from tests.support.worker_process import WorkerProcess, run_worker, start_worker
from tests.support.world import World, create_body

HOT = [f"0000000{n}-0000-4000-8000-00000000000{n}" for n in range(1, 4)]
BETWEEN_FALLS = 150


async def sending(
    world: World, scenario: Scenario, enough: asyncio.Event, most: int = 50_000
) -> None:
    """Updates of a few hot outplans, in order, at the pace of the confirms, until it is enough."""
    for n in range(most):
        if enough.is_set():
            return
        id_ = HOT[n % len(HOT)]
        body = {"id": id_, "try_interval": 1_000 + n}
        scenario.add("outplan_update", body, "accepted")
        scenario.intervals[id_].append(1_000 + n)
        await world.send("outplan_update", body, message_id=scenario.commands[-1][0])


async def hot_outplans(world: World) -> Scenario:
    scenario = Scenario()
    for id_ in HOT:
        scenario.add("outplan_create", create_body(id=id_), "accepted")
        scenario.intervals[id_].append(60_000)
        await world.send("outplan_create", create_body(id=id_), message_id=scenario.commands[-1][0])
    return scenario


async def the_fall(world: World, victim: WorkerProcess, number: signal.Signals) -> int:
    seen = len(world.events)
    await world.wait_for(lambda: len(world.events) >= seen + BETWEEN_FALLS)
    victim.signal(number)
    return await victim.wait()


async def assert_all_in_order(world: World, scenario: Scenario) -> None:
    await assert_events_and_documents(world, scenario)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_when_one_of_two_workers_falls_the_other_goes_on_in_order(
    deployment: Deployment, world: World, number: signal.Signals
) -> None:
    async with run_worker(deployment) as first, run_worker(deployment) as second:
        scenario = await hot_outplans(world)
        enough = asyncio.Event()
        load = asyncio.create_task(sending(world, scenario, enough))
        await the_fall(world, first, number)
        async with run_worker(deployment):
            await the_fall(world, second, number)
            enough.set()
            await load
            await assert_all_in_order(world, scenario)


async def test_a_worker_that_was_stopped_comes_back_fenced_off(
    deployment: Deployment, world: World
) -> None:
    async with run_worker(deployment, OUTPLAN_HANG_SECONDS="0") as sleeper:
        scenario = await hot_outplans(world)
        await world.wait_for(lambda: len(world.events) == len(HOT))
        sleeper.signal(signal.SIGSTOP)
        load = asyncio.create_task(sending(world, scenario, asyncio.Event(), most=900))
        async with run_worker(deployment):
            # The broker gives up on the sleeper when its heartbeats stay away.
            await world.wait_for(lambda: len(world.events) > len(HOT) + 10, seconds=60)
            sleeper.signal(signal.SIGCONT)
            await load
            await assert_all_in_order(world, scenario)
            await sleeper.wait_for_log("consuming again")


async def test_a_clock_that_is_behind_takes_no_time_back(
    deployment: Deployment, world: World
) -> None:
    reply = {}
    async with run_worker(deployment):
        reply = await world.ask("outplan_create", create_body())
    id_, created = reply["outplan"]["id"], reply["outplan"]["tm_update"]

    behind = await start_worker(deployment, module="tests.integration.slow_clock_worker")
    try:
        await behind.wait_for_log("ready")
        updated = await world.ask("outplan_update", {"id": id_, "name": "later"})
        deleted = await world.ask("outplan_delete", {"id": id_})
    finally:
        await behind.kill()

    times = [created, updated["outplan"]["tm_update"], deleted["outplan"]["tm_update"]]
    assert times == sorted(set(times))
    assert times[1][:19] == created[:19]
    assert [e["time"] for e in await world.read_history(id_)] == times
