"""Fixtures: a place, a worker there, and a witness outside."""

from collections.abc import AsyncIterator

import pytest

from outplan.testing.servers import Servers
from tests.support.places import a_place
from tests.support.worker_process import Place, WorkerProcess, running_worker
from tests.support.world import Outside, witness


@pytest.fixture
async def place(servers: Servers) -> AsyncIterator[Place]:
    async with a_place(servers) as found:
        yield found


@pytest.fixture
async def outside(place: Place) -> AsyncIterator[Outside]:
    async with witness(place) as found:
        yield found


@pytest.fixture
async def worker(place: Place, outside: Outside) -> AsyncIterator[WorkerProcess]:
    async with running_worker(place) as found:
        yield found
