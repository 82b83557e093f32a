"""Test partitions: what reaches which queue, in which order it is applied, and old bindings."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import uuid4

import aio_pika
import pytest

from outplan.contract.topology import build_topology
from outplan.testing import Deployment
from outplan.testing.servers import Servers
from tests.support.ordered_load import OrderedLoad, assert_applied_in_order
from tests.support.partitions import (
    SLOTS,
    key_of,
    lay_out,
    list_bindings,
    list_queues,
    make_id,
    pick_slots,
    queue_of,
    queues_of,
    read_layout,
    watch_routing,
    write_down_queues,
)
from tests.support.worker_process import WorkerProcess, run_worker, start_worker
from tests.support.world import Document, World, create_body, open_world

pytestmark = pytest.mark.timeout(300)

PARTITIONS = 4


@pytest.fixture
async def worker(deployment: Deployment, world: World) -> AsyncIterator[WorkerProcess]:
    """Run a worker with PARTITIONS partitions."""
    async with run_partitioned(deployment, PARTITIONS, http=True) as worker:
        yield worker


def run_partitioned(
    deployment: Deployment, partitions: int, *, http: bool = False
) -> AbstractAsyncContextManager[WorkerProcess]:
    return run_worker(deployment, http=http, OUTPLAN_PARTITIONS=str(partitions))


async def test_commands_with_slots_are_applied_in_order(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    load = OrderedLoad(deployment, outplans=16, pause=0)
    await load.publish_rounds(20)
    await assert_applied_in_order(world, load)


@pytest.mark.parametrize("partitions", [2, 3, 16])
async def test_each_slot_has_the_queue_that_the_contract_says(
    deployment: Deployment, world: World, partitions: int
) -> None:
    await lay_out(deployment, partitions)
    assert await list_queues(world) == queues_of(deployment.prefix, partitions)
    async with watch_routing(world, partitions) as routing:
        found = await routing.find_queues({slot: f"outplan_update.{slot}" for slot in SLOTS})
        assert found == {slot: queue_of(deployment.prefix, slot, partitions) for slot in SLOTS}

        others = [
            *("outplan_update", "", "anything", "outplan_update.x.c3", "outplan_update.c3.x"),
            *("outplan_update.C3", "outplan_update.c", "outplan_update.c3c", ".c3.", "c3"),
        ]
        found = await routing.find_queues({key or "empty": key for key in others})
        assert set(found.values()) == {f"{deployment.prefix}.commands"}


@pytest.mark.parametrize("partitions", [1, PARTITIONS])
async def test_commands_without_a_usable_slot_are_handled_and_counted(
    deployment: Deployment, world: World, partitions: int
) -> None:
    id_ = make_id("c3")
    async with run_partitioned(deployment, partitions, http=True) as worker:
        updates: list[tuple[str, Document, dict[str, Any]]] = [
            ("outplan_create", create_body(id=id_), {}),
            ("outplan_update.c3", {"id": id_, "try_interval": 1_001}, {}),
            ("outplan_update.c4", {"id": id_, "try_interval": 1_002}, {}),
            ("outplan_update.C3", {"id": id_, "try_interval": 1_003}, {"type": "outplan_update"}),
            ("any.key", {"id": id_, "try_interval": 1_004}, {"type": "outplan_update"}),
            ("", {"id": id_, "try_interval": 1_005}, {"to_queue": True, "type": "outplan_update"}),
        ]
        for key, body, properties in updates:
            reply = await world.ask(key, body, **properties)
            assert reply["status"] == "accepted", reply

        for key in ("outplan_update.C3", "outplan_update.x", "anything", "outplan_paint.c3"):
            reply = await world.ask(key, {"id": id_, "name": "x"})
            assert reply["problem"]["code"] == "unknown_command", key

        counted = await read_unordered(worker)
    # A key whose suffix is no slot has none. Only outplan_paint.c3 has one, and no outplan.
    expected = {"bare_key": 7, "wrong_slot": 1} if partitions > 1 else {}
    assert counted == expected
    history = await world.read_history(id_)
    assert [e["data"]["try_interval"] for e in history] == [60_000, *range(1_001, 1_006)]


async def read_unordered(worker: WorkerProcess) -> dict[str, int]:
    """Return the counts of outplan_unordered_commands_total that are not 0, by reason."""
    _, text = await worker.get("/metrics")
    lines = [
        line for line in text.splitlines() if line.startswith("outplan_unordered_commands_total{")
    ]
    counts = {line.split('"')[1]: int(float(line.split()[1])) for line in lines}
    return {reason: count for reason, count in counts.items() if count}


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_routing_is_the_same_after_a_restart_of_the_broker(
    servers: Servers, deployment: Deployment, how: str
) -> None:
    partitions = 16
    ids = {str(n): str(uuid4()) for n in range(64)}
    keys = {name: key_of("outplan_update", id_) for name, id_ in ids.items()}
    expected = {
        name: queue_of(deployment.prefix, id_[-2:], partitions) for name, id_ in ids.items()
    }
    await lay_out(deployment, partitions)
    await write_down_queues(servers)
    await asyncio.to_thread(getattr(servers.rabbitmq, how))
    await asyncio.to_thread(servers.rabbitmq.start)
    async with open_world(deployment) as world, watch_routing(world, partitions) as routing:
        assert await routing.find_queues(keys) == expected


async def test_a_worker_removes_wrong_slots_from_its_queues_and_binds_missing_ones(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    await lay_out(deployment, PARTITIONS)
    slots = f"{deployment.prefix}.commands.slots"
    for n in range(PARTITIONS):
        queue = await world.channel.get_queue(f"{deployment.prefix}.commands.{n}", ensure=False)
        own = pick_slots(PARTITIONS)[n]
        others = pick_slots(PARTITIONS)[(n + 1) % PARTITIONS]
        await queue.unbind(slots, f"*.{own}")
        await queue.bind(slots, f"*.{others}")

    expected = {(f"*.{slot}", queue_of(deployment.prefix, slot, PARTITIONS)) for slot in SLOTS}
    assert await list_bindings(servers, slots) != expected
    async with run_worker(deployment), asyncio.timeout(60):
        # The worker removes bindings queue by queue, once it consumes.
        while await list_bindings(servers, slots) != expected:
            pass


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_new_worker_removes_the_former_versions_ways(
    deployment: Deployment, partitions: int
) -> None:
    """Start on a system of a version that bound ``#`` or used a consistent-hash exchange.

    A topic exchange stands in for the latter: RabbitMQ may lack the plugin.
    """
    former = f"{deployment.prefix}.commands.partitions"
    topology = build_topology(deployment.prefix, partitions)
    queues = topology.partitions or (topology.main,)
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        commands = await channel.declare_exchange(topology.commands.name, "topic", durable=True)
        for queue in topology.queues:
            await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))
        main = await channel.get_queue(topology.main.name, ensure=False)
        await main.bind(commands, "#")
        exchange = await channel.declare_exchange(former, "topic", durable=True)
        await exchange.bind(commands, "#")
        for queue in queues:
            await (await channel.get_queue(queue.name, ensure=False)).bind(exchange, "#")

    await lay_out(deployment, partitions)

    async with open_world(deployment) as world:
        async with watch_routing(world, partitions) as routing:
            # find_queues fails for a command that reaches two queues.
            found = await routing.find_queues({slot: f"outplan_update.{slot}" for slot in SLOTS})
            assert found == {slot: queue_of(deployment.prefix, slot, partitions) for slot in SLOTS}
        async with await world.connection.channel() as channel:
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                await channel.get_exchange(former)
        await assert_main_is_bound_once(world)


async def assert_main_is_bound_once(world: World) -> None:
    """Check that the main queue is bound to the alternate exchange alone.

    RabbitMQ delivers one copy, however many ways lead to a queue, so a second way does not show in
    the routing. Without the way through the slots nothing may reach the queue.
    """
    commands, slots = (f"{world.deployment.prefix}.{n}" for n in ("commands", "commands.slots"))
    exchange = await world.channel.get_exchange(slots, ensure=False)
    await exchange.unbind(commands, "#")
    source = await world.channel.get_exchange(commands, ensure=False)
    await source.publish(aio_pika.Message(b"{}"), "outplan_update", mandatory=False)
    async with watch_routing(world, 1) as routing:
        assert await routing.list_waiting(commands) == []


@pytest.mark.parametrize(("stored", "other"), [(4, 1), (1, 4)])
async def test_a_worker_with_another_number_stops_with_one_line(
    deployment: Deployment, world: World, stored: int, other: int
) -> None:
    async with run_partitioned(deployment, stored):
        worker = await start_worker(deployment, OUTPLAN_PARTITIONS=str(other))
        assert await worker.wait() == 1
        assert worker.errors.count("\n") == 1
        assert worker.errors.startswith("outplan: ")
        for text in (f"OUTPLAN_PARTITIONS={other}", f"in force is {stored}", "outplan partitions"):
            assert text in worker.errors
        assert (await read_layout(world))["partitions"] == stored
        assert len(await list_queues(world)) == (stored if stored > 1 else 0)


async def test_a_worker_without_the_setting_follows_the_stored_number(
    deployment: Deployment, world: World
) -> None:
    async with run_partitioned(deployment, 3), run_worker(deployment) as follower:
        assert (await follower.wait_for_log("ready"))["partitions"] == 3


async def test_a_worker_without_the_setting_writes_one_partition_on_an_empty_system(
    deployment: Deployment, world: World
) -> None:
    async with run_worker(deployment):
        assert (await read_layout(world))["partitions"] == 1
        assert await list_queues(world) == []
