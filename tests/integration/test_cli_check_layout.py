"""Run ``outplan check`` on layouts: stored ones, unfinished changes, and what old ones left."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from outplan.contract.topology import Topology, build_topology
from outplan.domain.layout import Layout, assign_shares
from outplan.domain.records import WorkerReport
from outplan.mongodb.registry import MongoRegistry
from outplan.mongodb.store import MongoStore
from outplan.testing import Deployment
from outplan.testing.servers import Servers
from tests.integration.test_cli_check import check, problems
from tests.support.commands import run_command
from tests.support.topology import declare_topology
from tests.support.worker_process import run_worker
from tests.support.world import create_body


@pytest.fixture
async def registry(deployment: Deployment) -> AsyncIterator[MongoRegistry]:
    """Return the registry of a database that a worker has prepared."""
    store = MongoStore(deployment.mongo_url, deployment.database, "pymongo")
    try:
        await store.prepare()
        yield store.open_registry(deployment.prefix)
    finally:
        await store.close()


@asynccontextmanager
async def keep_announcing(
    registry: MongoRegistry, workers: Mapping[str, WorkerReport]
) -> AsyncIterator[None]:
    """Announce workers for the block, twice a second."""

    async def announce() -> None:
        for worker, report in workers.items():
            await registry.announce(worker, report)

    async def repeat() -> None:
        while True:
            await asyncio.sleep(0.5)
            await announce()

    await announce()
    repeating = asyncio.create_task(repeat())
    try:
        yield
    finally:
        repeating.cancel()
        await asyncio.wait({repeating})


@dataclass
class Broker:
    """A channel, and the queues and exchanges to delete after the test."""

    channel: AbstractChannel
    prefix: str

    async def declare(self, topology: Topology) -> None:
        await declare_topology(self.channel, topology)

    async def fill(self, queue: str, messages: int) -> None:
        """Put messages that no worker should read into a queue."""
        for _ in range(messages):
            await self.channel.default_exchange.publish(aio_pika.Message(b""), queue)


@pytest.fixture
async def broker(deployment: Deployment) -> AsyncIterator[Broker]:
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        yield Broker(channel, deployment.prefix)
        # Everything that any layout of these tests has.
        for queue in build_topology(deployment.prefix, 16).queues:
            await channel.queue_delete(queue.name)
        await channel.exchange_delete(f"{deployment.prefix}.commands.partitions")


async def store_change(registry: MongoRegistry, *layouts: Layout) -> None:
    """Store the first layout of a system, then the ones that follow it."""
    first, *rest = layouts
    current = await registry.ensure_layout(first.partitions)
    for following in rest:
        await registry.replace_layout(current, following)
        current = following


async def test_the_layout_is_shown_with_the_queues_of_each_live_worker(
    deployment: Deployment, registry: MongoRegistry
) -> None:
    layout = await registry.ensure_layout(4)
    async with keep_announcing(registry, {"a": WorkerReport(), "b": WorkerReport(unacked=7)}):
        code, found = await check(deployment)

    assert (code, problems(found)) == (0, [])
    assert found["layout"] == ("ok", "4 partitions, phase steady, generation 1", "")
    assert found["slots"] == ("ok", "all commands came with their outplan's slot", "")
    for worker in ("a", "b"):
        share = assign_shares(layout, deployment.prefix, ["a", "b"])[worker]
        own = [queue.name for queue in share.queues if queue.name in share.own]
        rest = [f".{name[-1]}" for name in own[1:]]
        unacked = {"a": 0, "b": 7}[worker]
        assert found[f"worker {worker}"][1] == (
            f"{', '.join([f'owns {own[0]}', *rest])}; on standby, {unacked} unacked"
        )
    assert f"queue {deployment.prefix}.commands.3" in found


async def test_a_worker_without_partitions_is_shown_as_a_standby(
    deployment: Deployment, registry: MongoRegistry
) -> None:
    await registry.ensure_layout(2)
    async with keep_announcing(registry, dict.fromkeys("abc", WorkerReport())):
        _, found = await check(deployment)
    main = f"{deployment.prefix}.commands"
    assert {found[f"worker {worker}"][1].partition(";")[0] for worker in "abc"} == {
        f"owns {main}.0", f"owns {main}.1", "owns no partition",
    }  # fmt: skip


async def test_it_is_said_when_no_worker_is_alive(
    deployment: Deployment, registry: MongoRegistry
) -> None:
    await registry.ensure_layout(1)
    code, found = await check(deployment)
    assert (code, found["workers"]) == (
        0,
        ("warning", "none is alive", "start one with outplan run"),
    )
    assert "slots" not in found


async def test_a_setting_that_differs_from_the_layout_is_a_problem(
    deployment: Deployment, registry: MongoRegistry
) -> None:
    await registry.ensure_layout(4)
    code, found = await check(deployment, OUTPLAN_PARTITIONS="16")
    point = "setting OUTPLAN_PARTITIONS"
    assert (code, problems(found)) == (1, [point])
    assert "16" in found[point][1]
    assert "4 partitions" in found[point][1]
    assert "outplan partitions 16" in found[point][2]
    # The topology is the stored layout's, whatever the setting.
    assert f"queue {deployment.prefix}.commands.3" in found
    assert f"queue {deployment.prefix}.commands.4" not in found
    assert (await check(deployment, OUTPLAN_PARTITIONS="4"))[0] == 0


async def test_an_unfinished_change_is_a_warning_and_its_queues_are_no_problem(
    deployment: Deployment, registry: MongoRegistry, broker: Broker
) -> None:
    await broker.declare(build_topology(deployment.prefix, 4))
    main = f"{deployment.prefix}.commands"
    await broker.fill(main, 2)
    steady = Layout(1, "steady", 4, 4)
    await store_change(registry, steady, steady.start(2, "token"))
    code, found = await check(deployment, OUTPLAN_PARTITIONS="4")

    assert (code, problems(found)) == (0, [])
    state, text, remedy = found["layout"]
    assert state == "warning"
    assert "change from 4 to 2 partitions" in text
    assert "phase divert, generation 2" in text
    assert "outplan partitions 2" in remedy
    assert found[f"depth of {main}"] == (
        "ok", "2 waiting, 0 consumers; workers do not consume it in this phase", "",
    )  # fmt: skip
    assert found["stale queues"][0] == "ok"


async def test_messages_in_a_queue_of_the_phase_are_a_problem_without_a_worker(
    deployment: Deployment, registry: MongoRegistry, broker: Broker
) -> None:
    await broker.declare(build_topology(deployment.prefix, 4))
    await broker.fill(f"{deployment.prefix}.commands.3", 1)
    steady = Layout(1, "steady", 2, 2)
    await store_change(registry, steady, steady.retire(4, "token"))
    code, found = await check(deployment)
    assert (code, problems(found)) == (1, [f"depth of {deployment.prefix}.commands.3"])
    assert found["layout"][0] == "warning"
    assert "outplan partitions 2" in found["layout"][2]
    assert found["stale queues"][0] == "ok"


@pytest.mark.parametrize(("messages", "state"), [(0, "warning"), (3, "problem")])
async def test_queues_beyond_the_layout_are_reported_with_their_messages(
    deployment: Deployment, registry: MongoRegistry, broker: Broker, messages: int, state: str
) -> None:
    await broker.declare(build_topology(deployment.prefix, 4))
    await broker.fill(f"{deployment.prefix}.commands.3", messages)
    await registry.ensure_layout(2)
    code, found = await check(deployment)
    assert code == (1 if messages else 0)
    assert found["stale queues"][0] == state
    assert f"{deployment.prefix}.commands.2: 0 waiting" in found["stale queues"][1]
    assert f"{deployment.prefix}.commands.3: {messages} waiting" in found["stale queues"][1]
    assert f"{deployment.prefix}.commands.1" not in found["stale queues"][1]
    assert "outplan partitions 2" in found["stale queues"][2]


@pytest.mark.parametrize(("partitions", "state"), [(1, None), (4, "warning")])
async def test_commands_without_their_slot_are_a_warning_with_several_partitions(
    deployment: Deployment, registry: MongoRegistry, partitions: int, state: str | None
) -> None:
    await registry.ensure_layout(partitions)
    reports = {"a": WorkerReport(unordered=1_200), "b": WorkerReport(unordered=34)}
    async with keep_announcing(registry, reports):
        code, found = await check(deployment)
    assert code == 0
    if state is None:
        assert "slots" not in found
    else:
        assert found["slots"][0] == state
        assert found["slots"][1].startswith("1,234 commands came with a bare routing key")
        assert "docs/clients.md" in found["slots"][2]


# What rabbitmq-plugins enable does. The former version needed this plugin.
ENABLE_PLUGIN = """
#{enabled_plugins_file := File} = rabbit_prelaunch:get_context(),
{ok, [Plugins]} = file:consult(File),
_ = file:delete(File),
Enabled = [rabbitmq_consistent_hash_exchange | Plugins],
ok = file:write_file(File, io_lib:format("~p.", [lists:usort(Enabled)])),
{ok, _, _} = rabbit_plugins:ensure(File).
"""


async def test_what_a_former_version_left_is_reported_until_worker_and_command_have_removed_it(
    servers: Servers, deployment: Deployment, broker: Broker
) -> None:
    """A system went from 3 partitions to 1 by its setting, under the version before slots."""
    servers.rabbitmq.ctl("eval", ENABLE_PLUGIN)
    prefix, channel = deployment.prefix, broker.channel
    with_three = build_topology(prefix, 3)
    commands = await channel.declare_exchange(f"{prefix}.commands", "topic", durable=True)
    partitions = await channel.declare_exchange(
        with_three.former_exchange, "x-consistent-hash", durable=True,
        arguments={"hash-header": "outplan_id"},
    )  # fmt: skip
    await partitions.bind(commands, "#")
    for queue in with_three.queues:
        declared = await channel.declare_queue(
            queue.name, durable=True, arguments=dict(queue.arguments)
        )
        if queue in with_three.partitions:
            await declared.bind(partitions, "1")
        elif queue == with_three.main:
            await declared.bind(commands, "#")
    for n in range(30):
        id_ = f"0000000{n % 10}-0000-4000-8000-0000000000{n:02}"
        body = json.dumps(create_body(id=id_)).encode()
        message = aio_pika.Message(body, message_id=id_, headers={"outplan_id": id_})
        await commands.publish(message, "outplan_create")

    former, depth = f"exchange {prefix}.commands.partitions", f"depth of {prefix}.commands"
    code, found = await check(deployment)
    assert (code, problems(found)) == (1, [depth, former, "stale queues"])
    assert found[depth][1].startswith("30 waiting")
    assert "second queue" in found[former][1]
    waiting = found["stale queues"][1].removeprefix("no partition uses ").split("; ")
    assert [text.split(":")[0] for text in waiting] == [q.name for q in with_three.partitions]
    assert sum(int(text.split(": ")[1].split()[0]) for text in waiting) == 30

    async with run_worker(deployment):
        code, found = await check(deployment)
        assert (code, problems(found)) == (1, ["stale queues"])
        async with run_command(
            deployment, "partitions", "1", "--settle", "0", "--retire", "0"
        ) as command:
            assert await command.wait(60) == 0, command.err
        code, found = await check(deployment)
    assert (code, problems(found)) == (0, [])
    assert found["stale queues"][0] == "ok"
    assert found["layout"][:2] == ("ok", "1 partition, phase steady, generation 3")


async def test_a_warning_is_yellow_on_a_terminal(
    deployment: Deployment, registry: MongoRegistry
) -> None:
    await registry.ensure_layout(4)
    async with (
        keep_announcing(registry, {"a": WorkerReport(unordered=1)}),
        run_command(deployment, "check", terminal=True) as process,
    ):
        assert await process.wait() == 0
    assert "\x1b[33mwarning" in process.out.decode()
