"""Fixtures: a place, a worker there, and a witness outside."""

from collections.abc import AsyncIterator

import pytest

from outplan.testing.servers import Servers
from tests.support.deployment import Deployment, open_deployment
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import World, open_world


@pytest.fixture
async def deployment(servers: Servers) -> AsyncIterator[Deployment]:
    async with open_deployment(servers) as found:
        yield found


@pytest.fixture
async def world(deployment: Deployment) -> AsyncIterator[World]:
    async with open_world(deployment) as found:
        yield found


@pytest.fixture
async def worker(deployment: Deployment, world: World) -> AsyncIterator[WorkerProcess]:
    async with run_worker(deployment) as found:
        yield found
