"""Test that the harness reports its worker's exit and leaves nothing behind."""

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

from outplan.contract.topology import build_topology
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


def find_workers(service: LiveService) -> list[int]:
    """Find the worker's processes, without the supervisor, which has the same environment."""
    return [
        process
        for process in find_processes_with(f"OUTPLAN_PREFIX={service.deployment.prefix}")
        if b"\0-m\0outplan\0" in Path(f"/proc/{process}/cmdline").read_bytes()
    ]


def find_folders(prefix: str) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"*{prefix}*"))


async def test_calls_raise_with_the_log_when_the_worker_exits_by_itself(servers: Servers) -> None:
    async with live_service(servers) as service:
        waiting = asyncio.create_task(service.next_event(within=60))
        (worker,) = find_workers(service)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(WorkerFailed, match=r'exited by itself(?s:.*)"ready"'):
            await waiting
        for call in (service.create(**CREATE), service.events(), service.documents()):
            with pytest.raises(WorkerFailed, match="exited by itself"):
                await call
        await service.start_worker()
        assert (await service.create(**CREATE)).version == 1


async def test_a_worker_that_the_test_killed_is_no_failure(servers: Servers) -> None:
    async with live_service(servers) as service:
        await service.kill_worker()
        assert not find_workers(service)
        sent = await service.publish("outplan_create", CREATE)
        assert not await service.documents()
        await service.start_worker()
        assert (await service.next_event()).id == sent


async def test_nothing_remains_after_the_block(servers: Servers) -> None:
    async with live_service(servers) as service:
        await service.create(**CREATE)
        place = service.deployment
        assert find_folders(place.prefix)
    assert not find_processes_with(f"OUTPLAN_PREFIX={place.prefix}")
    assert not find_folders(place.prefix)
    await assert_nothing_on_servers(place)


async def test_nothing_remains_on_servers_given_by_url_after_the_tests_were_killed(
    servers: Servers, tmp_path: Path
) -> None:
    urls = {AMQP_VARIABLE: servers.rabbitmq.url, MONGO_VARIABLE: servers.mongodb.url}
    # The cleanup must not import a module of the same name from the tests' folder.
    (tmp_path / "outplan.py").write_text("raise SystemExit('not this one')")
    program = [sys.executable, "-P", "-c", TESTS]
    tests = await asyncio.create_subprocess_exec(
        *program, cwd=tmp_path, env=os.environ | urls, stdout=PIPE
    )
    assert tests.stdout
    place = Deployment(**json.loads(await tests.stdout.readline()))
    tests.kill()
    await tests.wait()
    wait_until(lambda: not find_folders(place.prefix))
    assert not find_processes_with(f"OUTPLAN_PREFIX={place.prefix}")
    await assert_nothing_on_servers(place)


async def assert_nothing_on_servers(place: Deployment) -> None:
    async with AsyncMongoClient[dict[str, object]](place.mongo_url) as mongo:
        assert place.database not in await mongo.list_database_names()
    layout = build_topology(place.prefix)
    async with await aio_pika.connect(place.amqp_url) as connection:
        for queue in (*(queue.name for queue in layout.queues), f"{place.prefix}.witness"):
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                await (await connection.channel()).get_queue(queue)
        for exchange in layout.exchanges:
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                await (await connection.channel()).get_exchange(exchange.name)


async def test_reading_rejected_commands_leaves_them_in_order(servers: Servers) -> None:
    async with live_service(servers) as service:
        sent = [await service.publish("outplan_create", b"{") for _ in range(5)]
        await service.create(**CREATE)
        for _ in range(3):
            assert [copy.message_id for copy in await service.rejected()] == sent
