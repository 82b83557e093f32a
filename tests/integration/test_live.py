"""The harness' worker process: that its end is told, and that nothing of it is left."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE
from pathlib import Path

import aio_pika
import pytest
from pymongo import AsyncMongoClient

from outplan.contract.topology import topology
from outplan.testing import Deployment, WorkerFailed
from outplan.testing.live import LiveService, live_service
from outplan.testing.servers import AMQP_VARIABLE, MONGO_VARIABLE, Servers
from tests.support.leak_check import find_processes_with, wait_until
from tests.support.world import create_body

CREATE = create_body()

TESTS = """
import asyncio, json
from dataclasses import asdict
from outplan.testing import live_service, start_servers
async def hang():
    with start_servers("urls") as servers:
        async with live_service(servers) as service:
            print(json.dumps(asdict(service.deployment)), flush=True)
            await asyncio.Event().wait()
asyncio.run(hang())
"""


def workers(service: LiveService) -> list[int]:
    """The worker's processes; the warden, which has the same environment, is left out."""
    return [
        process
        for process in find_processes_with(f"OUTPLAN_PREFIX={service.deployment.prefix}")
        if b"\0-m\0outplan\0" in Path(f"/proc/{process}/cmdline").read_bytes()
    ]


def folders(prefix: str) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"*{prefix}*"))


async def test_a_worker_that_ends_by_itself_ends_every_wait_with_its_log(servers: Servers) -> None:
    async with live_service(servers) as service:
        waiting = asyncio.create_task(service.next_event(within=60))
        (worker,) = workers(service)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(WorkerFailed, match=r'ended by itself(?s:.*)"ready"'):
            await waiting
        for call in (service.create(**CREATE), service.events(), service.documents()):
            with pytest.raises(WorkerFailed, match="ended by itself"):
                await call
        await service.start_worker()
        assert (await service.create(**CREATE)).version == 1


async def test_a_worker_that_was_killed_by_the_test_is_no_failure(servers: Servers) -> None:
    async with live_service(servers) as service:
        await service.kill_worker()
        assert not workers(service)
        sent = await service.publish("outplan_create", CREATE)
        assert not await service.documents()
        await service.start_worker()
        assert (await service.next_event()).id == sent


async def test_nothing_of_it_is_left(servers: Servers) -> None:
    async with live_service(servers) as service:
        await service.create(**CREATE)
        place = service.deployment
        assert folders(place.prefix)
    assert not find_processes_with(f"OUTPLAN_PREFIX={place.prefix}")
    assert not folders(place.prefix)
    await nothing_is_on_servers(place)


async def test_nothing_is_left_on_servers_given_by_url_when_the_tests_are_killed(
    servers: Servers, tmp_path: Path
) -> None:
    urls = {AMQP_VARIABLE: servers.rabbitmq.url, MONGO_VARIABLE: servers.mongodb.url}
    # A package of our name in the folder of the tests is not taken for ours.
    (tmp_path / "outplan.py").write_text("raise SystemExit('not this one')")
    program = [sys.executable, "-P", "-c", TESTS]
    tests = await asyncio.create_subprocess_exec(
        *program, cwd=tmp_path, env=os.environ | urls, stdout=PIPE
    )
    assert tests.stdout
    place = Deployment(**json.loads(await tests.stdout.readline()))
    tests.kill()
    await tests.wait()
    wait_until(lambda: not folders(place.prefix))
    assert not find_processes_with(f"OUTPLAN_PREFIX={place.prefix}")
    await nothing_is_on_servers(place)


async def nothing_is_on_servers(place: Deployment) -> None:
    async with AsyncMongoClient[dict[str, object]](place.mongo_url) as mongo:
        assert place.database not in await mongo.list_database_names()
    layout = topology(place.prefix)
    async with await aio_pika.connect(place.amqp_url) as connection:
        for queue in (*(queue.name for queue in layout.queues), f"{place.prefix}.witness"):
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                await (await connection.channel()).get_queue(queue)
        for exchange in layout.exchanges:
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                await (await connection.channel()).get_exchange(exchange.name)


async def test_what_was_rejected_stays_where_it_is_and_in_order(servers: Servers) -> None:
    async with live_service(servers) as service:
        sent = [await service.publish("outplan_create", b"{") for _ in range(5)]
        await service.create(**CREATE)
        for _ in range(3):
            assert [copy.message_id for copy in await service.rejected()] == sent
