"""Subscriptions against a real broker: nothing hidden, nothing twice, whatever restarts."""

import asyncio
import itertools
import json
import os
import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from yarl import URL

from outplan.client import (
    Event,
    Events,
    Gap,
    OutplanClient,
    Reconnected,
    Refused,
    Request,
    Unreadable,
    events,
)
from outplan.testing.servers import Servers
from tests.integration.proxy import proxied
from tests.support.deployment import Deployment, event_queue_name
from tests.support.worker_process import WorkerProcess, run_worker
from tests.support.world import CUSTOMER, TEL, World

CUTS = int(os.environ.get("OUTPLAN_TEST_CUTS", "1000")) // 20
OTHER = str(uuid4())
ID = "0192f0c1-0000-7000-8000-000000000001"


@pytest.fixture
async def client(deployment: Deployment, worker: WorkerProcess) -> AsyncIterator[OutplanClient]:
    async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=60) as found:
        yield found


@pytest.fixture
async def queue(deployment: Deployment) -> AsyncIterator[str]:
    """The name of a durable queue, deleted afterwards."""
    name = f"{deployment.prefix}.dialer"
    yield name
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        await (await connection.channel()).queue_delete(name)


async def create(client: OutplanClient, customer_id: str = CUSTOMER) -> str:
    return (await client.create(customer_id=customer_id, name="x", source=TEL)).outplan.id


async def following(stream: Events, count: int = 1) -> list[Any]:
    async with asyncio.timeout(30):
        return [await anext(stream) for _ in range(count)]


def told(items: list[Any]) -> list[tuple[str, int]]:
    return [(item.data.id, item.version) for item in items]


def an_event(version: int, **data: Any) -> dict[str, Any]:
    """An event as the contract has it, of an outplan that nobody made."""
    event = {
        "id": f"command {version}",
        "type": "outplan_created" if version == 1 else "outplan_updated",
        "publisher": "outplan-service",
        "data_type": "application/json",
        "version": version,
        "time": "2026-11-23 06:10:00.123456",
        "data": {
            "id": ID,
            "customer_id": CUSTOMER,
            "name": f"version {version}",
            "detail": "",
            "source": {**TEL, "target_name": "", "name": "", "detail": ""},
            "dial_timeout": 30_000,
            "try_interval": 60_000,
            **{f"max_try_count_{n}": 0 for n in range(5)},
            "tm_create": "2022-04-28 01:50:23.414000",
            "tm_update": "2022-04-28 01:50:23.414000",
            "tm_delete": "9999-01-01 00:00:00.000000",
            **data,
        },
    }
    return event if version == 1 else {**event, "changed": ["name"]}


async def publish(world: World, *found: dict[str, Any] | bytes) -> None:
    exchange = await world.channel.get_exchange(f"{world.deployment.prefix}.events")
    for event in found:
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        message = aio_pika.Message(body, delivery_mode=2)
        await exchange.publish(message, f"outplan_updated.{CUSTOMER}.{ID}")


async def test_what_becomes_of_an_outplan_is_heard_in_order(
    deployment: Deployment, client: OutplanClient
) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        id_ = await create(client)
        updated = await client.update(id_, try_interval=7_000)
        await client.delete(id_)
        created, changed, deleted = await following(stream, 3)

    assert [e.type for e in (created, changed, deleted)] == [
        "outplan_created",
        "outplan_updated",
        "outplan_deleted",
    ]
    assert (changed.id, changed.changed) == (updated.message_id, ("try_interval",))
    assert changed.data == updated.outplan
    assert deleted.at == deleted.data.deleted_at


