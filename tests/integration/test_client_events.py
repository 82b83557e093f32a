"""Test subscriptions against a real broker: gaps, repeats, durable queues and reconnects."""

import asyncio
import itertools
import json
import os
import random
from typing import Any
from uuid import uuid4

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
from outplan.testing import Deployment
from outplan.testing.servers import Servers
from tests.support.balancer import run_balancer
from tests.support.events import OUTPLAN_ID, encode_event, publish_events
from tests.support.worker_process import run_worker
from tests.support.world import CUSTOMER, EVENT_QUEUE, TEL, World

CUTS = int(os.environ.get("OUTPLAN_TEST_CUTS", "1000")) // 20
OTHER = str(uuid4())


async def create(client: OutplanClient, customer_id: str = CUSTOMER) -> str:
    return (await client.create(customer_id=customer_id, name="x", source=TEL)).outplan.id


async def take(stream: Events, count: int = 1) -> list[Any]:
    """Take the next ``count`` items of a stream."""
    async with asyncio.timeout(30):
        return [await anext(stream) for _ in range(count)]


def ids_and_versions(items: list[Any]) -> list[tuple[str, int]]:
    return [(item.data.id, item.version) for item in items]


async def test_an_outplans_events_arrive_in_order(
    deployment: Deployment, client: OutplanClient
) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        id_ = await create(client)
        updated = await client.update(id_, try_interval=7_000)
        await client.delete(id_)
        created, changed, deleted = await take(stream, 3)

    assert [e.type for e in (created, changed, deleted)] == [
        "outplan_created",
        "outplan_updated",
        "outplan_deleted",
    ]
    assert (changed.id, changed.changed) == (updated.message_id, ("try_interval",))
    assert changed.data == updated.outplan
    assert deleted.at == deleted.data.deleted_at


