"""Subscribers and askers who fall behind, with a queue that refuses what it has no room for."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from outplan.testing.servers import Servers
from tests.support.worker_process import Place, running_worker
from tests.support.world import Outside, a_create

ID = "00000001-0000-4000-8000-000000000001"
ROOM = 40
UPDATES = 500


@asynccontextmanager
async def small_queue(place: Place) -> AsyncIterator[list[int]]:
    """The versions heard on a queue of little room, listened to all the time."""
    heard: list[int] = []

    async def take(message: AbstractIncomingMessage) -> None:
        heard.append(json.loads(message.body)["version"])
        await message.ack()

    async with await aio_pika.connect(place.amqp_url) as connection:
        channel = await connection.channel()
        # So that it is full at once, and has room again now and then.
        await channel.set_qos(prefetch_count=10)
        arguments: dict[str, Any] = {"x-max-length": ROOM, "x-overflow": "reject-publish"}
        queue = await channel.declare_queue(exclusive=True, arguments=arguments)
        await queue.bind(f"{place.prefix}.events", "#")
        await queue.consume(take)
        yield heard


async def test_a_queue_that_refuses_for_a_while_hears_each_outplans_events_in_order(
    place: Place, outside: Outside
) -> None:
    async with small_queue(place) as heard:
        await outside.send("outplan_create", a_create(id=ID))
        for n in range(UPDATES):
            await outside.send("outplan_update", {"id": ID, "try_interval": 1_000 + n})
        async with running_worker(place):
            async with asyncio.timeout(60):
                while UPDATES + 1 not in heard:
                    await asyncio.sleep(0.1)

    first = list(dict.fromkeys(heard))
    assert first == list(range(1, UPDATES + 2))


async def a_reply_queue(outside: Outside) -> aio_pika.abc.AbstractQueue:
    """With room for one reply."""
    arguments: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    return await outside.channel.declare_queue(exclusive=True, arguments=arguments)


async def test_a_reply_that_is_refused_for_a_moment_comes_after_it(
    place: Place, outside: Outside
) -> None:
    replies = await a_reply_queue(outside)
    async with running_worker(place):
        sent = []
        for _ in range(2):
            sent.append(await outside.send("outplan_create", a_create(), reply_to=replies.name))
            await outside.until(lambda: len(outside.events) == len(sent))

        found: list[str | None] = []
        async with asyncio.timeout(10):
            while len(found) < 2:
                if message := await replies.get(fail=False, no_ack=True):
                    found.append(message.correlation_id)
                await asyncio.sleep(0.05)

    assert found == sent


async def test_a_full_reply_queue_costs_the_others_little(
    servers: Servers, place: Place, outside: Outside
) -> None:
    replies = await a_reply_queue(outside)

    async def channels() -> int:
        listed = await asyncio.to_thread(servers.rabbitmq.ctl, "list_channels", "pid")
        return len(listed.splitlines())

    async with running_worker(place, http=True) as worker:
        before = await channels()
        async with asyncio.timeout(20):
            for n in range(60):
                await outside.send("outplan_create", a_create(), reply_to=replies.name)
                await outside.until(lambda: len(outside.events) > n)  # noqa: B023
        assert (await worker.http("/readyz"))[0] == 200
        # Each refusal took a new one.
        await outside.send("outplan_create", a_create())
        await outside.until(lambda: len(outside.replies) == 1)
        assert await channels() == before