@pytest.mark.parametrize("which", ["kinds", "customer_id", "outplan_id"])
async def test_only_what_was_asked_for_is_heard(
    deployment: Deployment, client: OutplanClient, which: str
) -> None:
    mine, id_ = str(uuid4()), str(uuid4())
    filters: dict[str, dict[str, Any]] = {
        "kinds": {"kinds": ["outplan_deleted"]},
        "customer_id": {"customer_id": mine.upper()},
        "outplan_id": {"outplan_id": id_},
    }
    wanted = filters[which]
    async with events(deployment.amqp_url, prefix=deployment.prefix, **wanted) as stream:
        other = await create(client, OTHER)
        await client.update(other, name="y")
        await client.create(id=id_, customer_id=mine, name="x", source=TEL)
        await client.delete(id_)
        await client.delete(other)
        first, second = told(await following(stream, 2))

    # Of the deleted ones the versions in between were not asked for, and are no gap.
    heard = [(id_, 2), (other, 3)] if which == "kinds" else [(id_, 1), (id_, 2)]
    assert [first, second] == heard


async def test_a_loop_that_ends_may_settle_what_it_was_given_last(
    deployment: Deployment, world: World, queue: str
) -> None:
    for expected in (1, 2):
        async with events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as stream:
            if expected == 1:
                await publish(world, *map(an_event, [1, 2]))
            [event] = await following(stream)
            assert event.version == expected
            await stream.settle()


async def test_an_event_has_its_bytes_with_all_that_is_unknown_here(
    deployment: Deployment, world: World
) -> None:
    body = json.dumps({**an_event(1), "colour": "green"}).encode()
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        await publish(world, body)
        [event] = await following(stream)
    assert event.raw == body


async def test_repeats_are_dropped_and_a_gap_is_told(deployment: Deployment, world: World) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        await publish(world, *map(an_event, [1, 2, 1, 2, 5, 3, 6]))
        one, two, gap, five, six = await following(stream, 5)

    assert [e.version for e in (one, two, five, six)] == [1, 2, 5, 6]
    assert gap == Gap(ID, 3, 4)


async def test_what_the_caller_has_seen_is_no_news_and_opens_gaps(
    deployment: Deployment, world: World
) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix, seen={ID: 2}) as stream:
        await publish(world, *map(an_event, [2, 4]))
        gap, four = await following(stream, 2)

    assert (gap, four.version) == (Gap(ID, 3, 3), 4)


async def test_what_is_no_event_is_told_as_that(deployment: Deployment, world: World) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        await publish(world, b"[1, 2", an_event(1))
        unreadable, event = await following(stream, 2)

    assert isinstance(unreadable, Unreadable)
    assert (unreadable.body, bool(unreadable.reason)) == (b"[1, 2", True)
    assert isinstance(event, Event)


async def test_an_event_is_acknowledged_when_the_loop_takes_the_next(
    deployment: Deployment, world: World, queue: str
) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as stream:
        await publish(world, *map(an_event, [1, 2, 3]))
        async for event in stream:
            assert isinstance(event, Event)
            if event.version == 2:
                break

    async with events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as stream:
        assert [e.version for e in await following(stream, 2)] == [2, 3]


