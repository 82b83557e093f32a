"""The cluster that chaos runs torture: it forms, survives the loss of any one, and leaves nothing.

Each test takes tens of seconds; they are run by name, ``pytest tests/faults/test_cluster.py``.
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
from tests.faults.clusters.cluster import Cluster, cluster
from tests.faults.clusters.nodes import MongoMember
from tests.faults.clusters.status import survey
from tests.integration.test_servers import (
    LOOPBACK,
    PROGRAMS,
    alive,
    docker_ps,
    eventually,
    family,
    is_listening,
    listened_on,
)
from tests.support.balancer import balanced
from tests.support.brokers import BROKERS, Broker, skip_without_docker

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[3]
PARENT = """
import sys
from tests.faults.clusters.cluster import cluster
with cluster(sys.argv[1]):
    print("up", flush=True)
    sys.stdin.read()
"""
# What the issue allows for events to flow again; the servers' part has to be well below.
OUTAGE_SECONDS = 10.0
UNAVAILABLE = (OSError, AMQPError, RuntimeError)

Report = Callable[[str, float], None]


@pytest.fixture(scope="module", params=BROKERS)
def whole(request: pytest.FixtureRequest, reported: Report) -> Iterator[Cluster]:
    broker: Broker = request.param
    if broker == "4":
        skip_without_docker()
    began = monotonic()
    with cluster(broker) as running:
        reported(f"{running.rabbits[0].version} start", monotonic() - began)
        yield running


@pytest.fixture(scope="module")
def reported(request: pytest.FixtureRequest) -> Report:
    """Note a time for the file that OUTPLAN_TEST_TIMES names, where it is set."""
    file = os.environ.get("OUTPLAN_TEST_TIMES")

    def note(what: str, seconds: float) -> None:
        if file:
            with Path(file).open("a") as times:
                print(f"{what}: {seconds:.1f} s", file=times)

    return note


@pytest.fixture
async def queue(whole: Cluster) -> AsyncIterator[str]:
    """A quorum queue of three, on a healthy cluster, which is made healthy again behind it."""
    name = f"torture-{uuid4()}"
    await asyncio.to_thread(whole.healthy)
    async with channel_to(whole.rabbits[0].url) as channel:
        await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    await asyncio.to_thread(whole.write_down_queues)
    yield name
    await asyncio.to_thread(whole.start)
    await asyncio.to_thread(whole.healthy)
    async with channel_to(whole.rabbits[0].url) as channel:
        await channel.queue_delete(name)


async def test_three_nodes_form_one_cluster_and_a_queue_has_a_member_on_each(
    whole: Cluster, queue: str
) -> None:
    names = {node.name for node in whole.rabbits}
    assert len(names) == len(whole.rabbits) == len(whole.mongos) == 3
    for node in whole.rabbits:
        seen = await asyncio.to_thread(survey, node)
        assert seen.nodes == names
        assert {member["Node Name"] for member in seen.queues[queue]} == names
    assert whole.primary() in whole.mongos
    with mongo(whole) as client:
        assert len(client.nodes) <= 3
        client.kept.documents.with_options(write_concern=WriteConcern(w=3)).insert_one({})


async def test_the_leader_of_a_queue_moves_to_another_node(whole: Cluster, queue: str) -> None:
    before = await asyncio.to_thread(whole.leader_of, queue)
    after = await asyncio.to_thread(whole.move_leader, queue)
    assert after is not before
    assert await asyncio.to_thread(whole.leader_of, queue) is after


async def test_the_node_that_leads_is_killed_and_messages_flow_on_and_none_is_lost(
    whole: Cluster, queue: str, reported: Report
) -> None:
    leads = await asyncio.to_thread(whole.leader_of, queue)
    async with balanced(*(node.url for node in whole.rabbits)) as balancer:
        confirmed = [await publish_at_last(balancer.url, queue, f"{n}") for n in range(3)]
        await asyncio.to_thread(leads.kill)
        began = monotonic()
        confirmed += [await publish_at_last(balancer.url, queue, f"{n}") for n in range(3, 9)]
        outage = monotonic() - began
        reported(f"{leads.version} leader killed, next confirm", outage)
        assert outage < OUTAGE_SECONDS
        assert await asyncio.to_thread(whole.leader_of, queue) is not leads
        await asyncio.to_thread(leads.start)
        await asyncio.to_thread(whole.healthy)
        reported(f"{leads.version} killed node in sync again", monotonic() - began)
        assert set(confirmed) <= set(await taken(balancer.url, queue))


async def test_what_was_confirmed_while_a_node_was_down_is_on_it_when_it_is_back(
    whole: Cluster, queue: str
) -> None:
    away, *others = whole.rabbits
    await asyncio.to_thread(away.stop)
    confirmed = [await publish_at_last(others[0].url, queue, f"{n}") for n in range(20)]
    with pytest.raises(ServerFailed, match=f"{away.name} does not answer"):
        await asyncio.to_thread(whole.healthy, 0)
    await asyncio.to_thread(away.start)
    await asyncio.to_thread(whole.healthy)
    leads = await asyncio.to_thread(whole.leader_of, queue)
    # Without one of those that were there: what it has, the node that was away has to give.
    await asyncio.to_thread(next(node for node in others if node is not leads).kill)
    assert await taken(away.url, queue) == confirmed


async def test_a_paused_node_is_passed_over_and_joins_again_when_it_is_resumed(
    whole: Cluster, queue: str, reported: Report
) -> None:
    leads = await asyncio.to_thread(whole.leader_of, queue)
    async with balanced(*(node.url for node in whole.rabbits)) as balancer:
        await asyncio.to_thread(leads.pause)
        began = monotonic()
        await publish_at_last(balancer.url, queue, "x")
        reported(f"{leads.version} leader paused, next confirm", monotonic() - began)
        assert not await asyncio.to_thread(leads.answers)
        # The others have given it up by now, or do so before long: see net_ticktime.
        assert await asyncio.to_thread(whole.leader_of, queue) is not leads
    await asyncio.to_thread(leads.resume)
    await asyncio.to_thread(whole.start)
    await asyncio.to_thread(whole.healthy)


def test_the_primary_is_killed_and_another_one_takes_over(whole: Cluster, reported: Report) -> None:
    whole.healthy()
    before = whole.primary()
    with mongo(whole) as client:
        client.kept.documents.insert_one({"_id": f"before {before.name}"})
        before.kill()
        began = monotonic()
        client.kept.documents.insert_one({"_id": f"after {before.name}"})
        outage = monotonic() - began
        reported("primary killed, next majority write", outage)
        assert outage < OUTAGE_SECONDS
        after = whole.primary()
        assert after is not before
        before.start()
        whole.healthy()
    assert ids_on(before) >= {f"before {before.name}", f"after {before.name}"}


def test_the_primary_steps_down_for_another(whole: Cluster) -> None:
    whole.healthy()
    stepped = whole.step_down()
    assert whole.primary() is not stepped
    whole.healthy()


def test_all_of_it_can_be_killed_and_started_again(whole: Cluster) -> None:
    for server in (*whole.rabbits, *whole.mongos):
        server.kill()
    assert not any(is_listening(server) for server in (*whole.rabbits, *whole.mongos))
    whole.start()
    whole.healthy()


def test_the_processes_listen_on_this_machine_alone(whole: Cluster) -> None:
    members = {member for member in family(os.getpid()) if member.name in PROGRAMS}
    assert members
    assert listened_on(members) <= LOOPBACK


@pytest.mark.parametrize("broker", ["3.10", "4"])
def test_all_of_it_is_gone_after_its_parent_was_killed(broker: str, tmp_path: Path) -> None:
    if broker == "4":
        skip_without_docker()
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
        members = family(parent.pid)
        assert len([member for member in members if member.name == "mongod"]) == 3
        ours = outplan_containers() - before if broker == "4" else set()
        assert len(ours) == (4 if broker == "4" else 0)
        parent.kill()
        eventually(lambda: not alive(members))
        eventually(lambda: not any(tmp_path.iterdir()))
        eventually(lambda: not ours & outplan_containers())


# What a user does with the cluster, and what is known of it outside.


def outplan_containers() -> set[str]:
    try:
        return set(
            docker_ps("--all", "--filter", "name=outplan-", "--format", "{{.Names}}").split()
        )
    except (OSError, subprocess.CalledProcessError):
        return set()


@asynccontextmanager
async def channel_to(url: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(url, timeout=5) as connection:
        yield await connection.channel()


async def publish_at_last(url: str, queue: str, body: str) -> str:
    """Publish until it is confirmed, each time on a new connection, and return the body."""
    message = aio_pika.Message(body.encode(), delivery_mode=2)
    while True:
        try:
            async with channel_to(url) as channel:
                await channel.default_exchange.publish(message, queue, timeout=5)
                return body
        except UNAVAILABLE:
            await asyncio.sleep(0.1)


async def taken(url: str, queue: str) -> list[str]:
    """Take all messages off the queue, from where it may have a new leader by now."""
    bodies = []
    async with channel_to(url) as channel:
        found = await channel.get_queue(queue)
        while message := await found.get(fail=False, timeout=20):
            await message.ack()
            bodies.append(message.body.decode())
    return bodies


def mongo(whole: Cluster) -> MongoClient[dict[str, Any]]:
    return MongoClient(whole.mongo_url, w="majority", timeoutMS=30_000)


def ids_on(member: MongoMember) -> set[str]:
    """Read what the one member has, be it a secondary."""
    with MongoClient[dict[str, Any]](member.url) as client:
        return {str(document["_id"]) for document in client.kept.documents.find()}
