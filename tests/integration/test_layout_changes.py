"""Change the number of partitions while commands come: order holds, nothing is lost or repeated."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from uuid import uuid4

import aio_pika
import pytest

from outplan.contract.topology import build_topology
from outplan.errors import LayoutRefused
from outplan.operations import partitions as partitions_module
from outplan.settings import Settings
from outplan.testing import Deployment
from outplan.testing.servers import Servers
from tests.support.ordered_load import OrderedLoad, assert_applied_in_order, run_load
from tests.support.partitions import (
    change,
    close_connections_of,
    count_messages,
    fail_to_change,
    is_locked,
    key_of,
    lay_out,
    list_active,
    list_queues,
    make_id,
    queues_of,
    read_layout,
    run_change,
    write_down_queues,
)
from tests.support.process_state import is_suspended
from tests.support.scenario import Scenario, assert_scenario
from tests.support.worker_process import WorkerProcess, run_worker, start_worker
from tests.support.world import World, create_body, open_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
async def worker(deployment: Deployment, world: World) -> AsyncIterator[WorkerProcess]:
    """Run a worker with four partitions."""
    async with run_worker(deployment, OUTPLAN_PARTITIONS="4") as worker:
        yield worker


async def assert_steady(world: World, partitions: int) -> None:
    """Check that a change has left nothing but its number of partitions."""
    layout = await read_layout(world)
    assert (layout["phase"], layout["partitions"]) == ("steady", partitions)
    numbered = queues_of(world.deployment.prefix, partitions) if partitions > 1 else []
    assert await list_queues(world) == numbered
    async with asyncio.timeout(10):  # A worker holds the lock for a moment, too.
        while await is_locked(world):
            await asyncio.sleep(0.1)


async def send_to_queue(world: World, queue: str) -> str:
    """Send a create straight to a queue; return its message_id."""
    body = json.dumps(create_body()).encode()
    id_ = str(uuid4())
    message = aio_pika.Message(body, type="outplan_create", message_id=id_, delivery_mode=2)
    await world.channel.default_exchange.publish(message, queue)
    return id_


async def send_barrier(world: World, queue: str, token: str) -> None:
    message = aio_pika.Message(b"", type="outplan_barrier", message_id=token)
    await world.channel.default_exchange.publish(message, queue)


async def test_the_number_changes_under_load(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    async with run_worker(deployment), run_load(deployment) as load:
        for partitions in (16, 1, 4):
            assert await change(deployment, partitions) == (
                f"{partitions} partition{'s' if partitions > 1 else ''}\n"
            )
            await assert_steady(world, partitions)
    async with run_worker(deployment, OUTPLAN_PARTITIONS="4"):
        await assert_applied_in_order(world, load)


async def test_a_change_to_one_partition_and_back_keeps_the_newest_version(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    """By settings alone, the second command came twice, and then the first change undid it."""
    id_ = make_id("c3")
    update = key_of("outplan_update", id_)
    await world.ask(key_of("outplan_create", id_), create_body(id=id_))
    await change(deployment, 1)
    await world.ask(update, {"id": id_, "try_interval": 2_000})
    await change(deployment, 4)
    await world.ask(update, {"id": id_, "try_interval": 3_000})

    document = await world.find_document(id_)
    assert document is not None
    assert (document["version"], document["try_interval"]) == (3, 3_000)
    assert len(world.events) == len(world.replies) == 3


async def test_a_change_goes_on_when_the_command_was_killed_in_any_phase(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    async with run_load(deployment) as load:
        for phase in ("steady", "divert", "replay", "retire"):
            async with run_change(deployment, 2, "--settle", "1", "--retire", "1") as command:
                # Printed when the phase is stored and its bindings are changed.
                await command.wait_for_error(f"{phase}: ", seconds=60)
                await command.kill()
            assert (await read_layout(world))["phase"] == phase
        await change(deployment, 2)
        await assert_steady(world, 2)
    await assert_applied_in_order(world, load)


async def test_a_queue_without_a_partition_is_emptied_and_deleted(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    """Find a queue such as a command leaves that is killed while it deletes the old queues."""
    stale = build_topology(deployment.prefix, 5).partitions[4]
    await world.channel.declare_queue(stale.name, durable=True, arguments=dict(stale.arguments))
    sent = await send_to_queue(world, stale.name)
    assert await change(deployment, 4) == "4 partitions\n"
    assert len(world.find_events(sent)) == 1
    await assert_steady(world, 4)


@pytest.mark.parametrize(
    ("victim", "phase"),
    [("worker", "divert"), ("worker", "replay"), ("rabbitmq", "divert"), ("mongodb", "replay")],
)
async def test_a_change_survives_a_kill_in_the_middle(
    servers: Servers, deployment: Deployment, victim: str, phase: str
) -> None:
    async with open_world(deployment):
        pass  # Its durable queue keeps the events until it is opened again.
    async with run_worker(deployment, OUTPLAN_PARTITIONS="4") as first, run_worker(deployment):
        await write_down_queues(servers)
        async with (
            run_load(deployment, pause=0.2) as load,
            run_change(deployment, 2, "--settle", "1") as command,
        ):
            await command.wait_for_error(f"{phase}: letting")
            if victim == "worker":
                await first.kill()
            else:
                server = getattr(servers, victim)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            assert await command.wait(120) == 0, command.err
        async with open_world(deployment) as world:
            await assert_applied_in_order(world, load, repeats=True)
            await assert_steady(world, 2)


@pytest.mark.parametrize("target", [1, 16])
async def test_what_waits_in_the_old_queues_comes_before_what_follows(
    deployment: Deployment, world: World, target: int
) -> None:
    await lay_out(deployment, 4)
    load = OrderedLoad(deployment, outplans=32, pause=0)
    await load.publish_rounds(10)
    async with run_change(deployment, target) as command:
        await command.wait_for_error("divert: no worker is alive")
        await load.publish_rounds(10)
        assert await count_messages(world, f"{deployment.prefix}.commands") == 320
        async with run_worker(deployment), run_worker(deployment):
            await load.publish_rounds(5)
            assert await command.wait(60) == 0, command.err
            await load.publish_rounds(5)
            await assert_applied_in_order(world, load)
    await assert_steady(world, target)


async def test_an_aborted_change_leads_back_to_the_former_number(
    deployment: Deployment, world: World
) -> None:
    await lay_out(deployment, 4)
    load = OrderedLoad(deployment, outplans=16, pause=0)
    await load.publish_rounds(3)
    async with run_change(deployment, 2) as command:
        await command.wait_for_error("divert: no worker is alive: start one")
        await load.publish_rounds(3)
        assert await command.interrupt() == 130
        assert b"run the same command to go on" in command.err
    async with run_change(deployment, "--abort") as command:
        await command.wait_for_error("divert: no worker is alive: start one")
        await load.publish_rounds(3)
        async with run_worker(deployment, OUTPLAN_PARTITIONS="4"):
            assert await command.wait(60) == 0, command.err
            assert command.out == b"4 partitions\n"
            await load.publish_rounds(3)
            await assert_applied_in_order(world, load)
    await assert_steady(world, 4)


async def test_what_the_state_of_a_change_does_not_allow_is_refused(
    deployment: Deployment, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no worker has started" in await fail_to_change(deployment, 4)
    await lay_out(deployment, 1)
    assert "no change to abort" in await fail_to_change(deployment, "--abort")

    async with run_change(deployment, 4) as first:
        await first.wait_for_error("replay: no worker is alive")
        assert await is_locked(world)
        await refuse_second_change(deployment, 4, monkeypatch)
        error = await fail_to_change(deployment, 8)
        assert "from 1 to 4 partitions" in error
        assert "outplan partitions 4" in error
        assert "--abort" not in error
        await first.kill()

    error = await fail_to_change(deployment, "--abort")
    assert "cannot be undone any more" in error
    assert "outplan partitions 4" in error
    assert (await read_layout(world))["phase"] == "replay"
    async with run_worker(deployment, OUTPLAN_PARTITIONS="4"):
        assert await change(deployment, 4) == "4 partitions\n"
    await assert_steady(world, 4)


async def refuse_second_change(
    deployment: Deployment, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run a second change in this process, where it need not wait for 20 s for the lock."""
    monkeypatch.setattr(partitions_module, "_LOCK_SECONDS", 0.5)
    environment = deployment.environment()
    for name in ("OUTPLAN_AMQP_URL", "OUTPLAN_MONGO_URL"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.setenv("OUTPLAN_PREFIX", deployment.prefix)
    monkeypatch.setenv("OUTPLAN_MONGO_DATABASE", deployment.database)
    async with partitions_module.open_change(Settings(), print, settle=0, retire=0) as second:
        with pytest.raises(LayoutRefused, match="another outplan partitions runs") as refused:
            await second.run(partitions)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("point", ["received", "loaded"])
async def test_a_worker_that_stood_still_through_a_change_commits_nothing(
    servers: Servers, deployment: Deployment, world: World, point: str
) -> None:
    """Suspend a worker in a batch of an old queue, and resume it when the queue is gone.

    The batch holds updates that changed nothing. Decided again, they would undo later ones.
    """
    await lay_out(deployment, 4)
    scenario, outplan_id = Scenario(), make_id("c3")
    scenario.intervals[outplan_id] = [60_000, 5_000]
    scenario.add("outplan_create", create_body(id=outplan_id), "accepted")
    for _ in range(30):
        scenario.add("outplan_update", {"id": outplan_id, "try_interval": 60_000}, "unchanged")
    scenario.add("outplan_update", {"id": outplan_id, "try_interval": 5_000}, "accepted")
    for id_, name, body in scenario.commands:
        await world.send(key_of(name, outplan_id), body, message_id=id_)
    stopped = await start_worker(
        deployment, module="tests.support.faulty_worker", STOP_AT=point, OUTPLAN_HANG_SECONDS="0",
        OUTPLAN_BATCH_SIZE="20",
    )  # fmt: skip
    try:
        await wait_until_suspended(stopped)
        active = await list_active(servers, deployment.prefix)
        async with run_worker(deployment):
            await close_connections_of(servers, {c for found in active.values() for c in found})
            await change(deployment, 1)
            await assert_steady(world, 1)
            await world.wait_for(lambda: all(world.replies[id_] for id_ in scenario.expected))
            before = await world.read_documents()
            stopped.signal(signal.SIGCONT)
            await stopped.wait_for_log("session_reopened")
            assert await world.read_documents() == before
            await assert_scenario(world, scenario)
    finally:
        stopped.signal(signal.SIGCONT)
        await stopped.kill()


async def wait_until_suspended(worker: WorkerProcess) -> None:
    async with asyncio.timeout(60):
        while not is_suspended(worker.process.pid):
            await asyncio.sleep(0.05)


async def test_a_forged_barrier_is_acked_and_ends_no_phase(
    deployment: Deployment, world: World
) -> None:
    await lay_out(deployment, 4)
    queues = queues_of(deployment.prefix, 4)
    async with run_change(deployment, 1, "--settle", "60") as command:
        await command.wait_for_error("divert: letting")
        await command.kill()  # Before it publishes the barriers.
    for queue in queues:
        await send_barrier(world, queue, "forged")
    behind = [await send_to_queue(world, queue) for queue in queues]

    async with run_worker(deployment) as worker:
        await world.wait_for_events(set(behind))
        layout = await read_layout(world)
        assert (layout["phase"], layout["drained"]) == ("divert", [])
        await change(deployment, 1)
        await send_barrier(world, f"{deployment.prefix}.commands", layout["token"])
        last = await world.send("outplan_create", create_body())
        await world.wait_for_event(last)
        assert await worker.stop() == 0

    assert await count_messages(world, f"{deployment.prefix}.commands") == 0
    assert world.rejected == []
    assert world.event_ids() == {*behind, last}
