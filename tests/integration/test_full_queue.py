"""Fill event and reply queues that reject publishes when they are full."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from outplan.testing import Deployment
from outplan.testing.servers import Servers
from tests.support.worker_process import run_worker
from tests.support.world import World, create_body

ID = "00000001-0000-4000-8000-000000000001"
MAX_LENGTH = 40
UPDATES = 500


@asynccontextmanager
async def consume_small_queue(deployment: Deployment) -> AsyncIterator[list[int]]:
    """Consume events from a queue of MAX_LENGTH messages; yield the list of their versions."""
    versions: list[int] = []

    async def take(message: AbstractIncomingMessage) -> None:
        versions.append(json.loads(message.body)["version"])
        await message.ack()

    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        # A small prefetch fills the queue at once and frees it now and then.
        await channel.set_qos(prefetch_count=10)
        arguments: dict[str, Any] = {"x-max-length": MAX_LENGTH, "x-overflow": "reject-publish"}
        queue = await channel.declare_queue(exclusive=True, arguments=arguments)
        await queue.bind(f"{deployment.prefix}.events", "#")
        await queue.consume(take)
        yield versions


async def test_a_queue_that_is_full_at_times_gets_each_outplans_events_in_order(
    deployment: Deployment, world: World
) -> None:
    async with consume_small_queue(deployment) as versions:
        await world.send("outplan_create", create_body(id=ID))
        for n in range(UPDATES):
            await world.send("outplan_update", {"id": ID, "try_interval": 1_000 + n})
        async with run_worker(deployment):
            async with asyncio.timeout(60):
                while UPDATES + 1 not in versions:
                    await asyncio.sleep(0.1)

    first = list(dict.fromkeys(versions))
    assert first == list(range(1, UPDATES + 2))


async def declare_reply_queue(world: World) -> aio_pika.abc.AbstractQueue:
    """Declare a queue with room for one reply."""
    arguments: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    return await world.channel.declare_queue(exclusive=True, arguments=arguments)


async def test_a_nacked_reply_is_published_again(deployment: Deployment, world: World) -> None:
    replies = await declare_reply_queue(world)
    async with run_worker(deployment):
        sent = []
        for _ in range(2):
            sent.append(await world.send("outplan_create", create_body(), reply_to=replies.name))
            await world.wait_for(lambda: len(world.events) == len(sent))

        received: list[str | None] = []
        async with asyncio.timeout(10):
            while len(received) < 2:
                if message := await replies.get(fail=False, no_ack=True):
                    received.append(message.correlation_id)
                await asyncio.sleep(0.05)

    assert received == sent


async def test_a_full_reply_queue_delays_other_replies_little_and_leaks_no_channel(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    replies = await declare_reply_queue(world)

    async def count_channels() -> int:
        output = await asyncio.to_thread(servers.rabbitmq.ctl, "list_channels", "pid")
        return len(output.splitlines())

    async with run_worker(deployment, http=True) as worker:
        before = await count_channels()
        async with asyncio.timeout(20):
            for n in range(60):
                await world.send("outplan_create", create_body(), reply_to=replies.name)
                await world.wait_for(lambda: len(world.events) > n)  # noqa: B023
        assert (await worker.get("/readyz"))[0] == 200
        # Each nacked reply used a new channel.
        await world.send("outplan_create", create_body())
        await world.wait_for(lambda: len(world.replies) == 1)
        assert await count_channels() == before