async def test_giving_up_the_wait_for_the_next_loses_nothing(
    deployment: Deployment, world: World, queue: str
) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as stream:
        for version in (1, 2, 3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(stream)
            await publish(world, an_event(version))
            assert (await following(stream))[0].version == version


async def test_a_second_process_on_a_durable_queue_stands_by(
    deployment: Deployment, world: World, queue: str
) -> None:
    async with (
        events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as active,
        events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as standby,
    ):
        await publish(world, an_event(1), an_event(2))
        assert [e.version for e in await following(active, 2)] == [1, 2]
        waiting = asyncio.create_task(anext(standby))
        await active.aclose()
        async with asyncio.timeout(30):
            event = await waiting
        # The other was given it, and did not ask for the next.
        assert isinstance(event, Event)
        assert event.version == 2


@pytest.mark.parametrize("durable", [True, False])
async def test_a_subscription_survives_the_loss_of_its_connection_and_says_what_that_cost(
    deployment: Deployment, world: World, queue: str, durable: bool
) -> None:
    again: list[Reconnected] = []
    async with proxied(deployment.amqp_url) as proxy:
        stream = events(
            proxy.url,
            prefix=deployment.prefix,
            queue=queue if durable else None,
            on_reconnect=again.append,
        )
        async with stream:
            await publish(world, an_event(1))
            assert (await following(stream))[0].version == 1
            proxy.budget = lambda: 0 if proxy.cuts < 3 else None
            proxy.cut()
            await publish(world, an_event(2))
            waiting = asyncio.create_task(anext(stream))
            await proxy.until(lambda: proxy.cuts == 3)
            if not durable:
                async with asyncio.timeout(30):
                    while not again:
                        await asyncio.sleep(0.01)
            await publish(world, an_event(3))
            found = [await waiting, *await following(stream)]

    assert again == [Reconnected(lossless=durable)]
    if durable:
        assert [e.version for e in found if isinstance(e, Event)] == [2, 3]
    else:
        assert found[0] == Gap(ID, 2, 2)
        assert isinstance(found[1], Event)
        assert found[1].version == 3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("durable", [True, False])
async def test_a_subscription_cut_at_random_moments_hears_or_misses_each_version_by_name(
    deployment: Deployment, world: World, queue: str, durable: bool
) -> None:
    luck = random.Random()
    news = 1

    async def publish_for_ever() -> None:
        for version in itertools.count(1):
            await publish(world, an_event(version))

    async with proxied(deployment.amqp_url) as proxy, asyncio.timeout(280):
        # A subscription takes some 1,500 bytes, and an event and its acknowledgement 1,000.
        proxy.budget = lambda: luck.randrange(15_000) if proxy.cuts < CUTS else None
        name = queue if durable else None
        async with events(proxy.url, prefix=deployment.prefix, queue=name) as stream:
            publishing = asyncio.create_task(publish_for_ever())
            async for item in stream:
                if isinstance(item, Gap):
                    assert not durable
                    assert item.first == news
                    news = item.last + 1
                else:
                    assert isinstance(item, Event)
                    # What a temporary queue missed before the first is not told as a gap.
                    assert item.version == news or (not durable and news == 1)
                    news = item.version + 1
                    if proxy.cuts >= CUTS:
                        break
            publishing.cancel()
            await asyncio.wait([publishing])

    assert proxy.cuts >= CUTS
    assert news > 10


async def test_a_durable_queue_that_was_deleted_is_not_said_to_have_kept_anything(
    deployment: Deployment, world: World, queue: str
) -> None:
    again: asyncio.Queue[Reconnected] = asyncio.Queue()
    async with events(
        deployment.amqp_url, prefix=deployment.prefix, queue=queue, on_reconnect=again.put_nowait
    ) as stream:
        await publish(world, an_event(1))
        assert (await following(stream))[0].version == 1
        waiting = asyncio.create_task(anext(stream))
        await world.channel.queue_delete(queue)
        async with asyncio.timeout(30):
            assert await again.get() == Reconnected(lossless=False)
        await publish(world, an_event(3))
        assert await waiting == Gap(ID, 2, 2)


async def test_closing_a_stream_ends_the_loop_that_waits_for_the_next(
    deployment: Deployment, world: World
) -> None:
    stream = events(deployment.amqp_url, prefix=deployment.prefix)

    async def heard() -> list[Any]:
        return [item.version async for item in stream if isinstance(item, Event)]

    async with stream:
        await publish(world, an_event(1))
        assert (await following(stream))[0].version == 1
        hearing = asyncio.create_task(heard())
        await asyncio.wait([hearing], timeout=0.1)
    async with asyncio.timeout(5):
        assert await hearing == []
        assert await heard() == []
    with pytest.raises(RuntimeError, match="subscribe anew"):
        async with stream:
            pass


async def test_closing_a_stream_ends_a_loop_whose_broker_is_away(
    deployment: Deployment, world: World
) -> None:
    async with proxied(deployment.amqp_url) as proxy:
        stream = events(proxy.url, prefix=deployment.prefix)
        async with stream:
            proxy.budget = lambda: 0
            waiting = asyncio.create_task(anext(stream, None))
            proxy.cut()
            await proxy.until(lambda: proxy.cuts >= 3)
        connections = proxy.connections
        async with asyncio.timeout(5):
            assert await waiting is None
        assert proxy.connections == connections


async def test_a_broker_restart_costs_a_durable_subscription_nothing(
    servers: Servers, deployment: Deployment, world: World, queue: str
) -> None:
    again: list[Reconnected] = []
    async with (
        run_worker(deployment),
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=90) as client,
        events(
            deployment.amqp_url, prefix=deployment.prefix, queue=queue, on_reconnect=again.append
        ) as stream,
    ):
        first = await create(client)
        assert told(await following(stream)) == [(first, 1)]
        await asyncio.to_thread(servers.rabbitmq.stop)
        asked = [asyncio.create_task(client.update(first, name=f"name {n}")) for n in range(3)]
        await asyncio.to_thread(servers.rabbitmq.start)
        results = await asyncio.gather(*asked)
        second = await create(client)
        heard = told(await following(stream, 4))

    assert sorted(r.version for r in results) == [2, 3, 4]
    assert heard == [(first, 2), (first, 3), (first, 4), (second, 1)]
    assert again == [Reconnected(lossless=True)]


