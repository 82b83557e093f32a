"""Fixtures: a place, a worker there, and a witness outside."""

from collections.abc import AsyncIterator

import pytest

from service.testing.servers import Servers
from tests.integration.outside import Outside, witness
from tests.integration.places import a_place
from tests.integration.worker_process import Place, WorkerProcess, running_worker


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
