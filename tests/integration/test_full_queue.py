"""Subscribers and askers who fall behind, with a queue that refuses what it has no room for."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from outplan.testing.servers import Servers
from tests.support.deployment import Deployment
from tests.support.worker_process import run_worker
from tests.support.world import World, create_body

ID = "00000001-0000-4000-8000-000000000001"
ROOM = 40
UPDATES = 500


@asynccontextmanager
async def small_queue(deployment: Deployment) -> AsyncIterator[list[int]]:
    """The versions heard on a queue of little room, listened to all the time."""
    heard: list[int] = []

    async def take(message: AbstractIncomingMessage) -> None:
        heard.append(json.loads(message.body)["version"])
        await message.ack()

    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        # So that it is full at once, and has room again now and then.
        await channel.set_qos(prefetch_count=10)
        arguments: dict[str, Any] = {"x-max-length": ROOM, "x-overflow": "reject-publish"}
        queue = await channel.declare_queue(exclusive=True, arguments=arguments)
        await queue.bind(f"{deployment.prefix}.events", "#")
        await queue.consume(take)
        yield heard


async def test_a_queue_that_refuses_for_a_while_hears_each_outplans_events_in_order(
    deployment: Deployment, world: World
) -> None:
    async with small_queue(deployment) as heard:
        await world.send("outplan_create", create_body(id=ID))
        for n in range(UPDATES):
            await world.send("outplan_update", {"id": ID, "try_interval": 1_000 + n})
        async with run_worker(deployment):
            async with asyncio.timeout(60):
                while UPDATES + 1 not in heard:
                    await asyncio.sleep(0.1)

    first = list(dict.fromkeys(heard))
    assert first == list(range(1, UPDATES + 2))


async def a_reply_queue(world: World) -> aio_pika.abc.AbstractQueue:
    """With room for one reply."""
    arguments: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    return await world.channel.declare_queue(exclusive=True, arguments=arguments)


async def test_a_reply_that_is_refused_for_a_moment_comes_after_it(
    deployment: Deployment, world: World
) -> None:
    replies = await a_reply_queue(world)
    async with run_worker(deployment):
        sent = []
        for _ in range(2):
            sent.append(await world.send("outplan_create", create_body(), reply_to=replies.name))
            await world.wait_for(lambda: len(world.events) == len(sent))

        found: list[str | None] = []
        async with asyncio.timeout(10):
            while len(found) < 2:
                if message := await replies.get(fail=False, no_ack=True):
                    found.append(message.correlation_id)
                await asyncio.sleep(0.05)

    assert found == sent


async def test_a_full_reply_queue_costs_the_others_little(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    replies = await a_reply_queue(world)

    async def channels() -> int:
        listed = await asyncio.to_thread(servers.rabbitmq.ctl, "list_channels", "pid")
        return len(listed.splitlines())

    async with run_worker(deployment, http=True) as worker:
        before = await channels()
        async with asyncio.timeout(20):
            for n in range(60):
                await world.send("outplan_create", create_body(), reply_to=replies.name)
                await world.wait_for(lambda: len(world.events) > n)  # noqa: B023
        assert (await worker.get("/readyz"))[0] == 200
        # Each refusal took a new one.
        await world.send("outplan_create", create_body())
        await world.wait_for(lambda: len(world.replies) == 1)
        assert await channels() == before