@pytest.mark.parametrize("which", ["kinds", "customer_id", "outplan_id"])
async def test_filters_select_events_by_kind_customer_and_outplan(
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
        first, second = ids_and_versions(await take(stream, 2))

    # With a filter on kinds, versions of other kinds are no gap.
    expected = [(id_, 2), (other, 3)] if which == "kinds" else [(id_, 1), (id_, 2)]
    assert [first, second] == expected


async def test_settle_acks_the_last_event_of_a_loop(
    deployment: Deployment, world: World, queue: str
) -> None:
    for expected in (1, 2):
        async with events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as stream:
            if expected == 1:
                await publish_events(world, *map(encode_event, [1, 2]))
            [event] = await take(stream)
            assert event.version == expected
            await stream.settle()


async def test_an_event_keeps_its_raw_bytes_with_unknown_fields(
    deployment: Deployment, world: World
) -> None:
    body = json.dumps({**encode_event(1), "colour": "green"}).encode()
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        await publish_events(world, body)
        [event] = await take(stream)
    assert event.raw == body


async def test_repeats_are_dropped_and_a_gap_is_reported(
    deployment: Deployment, world: World
) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        await publish_events(world, *map(encode_event, [1, 2, 1, 2, 5, 3, 6]))
        one, two, gap, five, six = await take(stream, 5)

    assert [e.version for e in (one, two, five, six)] == [1, 2, 5, 6]
    assert gap == Gap(OUTPLAN_ID, 3, 4)


async def test_seen_versions_are_dropped_and_count_for_gaps(
    deployment: Deployment, world: World
) -> None:
    async with events(
        deployment.amqp_url, prefix=deployment.prefix, seen={OUTPLAN_ID: 2}
    ) as stream:
        await publish_events(world, *map(encode_event, [2, 4]))
        gap, four = await take(stream, 2)

    assert (gap, four.version) == (Gap(OUTPLAN_ID, 3, 3), 4)


async def test_a_body_that_is_no_event_is_yielded_as_unreadable(
    deployment: Deployment, world: World
) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        await publish_events(world, b"[1, 2", encode_event(1))
        unreadable, event = await take(stream, 2)

    assert isinstance(unreadable, Unreadable)
    assert (unreadable.body, bool(unreadable.reason)) == (b"[1, 2", True)
    assert isinstance(event, Event)


async def test_an_event_is_acked_when_the_loop_takes_the_next(
    deployment: Deployment, world: World, queue: str
) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as stream:
        await publish_events(world, *map(encode_event, [1, 2, 3]))
        async for event in stream:
            assert isinstance(event, Event)
            if event.version == 2:
                break

    async with events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as stream:
        assert [e.version for e in await take(stream, 2)] == [2, 3]


async def test_cancelling_the_wait_for_an_event_loses_none(
    deployment: Deployment, world: World, queue: str
) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as stream:
        for version in (1, 2, 3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(stream)
            await publish_events(world, encode_event(version))
            assert (await take(stream))[0].version == version


async def test_a_second_subscriber_of_a_durable_queue_is_a_standby(
    deployment: Deployment, world: World, queue: str
) -> None:
    async with (
        events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as active,
        events(deployment.amqp_url, prefix=deployment.prefix, queue=queue) as standby,
    ):
        await publish_events(world, encode_event(1), encode_event(2))
        assert [e.version for e in await take(active, 2)] == [1, 2]
        waiting = asyncio.create_task(anext(standby))
        await active.aclose()
        async with asyncio.timeout(30):
            event = await waiting
        # The active one took event 2 but closed before it took the next, so event 2 was not acked.
        assert isinstance(event, Event)
        assert event.version == 2


@pytest.mark.parametrize("durable", [True, False])
async def test_a_subscription_reconnects_and_reports_whether_events_were_lost(
    deployment: Deployment, world: World, queue: str, durable: bool
) -> None:
    reconnects: list[Reconnected] = []
    async with run_balancer(deployment.amqp_url) as proxy:
        stream = events(
            proxy.url,
            prefix=deployment.prefix,
            queue=queue if durable else None,
            on_reconnect=reconnects.append,
        )
        async with stream:
            await publish_events(world, encode_event(1))
            assert (await take(stream))[0].version == 1
            proxy.budget = lambda: 0 if proxy.disconnects < 3 else None
            proxy.disconnect()
            await publish_events(world, encode_event(2))
            waiting = asyncio.create_task(anext(stream))
            await proxy.wait_for(lambda: proxy.disconnects == 3)
            if not durable:
                async with asyncio.timeout(30):
                    while not reconnects:
                        await asyncio.sleep(0.01)
            await publish_events(world, encode_event(3))
            items = [await waiting, *await take(stream)]

    assert reconnects == [Reconnected(lossless=durable)]
    if durable:
        assert [e.version for e in items if isinstance(e, Event)] == [2, 3]
    else:
        assert items[0] == Gap(OUTPLAN_ID, 2, 2)
        assert isinstance(items[1], Event)
        assert items[1].version == 3


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("durable", [True, False])
async def test_a_subscription_with_random_cuts_yields_each_version_or_a_gap(
    deployment: Deployment, world: World, queue: str, durable: bool
) -> None:
    luck = random.Random()
    expected = 1

    async def publish_forever() -> None:
        for version in itertools.count(1):
            await publish_events(world, encode_event(version))

    async with run_balancer(deployment.amqp_url) as proxy, asyncio.timeout(280):
        # Subscribing takes about 1,500 bytes, an event and its ack 1,000.
        proxy.budget = lambda: luck.randrange(15_000) if proxy.disconnects < CUTS else None
        name = queue if durable else None
        async with events(proxy.url, prefix=deployment.prefix, queue=name) as stream:
            publishing = asyncio.create_task(publish_forever())
            async for item in stream:
                if isinstance(item, Gap):
                    assert not durable
                    assert item.first == expected
                    expected = item.last + 1
                else:
                    assert isinstance(item, Event)
                    # A new temporary queue reports no gap before its first event.
                    assert item.version == expected or (not durable and expected == 1)
                    expected = item.version + 1
                    if proxy.disconnects >= CUTS:
                        break
            publishing.cancel()
            await asyncio.wait([publishing])

    assert proxy.disconnects >= CUTS
    assert expected > 10


async def test_a_deleted_durable_queue_is_reported_as_lossy(
    deployment: Deployment, world: World, queue: str
) -> None:
    reconnects: asyncio.Queue[Reconnected] = asyncio.Queue()
    async with events(
        deployment.amqp_url,
        prefix=deployment.prefix,
        queue=queue,
        on_reconnect=reconnects.put_nowait,
    ) as stream:
        await publish_events(world, encode_event(1))
        assert (await take(stream))[0].version == 1
        waiting = asyncio.create_task(anext(stream))
        await world.channel.queue_delete(queue)
        async with asyncio.timeout(30):
            assert await reconnects.get() == Reconnected(lossless=False)
        await publish_events(world, encode_event(3))
        assert await waiting == Gap(OUTPLAN_ID, 2, 2)


async def test_closing_a_stream_ends_a_waiting_loop(deployment: Deployment, world: World) -> None:
    stream = events(deployment.amqp_url, prefix=deployment.prefix)

    async def read_versions() -> list[Any]:
        return [item.version async for item in stream if isinstance(item, Event)]

    async with stream:
        await publish_events(world, encode_event(1))
        assert (await take(stream))[0].version == 1
        reading = asyncio.create_task(read_versions())
        await asyncio.wait([reading], timeout=0.1)
    async with asyncio.timeout(5):
        assert await reading == []
        assert await read_versions() == []
    with pytest.raises(RuntimeError, match="subscribe anew"):
        async with stream:
            pass


async def test_closing_a_stream_ends_a_waiting_loop_while_the_broker_is_away(
    deployment: Deployment, world: World
) -> None:
    async with run_balancer(deployment.amqp_url) as proxy:
        stream = events(proxy.url, prefix=deployment.prefix)
        async with stream:
            proxy.budget = lambda: 0
            waiting = asyncio.create_task(anext(stream, None))
            proxy.disconnect()
            await proxy.wait_for(lambda: proxy.disconnects >= 3)
        connections = proxy.accepted_count
        async with asyncio.timeout(5):
            assert await waiting is None
        assert proxy.accepted_count == connections


async def test_a_durable_subscription_loses_nothing_in_a_broker_restart(
    servers: Servers, deployment: Deployment, world: World, queue: str
) -> None:
    reconnects: list[Reconnected] = []
    async with (
        run_worker(deployment),
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=90) as client,
        events(
            deployment.amqp_url,
            prefix=deployment.prefix,
            queue=queue,
            on_reconnect=reconnects.append,
        ) as stream,
    ):
        first = await create(client)
        assert ids_and_versions(await take(stream)) == [(first, 1)]
        await asyncio.to_thread(servers.rabbitmq.stop)
        updates = [asyncio.create_task(client.update(first, name=f"name {n}")) for n in range(3)]
        await asyncio.to_thread(servers.rabbitmq.start)
        results = await asyncio.gather(*updates)
        second = await create(client)
        received = ids_and_versions(await take(stream, 4))

    assert sorted(r.version for r in results) == [2, 3, 4]
    assert received == [(first, 2), (first, 3), (first, 4), (second, 1)]
    assert reconnects == [Reconnected(lossless=True)]


async def test_a_temporary_subscription_reports_loss_after_a_broker_restart(
    servers: Servers, deployment: Deployment, world: World
) -> None:
    reconnects: asyncio.Queue[Reconnected] = asyncio.Queue()
    async with (
        run_worker(deployment),
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix, timeout=90) as client,
        events(
            deployment.amqp_url, prefix=deployment.prefix, on_reconnect=reconnects.put_nowait
        ) as stream,
    ):
        first = await create(client)
        assert ids_and_versions(await take(stream)) == [(first, 1)]
        waiting = asyncio.create_task(anext(stream))
        await asyncio.to_thread(servers.rabbitmq.restart)
        async with asyncio.timeout(60):
            assert await reconnects.get() == Reconnected(lossless=False)
        await client.update(first, name="y")
        assert ids_and_versions([await waiting]) == [(first, 2)]


