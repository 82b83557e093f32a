"""Servers that may be hurt, on either RabbitMQ, and a place there."""

from collections.abc import AsyncIterator, Iterator

import pytest

from outplan.testing.servers import Servers
from tests.support.brokers import BROKERS, own_servers
from tests.support.deployment import Deployment, open_deployment


@pytest.fixture(scope="module", params=BROKERS)
def either(request: pytest.FixtureRequest) -> Iterator[Servers]:
    with own_servers(request.param) as running:
        yield running


@pytest.fixture
async def deployment(either: Servers) -> AsyncIterator[Deployment]:
    async with open_deployment(either) as found:
        yield found
