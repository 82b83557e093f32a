"""Run two workers on the same outplans: order and versions hold when either of them stops."""

import asyncio
import signal

import pytest

from outplan.testing import Deployment
from tests.support.scenario import Scenario, assert_events_and_documents
from tests.support.worker_process import WorkerProcess, run_worker, start_worker
from tests.support.world import World, create_body

HOT = [f"0000000{n}-0000-4000-8000-00000000000{n}" for n in range(1, 4)]
EVENTS_BETWEEN_STOPS = 150


async def send_updates(
    world: World, scenario: Scenario, enough: asyncio.Event, most: int = 50_000
) -> None:
    """Send updates of HOT in turn, waiting for each confirm, until ``enough`` is set."""
    for n in range(most):
        if enough.is_set():
            return
        id_ = HOT[n % len(HOT)]
        body = {"id": id_, "try_interval": 1_000 + n}
        scenario.add("outplan_update", body, "accepted")
        scenario.intervals[id_].append(1_000 + n)
        await world.send("outplan_update", body, message_id=scenario.commands[-1][0])


async def create_hot_outplans(world: World) -> Scenario:
    scenario = Scenario()
    for id_ in HOT:
        scenario.add("outplan_create", create_body(id=id_), "accepted")
        scenario.intervals[id_].append(60_000)
        await world.send("outplan_create", create_body(id=id_), message_id=scenario.commands[-1][0])
    return scenario


async def signal_under_load(world: World, victim: WorkerProcess, number: signal.Signals) -> int:
    published = len(world.events)
    await world.wait_for(lambda: len(world.events) >= published + EVENTS_BETWEEN_STOPS)
    victim.signal(number)
    return await victim.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_standby_takes_over_in_order_when_the_active_worker_stops(
    deployment: Deployment, world: World, number: signal.Signals
) -> None:
    async with run_worker(deployment) as first, run_worker(deployment) as second:
        scenario = await create_hot_outplans(world)
        enough = asyncio.Event()
        load = asyncio.create_task(send_updates(world, scenario, enough))
        await signal_under_load(world, first, number)
        async with run_worker(deployment):
            await signal_under_load(world, second, number)
            enough.set()
            await load
            await assert_events_and_documents(world, scenario)


async def test_a_worker_resumed_after_failover_is_fenced_off(
    deployment: Deployment, world: World
) -> None:
    async with run_worker(deployment, OUTPLAN_HANG_SECONDS="0") as suspended:
        scenario = await create_hot_outplans(world)
        await world.wait_for(lambda: len(world.events) == len(HOT))
        suspended.signal(signal.SIGSTOP)
        load = asyncio.create_task(send_updates(world, scenario, asyncio.Event(), most=900))
        async with run_worker(deployment):
            # The broker closes the suspended worker's connection when its heartbeats stop.
            await world.wait_for(lambda: len(world.events) > len(HOT) + 10, seconds=60)
            suspended.signal(signal.SIGCONT)
            await load
            await assert_events_and_documents(world, scenario)
            await suspended.wait_for_log("session_reopened")


async def test_a_slow_clock_does_not_move_timestamps_back(
    deployment: Deployment, world: World
) -> None:
    reply = {}
    async with run_worker(deployment):
        reply = await world.ask("outplan_create", create_body())
    id_, created = reply["outplan"]["id"], reply["outplan"]["tm_update"]

    behind = await start_worker(
        deployment, module="tests.support.faulty_worker", CLOCK_SKEW="-3600"
    )
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
