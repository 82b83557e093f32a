"""Check that a cluster forms, survives the loss of any server, and leaves nothing behind.

Each test takes tens of seconds; run them by ``make cluster``.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import AMQPError
from pymongo import MongoClient, WriteConcern

from outplan.testing.servers import ServerFailed
from tests.faults.clusters.cluster import Cluster, start_cluster
from tests.faults.clusters.nodes import MongoMember
from tests.faults.clusters.status import read_status
from tests.support.balancer import run_balancer
from tests.support.brokers import (
    BROKERS,
    Broker,
    find_image,
    is_listening,
    list_containers,
    skip_if_unavailable,
)
from tests.support.leak_check import (
    LOOPBACK,
    SERVER_PROGRAMS,
    any_alive,
    find_descendants,
    find_listening_addresses,
    wait_until,
)

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[3]
PARENT = """
import sys
from tests.faults.clusters.cluster import start_cluster
with start_cluster(sys.argv[1]):
    print("up", flush=True)
    sys.stdin.read()
"""
# The promise for events to flow again; the servers alone must stay well below.
OUTAGE_SECONDS = 10.0
UNAVAILABLE = (OSError, AMQPError, RuntimeError)

ReportTime = Callable[[str, float], None]


@pytest.fixture(scope="module", params=BROKERS)
def cluster(request: pytest.FixtureRequest, report_time: ReportTime) -> Iterator[Cluster]:
    broker: Broker = request.param
    skip_if_unavailable(broker)
    began = monotonic()
    with start_cluster(broker) as running:
        report_time(f"{running.rabbits[0].version} start", monotonic() - began)
        yield running


@pytest.fixture(scope="module")
def report_time(request: pytest.FixtureRequest) -> ReportTime:
    """Return a function that appends a time to the file OUTPLAN_TEST_TIMES, if that is set."""
    file = os.environ.get("OUTPLAN_TEST_TIMES")

    def note(what: str, seconds: float) -> None:
        if file:
            with Path(file).open("a") as times:
                print(f"{what}: {seconds:.1f} s", file=times)

    return note


@pytest.fixture
async def queue(cluster: Cluster) -> AsyncIterator[str]:
    """Declare a quorum queue of three members; make the cluster healthy before and after."""
    name = f"cluster-test-{uuid4()}"
    await asyncio.to_thread(cluster.wait_until_healthy)
    async with open_channel(cluster.rabbits[0].url) as channel:
        await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    await asyncio.to_thread(cluster.persist_queues)
    yield name
    await asyncio.to_thread(cluster.start)
    await asyncio.to_thread(cluster.wait_until_healthy)
    async with open_channel(cluster.rabbits[0].url) as channel:
        await channel.queue_delete(name)


async def test_three_nodes_form_one_cluster_and_a_queue_has_a_member_on_each(
    cluster: Cluster, queue: str
) -> None:
    names = {node.name for node in cluster.rabbits}
    assert len(names) == len(cluster.rabbits) == len(cluster.mongos) == 3
    for node in cluster.rabbits:
        status = await asyncio.to_thread(read_status, node)
        assert status.nodes == names
        assert {member["Node Name"] for member in status.queues[queue]} == names
    assert cluster.primary() in cluster.mongos
    with connect_mongo(cluster) as client:
        assert len(client.nodes) <= 3
        client.kept.documents.with_options(write_concern=WriteConcern(w=3)).insert_one({})


async def test_the_leader_of_a_queue_moves_to_another_node(cluster: Cluster, queue: str) -> None:
    before = await asyncio.to_thread(cluster.leader_of, queue)
    after = await asyncio.to_thread(cluster.move_leader, queue)
    assert after is not before
    assert await asyncio.to_thread(cluster.leader_of, queue) is after


async def test_messages_survive_the_death_of_the_queue_leaders_node(
    cluster: Cluster, queue: str, report_time: ReportTime
) -> None:
    leader = await asyncio.to_thread(cluster.leader_of, queue)
    async with run_balancer(*(node.url for node in cluster.rabbits)) as balancer:
        confirmed = [await publish_until_confirmed(balancer.url, queue, f"{n}") for n in range(3)]
        await asyncio.to_thread(leader.kill)
        began = monotonic()
        confirmed += [
            await publish_until_confirmed(balancer.url, queue, f"{n}") for n in range(3, 9)
        ]
        outage = monotonic() - began
        report_time(f"{leader.version} leader killed, next confirm", outage)
        assert outage < OUTAGE_SECONDS
        assert await asyncio.to_thread(cluster.leader_of, queue) is not leader
        await asyncio.to_thread(leader.start)
        await asyncio.to_thread(cluster.wait_until_healthy)
        report_time(f"{leader.version} killed node in sync again", monotonic() - began)
        assert set(confirmed) <= set(await consume_all(balancer.url, queue))


async def test_a_node_that_was_down_catches_up(cluster: Cluster, queue: str) -> None:
    absent, *others = cluster.rabbits
    await asyncio.to_thread(absent.stop)
    confirmed = [await publish_until_confirmed(others[0].url, queue, f"{n}") for n in range(20)]
    with pytest.raises(ServerFailed, match=f"{absent.name} does not answer"):
        await asyncio.to_thread(cluster.wait_until_healthy, 0)
    await asyncio.to_thread(absent.start)
    await asyncio.to_thread(cluster.wait_until_healthy)
    leader = await asyncio.to_thread(cluster.leader_of, queue)
    # One of the two that stayed up is gone: a majority needs the node that was absent.
    await asyncio.to_thread(next(node for node in others if node is not leader).kill)
    assert await consume_all(absent.url, queue) == confirmed


async def test_a_paused_node_is_skipped_and_rejoins_when_resumed(
    cluster: Cluster, queue: str, report_time: ReportTime
) -> None:
    leader = await asyncio.to_thread(cluster.leader_of, queue)
    async with run_balancer(*(node.url for node in cluster.rabbits)) as balancer:
        await asyncio.to_thread(leader.pause)
        began = monotonic()
        await publish_until_confirmed(balancer.url, queue, "x")
        report_time(f"{leader.version} leader paused, next confirm", monotonic() - began)
        assert not await asyncio.to_thread(leader.is_answering)
        # The others drop it within net_ticktime.
        assert await asyncio.to_thread(cluster.leader_of, queue) is not leader
    await asyncio.to_thread(leader.resume)
    await asyncio.to_thread(cluster.start)
    await asyncio.to_thread(cluster.wait_until_healthy)


def test_another_member_takes_over_from_a_killed_primary(
    cluster: Cluster, report_time: ReportTime
) -> None:
    cluster.wait_until_healthy()
    before = cluster.primary()
    with connect_mongo(cluster) as client:
        client.kept.documents.insert_one({"_id": f"before {before.name}"})
        before.kill()
        began = monotonic()
        client.kept.documents.insert_one({"_id": f"after {before.name}"})
        outage = monotonic() - began
        report_time("primary killed, next majority write", outage)
        assert outage < OUTAGE_SECONDS
        after = cluster.primary()
        assert after is not before
        before.start()
        cluster.wait_until_healthy()
    assert ids_on(before) >= {f"before {before.name}", f"after {before.name}"}


def test_another_member_takes_over_from_a_primary_that_steps_down(cluster: Cluster) -> None:
    cluster.wait_until_healthy()
    former = cluster.step_down()
    assert cluster.primary() is not former
    cluster.wait_until_healthy()


def test_all_servers_can_be_killed_and_started_again(cluster: Cluster) -> None:
    for server in (*cluster.rabbits, *cluster.mongos):
        server.kill()
    assert not any(is_listening(server) for server in (*cluster.rabbits, *cluster.mongos))
    cluster.start()
    cluster.wait_until_healthy()


def test_the_processes_listen_on_loopback_only(cluster: Cluster) -> None:
    members = {member for member in find_descendants(os.getpid()) if member.name in SERVER_PROGRAMS}
    assert members
    assert find_listening_addresses(members) <= LOOPBACK


@pytest.mark.parametrize("broker", BROKERS)
def test_nothing_is_left_after_the_parent_was_killed(broker: Broker, tmp_path: Path) -> None:
    skip_if_unavailable(broker)
    before = outplan_containers()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, broker],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "up\n"
        members = find_descendants(parent.pid)
        assert len([member for member in members if member.name == "mongod"]) == 3
        in_docker = find_image(broker) is not None
        ours = outplan_containers() - before if in_docker else set()
        assert len(ours) == (4 if in_docker else 0)
        parent.kill()
        wait_until(lambda: not any_alive(members))
        wait_until(lambda: not any(tmp_path.iterdir()))
        wait_until(lambda: not ours & outplan_containers())


def outplan_containers() -> set[str]:
    try:
        return set(
            list_containers("--all", "--filter", "name=outplan-", "--format", "{{.Names}}").split()
        )
    except (OSError, subprocess.CalledProcessError):
        return set()


@asynccontextmanager
async def open_channel(url: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(url, timeout=5) as connection:
        yield await connection.channel()


async def publish_until_confirmed(url: str, queue: str, body: str) -> str:
    """Publish, each time on a new connection, until it is confirmed; return the body."""
    message = aio_pika.Message(body.encode(), delivery_mode=2)
    while True:
        try:
            async with open_channel(url) as channel:
                await channel.default_exchange.publish(message, queue, timeout=5)
                return body
        except UNAVAILABLE:
            await asyncio.sleep(0.1)


async def consume_all(url: str, queue: str) -> list[str]:
    """Take and ack all messages; the queue's leader may have moved."""
    bodies = []
    async with open_channel(url) as channel:
        found = await channel.get_queue(queue)
        while message := await found.get(fail=False, timeout=20):
            await message.ack()
            bodies.append(message.body.decode())
    return bodies


def connect_mongo(cluster: Cluster) -> MongoClient[dict[str, Any]]:
    return MongoClient(cluster.mongo_url, w="majority", timeoutMS=30_000)


def ids_on(member: MongoMember) -> set[str]:
    """Read the ids that one member has, be it a secondary."""
    with MongoClient[dict[str, Any]](member.url) as client:
        return {str(document["_id"]) for document in client.kept.documents.find()}
