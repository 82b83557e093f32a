"""Start servers that tests may hurt, with each version of RabbitMQ."""

from collections.abc import AsyncIterator, Iterator

import pytest

from outplan.testing import Deployment
from outplan.testing.deployment import open_deployment
from outplan.testing.servers import Servers
from tests.support.brokers import BROKERS, skip_if_unavailable, start_broker
from tests.support.world import EVENT_QUEUE


@pytest.fixture(scope="module", params=BROKERS)
def killable_servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    skip_if_unavailable(request.param)
    with start_broker(request.param) as running:
        yield running


@pytest.fixture
async def deployment(killable_servers: Servers) -> AsyncIterator[Deployment]:
    async with open_deployment(killable_servers, further_queues=[EVENT_QUEUE]) as opened:
        yield opened
