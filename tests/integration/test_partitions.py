"""Run a worker with several command queues: all are consumed, each outplan keeps its order."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import aio_pika
import pytest

from outplan.contract.topology import build_topology
from outplan.testing import Deployment
from tests.support.worker_process import run_worker
from tests.support.world import create_body

PARTITIONS = 4
UPDATES = 30
IDS = [f"0000000{n}-0000-4000-8000-00000000000{n}" for n in range(1, 9)]


@pytest.fixture
async def channel(deployment: Deployment) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        yield await connection.channel()


@pytest.fixture
async def partitioned_deployment(
    deployment: Deployment, channel: aio_pika.abc.AbstractChannel
) -> AsyncIterator[Deployment]:
    """Run a worker with PARTITIONS command queues under another prefix."""
    partitioned = replace(deployment, prefix=f"{deployment.prefix}.partitioned")
    async with run_worker(partitioned, OUTPLAN_PARTITIONS=str(PARTITIONS)):
        yield partitioned
    layout = build_topology(partitioned.prefix, PARTITIONS)
    for queue in layout.queues:
        await channel.queue_delete(queue.name)
    for exchange in layout.exchanges:
        await channel.exchange_delete(exchange.name)


async def send(exchange: aio_pika.abc.AbstractExchange, id_: str, n: int) -> None:
    body = {"id": id_, "try_interval": 1_000 + n} if n else create_body(id=id_)
    message = aio_pika.Message(
        json.dumps(body).encode(),
        message_id=f"{id_} {n}",
        headers={"outplan_id": id_},
        delivery_mode=2,
    )
    await exchange.publish(message, "outplan_update" if n else "outplan_create")


async def test_each_outplans_commands_are_applied_in_order(
    partitioned_deployment: Deployment, channel: aio_pika.abc.AbstractChannel
) -> None:
    exchange = await channel.get_exchange(f"{partitioned_deployment.prefix}.commands")
    events = await channel.declare_queue(exclusive=True)
    await events.bind(f"{partitioned_deployment.prefix}.events", "#")
    for n in range(UPDATES):
        for id_ in IDS:
            await send(exchange, id_, n)

    intervals: dict[str, list[int]] = {id_: [] for id_ in IDS}
    async with asyncio.timeout(30), events.iterator(no_ack=True) as messages:
        async for event in messages:
            data = json.loads(event.body)["data"]
            intervals[data["id"]].append(data["try_interval"])
            if sum(map(len, intervals.values())) == UPDATES * len(IDS):
                break

    expected = [60_000, *range(1_001, 1_000 + UPDATES)]
    assert all(applied == expected for applied in intervals.values())


async def test_each_partition_has_a_consumer(
    partitioned_deployment: Deployment, channel: aio_pika.abc.AbstractChannel
) -> None:
    for n in range(PARTITIONS):
        queue = await channel.declare_queue(
            f"{partitioned_deployment.prefix}.commands.{n}", passive=True
        )
        assert queue.declaration_result.consumer_count == 1
