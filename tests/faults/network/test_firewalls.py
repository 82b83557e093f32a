"""Check firewalls that forget connections: idle ones, and those in use."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from time import perf_counter

import pytest
from yarl import URL

from outplan.client import OutcomeUnknown, OutplanClient
from outplan.mongodb.store import MongoStore
from outplan.testing import Deployment
from outplan.testing.servers import Servers
from tests.support.balancer import Balancer, run_balancer
from tests.support.worker_process import run_worker
from tests.support.world import CUSTOMER, TEL

# Longer than the store keeps an idle connection, and than all pauses between heartbeats.
FORGETS_AFTER_SECONDS = 11.0
PAUSE_SECONDS = 12.0
MAX_SECONDS = 1.0
# The client gives up a silent connection after 10 s, the broker after 8 to 12 s.
RECOVERY_SECONDS = 20.0


@asynccontextmanager
async def proxy_mongodb(url: str) -> AsyncIterator[tuple[Balancer, str]]:
    """Put a proxy before MongoDB; yield it and MongoDB's URL through it."""
    async with run_balancer(url) as proxy:
        direct = URL(proxy.url).update_query(directConnection="true")
        yield proxy, str(direct.without_query_params("replicaSet"))


@pytest.mark.parametrize("driver", ["motor", "pymongo"])
async def test_the_store_does_not_use_connections_that_were_idle_for_long(
    servers: Servers, deployment: Deployment, driver: str
) -> None:
    async with proxy_mongodb(servers.mongodb.url) as (proxy, url):
        store = MongoStore(url, deployment.database, driver)
        await store.prepare()
        await asyncio.gather(*(store.ping() for _ in range(5)))
        await asyncio.sleep(PAUSE_SECONDS)
        proxy.forget_idle(FORGETS_AFTER_SECONDS)
        began = perf_counter()
        await asyncio.gather(*(store.ping() for _ in range(5)))
        assert perf_counter() - began < MAX_SECONDS
        await store.close()


async def test_the_first_command_after_a_pause_is_fast(
    servers: Servers, deployment: Deployment
) -> None:
    async with (
        proxy_mongodb(servers.mongodb.url) as (mongodb, mongo_url),
        run_balancer(deployment.amqp_url) as rabbitmq,
    ):
        behind = replace(deployment, amqp_url=rabbitmq.url, mongo_url=mongo_url)
        async with (
            run_worker(behind),
            OutplanClient(rabbitmq.url, prefix=deployment.prefix) as client,
        ):
            created = await client.create(customer_id=CUSTOMER, name="first", source=TEL)
            await asyncio.sleep(PAUSE_SECONDS)
            for proxy in (mongodb, rabbitmq):
                proxy.forget_idle(FORGETS_AFTER_SECONDS)
            began = perf_counter()
            await client.update(created.outplan.id, name="second")
            assert perf_counter() - began < MAX_SECONDS


async def test_a_command_into_a_connection_that_was_cut_silently_succeeds_on_the_next(
    deployment: Deployment,
) -> None:
    async with (
        run_balancer(deployment.amqp_url) as proxy,
        run_worker(deployment),
        OutplanClient(proxy.url, prefix=deployment.prefix) as client,
    ):
        created = await client.create(customer_id=CUSTOMER, name="first", source=TEL)
        proxy.forget_idle(0)
        began = perf_counter()
        updated = await client.update(created.outplan.id, name="second")
        assert perf_counter() - began < RECOVERY_SECONDS
        assert updated.version == 2


async def test_a_command_that_times_out_in_a_silent_connection_says_so(
    deployment: Deployment,
) -> None:
    async with (
        run_balancer(deployment.amqp_url) as proxy,
        run_worker(deployment),
        OutplanClient(proxy.url, prefix=deployment.prefix, timeout=6) as client,
    ):
        proxy.forget_idle(0)
        with pytest.raises(OutcomeUnknown, match="nothing has come from the broker for"):
            await client.create(customer_id=CUSTOMER, name="first", source=TEL)