async def test_a_subscriber_can_start_before_the_service(deployment: Deployment) -> None:
    subscribing = events(deployment.amqp_url, prefix=deployment.prefix)
    waiting = asyncio.create_task(anext(subscribing))
    async with (
        run_worker(deployment),
        OutplanClient(deployment.amqp_url, prefix=deployment.prefix) as client,
        events(deployment.amqp_url, prefix=deployment.prefix) as control,
    ):
        while not waiting.done():
            id_ = await create(client)
            assert ids_and_versions(await take(control)) == [(id_, 1)]
            await asyncio.wait([waiting], timeout=0.1)
        assert isinstance(waiting.result(), Event)
        await subscribing.aclose()


async def test_a_subscriber_with_wrong_credentials_is_refused_at_once(
    deployment: Deployment, world: World
) -> None:
    wrong = str(URL(deployment.amqp_url).with_password("wrong"))
    async with asyncio.timeout(10):
        with pytest.raises(Refused, match="ACCESS_REFUSED"):
            async with events(wrong, prefix=deployment.prefix):
                pass


async def test_an_empty_queue_name_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="queue"):
        events("amqp://localhost/", queue="")


async def test_an_existing_queue_with_other_arguments_is_refused(
    deployment: Deployment, world: World
) -> None:
    with pytest.raises(Refused, match="PRECONDITION_FAILED"):
        async with events(
            deployment.amqp_url,
            prefix=deployment.prefix,
            queue=EVENT_QUEUE.format(prefix=deployment.prefix),
        ):
            pass


async def test_timestamps_and_fields_of_a_newer_contract_are_read(
    deployment: Deployment, world: World
) -> None:
    newer = encode_event(
        1,
        tm_create="2022-04-28T03:50:23.414+02:00",
        tm_update="2022-04-28T01:50:23Z",
        tm_delete=None,
        colour="green",
    )
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        await publish_events(world, newer)
        (event,) = await take(stream)

    assert event.data.tm_create == "2022-04-28 01:50:23.414000"
    assert event.data.updated_at.isoformat() == "2022-04-28T01:50:23+00:00"
    assert (event.data.deleted_at, event.data.deleted) == (None, False)


async def test_an_event_has_the_message_id_of_its_command(
    deployment: Deployment, client: OutplanClient
) -> None:
    async with events(deployment.amqp_url, prefix=deployment.prefix) as stream:
        sent = await client.send(Request.create(customer_id=CUSTOMER, name="x", source=TEL))
        assert (await take(stream))[0].id == sent