async def test_a_broker_restart_costs_a_temporary_subscription_what_it_says(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    again: asyncio.Queue[Reconnected] = asyncio.Queue()
    async with (
        run_worker(deployment),
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=90) as client,
        events(
            deployment.amqp_url, prefix=deployment.prefix, on_reconnect=again.put_nowait
        ) as stream,
    ):
        first = await create(client)
        assert told(await following(stream)) == [(first, 1)]
        waiting = asyncio.create_task(anext(stream))
        await asyncio.to_thread(servers.rabbitmq.restart)
        async with asyncio.timeout(60):
            assert await again.get() == Reconnected(lossless=False)
        await client.update(first, name="y")
        assert told([await waiting]) == [(first, 2)]


async def test_a_subscriber_may_come_before_the_service(deployment: Deployment) -> None:
    subscribing = events(deployment.amqp_url, prefix=deployment.prefix)
    waiting = asyncio.create_task(anext(subscribing))
    async with (
        run_worker(deployment),
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix) as client,
        events(deployment.amqp_url, prefix=deployment.prefix) as witness,
    ):
        while not waiting.done():
            id_ = await create(client)
            assert told(await following(witness)) == [(id_, 1)]
            await asyncio.wait([waiting], timeout=0.1)
        assert isinstance(waiting.result(), Event)
        await subscribing.aclose()


async def test_wrong_credentials_are_said_at_once_to_a_subscriber(
    deployment: Deployment, world: World
) -> None:
    wrong = str(URL(deployment.amqp_url).with_password("wrong"))
    async with asyncio.timeout(10):
        with pytest.raises(Refused, match="ACCESS_REFUSED"):
            async with events(wrong, prefix=deployment.prefix):
                pass


async def test_a_queue_without_a_name_is_refused_before_anybody_is_asked() -> None:
    with pytest.raises(ValueError, match="queue"):
        events("amqp://localhost/", queue="")


async def test_a_queue_that_is_something_else_is_refused(
    deployment: Deployment, world: World
) -> None:
    with pytest.raises(Refused, match="PRECONDITION_FAILED"):
        async with events(
            deployment.amqp_url, prefix=deployment.prefix, queue=event_queue_name(deployment.prefix)
        ):
            pass


async def test_an_outplan_in_newer_form_is_read(deployment: Deployment, world: World) -> None:
    newer = an_event(
        1,
        tm_create="2022-04-28T03:50:23.414+02:00",
        tm_update="2022-04-28T01:50:23Z",
        tm_delete=None,
        colour="green",
    )
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        await publish(world, newer)
        (event,) = await following(stream)

    assert event.data.tm_create == "2022-04-28 01:50:23.414000"
    assert event.data.updated_at.isoformat() == "2022-04-28T01:50:23+00:00"
    assert (event.data.deleted_at, event.data.deleted) == (None, False)


async def test_a_request_can_be_followed_to_its_event(
    deployment: Deployment, client: OutplanClient
) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        sent = await client.send(Request.create(customer_id=CUSTOMER, name="x", source=TEL))
        assert (await following(stream))[0].id == sent
