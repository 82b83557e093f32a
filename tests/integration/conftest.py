"""Provide a deployment, a contract client on it (``world``), a worker and an OutplanClient."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aio_pika
import pytest
from pymongo import MongoClient

from outplan.client import OutplanClient
from outplan.testing import Deployment
from outplan.testing.deployment import open_deployment
from outplan.testing.servers import Servers, reserve_ports
from outplan.testing.servers.processes import find_programs
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import EVENT_QUEUE, World, open_world


@pytest.fixture
async def deployment(servers: Servers) -> AsyncIterator[Deployment]:
    async with open_deployment(servers, further_queues=[EVENT_QUEUE]) as deployment:
        yield deployment


@pytest.fixture
async def world(deployment: Deployment) -> AsyncIterator[World]:
    async with open_world(deployment) as world:
        yield world


@pytest.fixture
async def worker(deployment: Deployment, world: World) -> AsyncIterator[WorkerProcess]:
    async with run_worker(deployment) as worker:
        yield worker


@pytest.fixture
async def client(deployment: Deployment, worker: WorkerProcess) -> AsyncIterator[OutplanClient]:
    async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix) as client:
        yield client


@pytest.fixture
async def queue(deployment: Deployment) -> AsyncIterator[str]:
    """Name a durable queue for a subscriber, and delete it after the test."""
    name = f"{deployment.prefix}.dialer"
    yield name
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        await (await connection.channel()).queue_delete(name)


@pytest.fixture
def standalone_mongod(tmp_path: Path) -> Iterator[int]:
    """Run a mongod that is not in a replica set; return its port."""
    with reserve_ports(1) as (port,):
        process = subprocess.Popen(
            [find_programs().mongod, "--dbpath", tmp_path, "--port", str(port)],
            stdout=subprocess.DEVNULL,
        )
        try:
            with MongoClient[dict[str, object]](f"mongodb://127.0.0.1:{port}/") as client:
                client.admin.command("ping")
            yield port
        finally:
            process.kill()
            process.wait()
