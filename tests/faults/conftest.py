"""Servers that may be hurt, on either RabbitMQ, and a place there."""

from collections.abc import AsyncIterator, Iterator

import pytest

from outplan.testing.servers import Servers
from tests.support.brokers import BROKERS, own_servers
from tests.support.places import a_place
from tests.support.worker_process import Place


@pytest.fixture(scope="module", params=BROKERS)
def either(request: pytest.FixtureRequest) -> Iterator[Servers]:
    with own_servers(request.param) as running:
        yield running


@pytest.fixture
async def place(either: Servers) -> AsyncIterator[Place]:
    async with a_place(either) as found:
        yield found
