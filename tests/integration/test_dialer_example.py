"""examples/dialer.py beside a real worker: it calls when the outplan says, and no more."""

import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from outplan.client import OutplanClient
from tests.support.commands import CommandProcess, running
from tests.support.deployment import Deployment
from tests.support.worker_process import WorkerProcess
from tests.support.world import CUSTOMER, TEL, World

DIALER = Path(__file__).parents[2] / "examples" / "dialer.py"
SPEED = 20
# In the dialer's time: a busy machine wakes it this late.
LATE = SPEED * 2.0


@pytest.fixture
async def client(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> AsyncIterator[OutplanClient]:
    async with OutplanClient(deployment.amqp_url, prefix=deployment.prefix) as found:
        yield found


@pytest.fixture
async def queue(deployment: Deployment) -> AsyncIterator[str]:
    """The name of the dialer's queue, deleted afterwards."""
    name = f"{deployment.prefix}.dialer"
    yield name
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        await (await connection.channel()).queue_delete(name)


@asynccontextmanager
async def a_dialer(
    deployment: Deployment, queue: str, *options: str
) -> AsyncIterator[CommandProcess]:
    found = [
        str(DIALER),
        "--amqp-url",
        deployment.amqp_url,
        "--prefix",
        deployment.prefix,
        "--queue",
        queue,
    ]
    program = [sys.executable, *found, "--speed", str(SPEED), *options]
    async with running(program, deployment.environment()) as dialer:
        await dialer.printed("listening")
        yield dialer


async def create(client: OutplanClient, **fields: Any) -> str:
    shortest = {"dial_timeout": 1_000, "try_interval": 20_000, "max_try_count_0": 2}
    result = await client.create(
        customer_id=CUSTOMER, name="evenings", source=TEL, **{**shortest, **fields}
    )
    return result.outplan.id


def said(dialer: CommandProcess, pattern: str) -> list[datetime]:
    """When it said something, by its own clock."""
    found = re.findall(rf"^(\S+ \S+)  'evenings': {pattern}", dialer.out.decode(), re.MULTILINE)
    return [datetime.fromisoformat(time) for time in found]


def seconds(earlier: list[datetime], later: list[datetime]) -> list[float]:
    return [(b - a).total_seconds() for a, b in zip(earlier, later, strict=True)]


async def test_it_calls_as_often_as_it_may_with_the_interval_between(
    deployment: Deployment, client: OutplanClient, queue: str
) -> None:
    async with a_dialer(deployment, queue, "--once") as dialer:
        await create(client, max_try_count_1=1)
        assert await dialer.ended() == 0

    calls = said(dialer, "calls Ada")
    ends = said(dialer, "Ada does not answer")
    assert all(1 <= ringing < 1 + LATE for ringing in seconds(calls, ends))
    assert all(20 <= waiting < 20 + LATE for waiting in seconds(ends[:-1], calls[1:]))
    assert re.findall(r"calls Ada, destination (\d), attempt (\d)", dialer.out.decode()) == [
        ("0", "1"),
        ("0", "2"),
        ("1", "1"),
    ]
    assert len(said(dialer, "calls Bob")) == 2
    assert said(dialer, "Bob answers")
    assert said(dialer, "no more for Ada: all exhausted")


async def test_a_change_counts_from_the_next_attempt_and_a_deletion_ends_it(
    deployment: Deployment, client: OutplanClient, queue: str
) -> None:
    async with a_dialer(deployment, queue) as dialer:
        id_ = await create(client, try_interval=3_600_000, max_try_count_0=50)
        await dialer.printed("Ada not before")
        # An hour would be three minutes here: that it calls again at all is the change.
        await client.update(id_, try_interval=1_000, dial_timeout=2_000)
        await dialer.printed("calls Ada", times=3)
        await client.delete(id_)
        await dialer.printed("no more for Ada: outplan deleted")
        dialer.process.send_signal(signal.SIGINT)
        assert await dialer.ended() == 0

    (deleted,) = said(dialer, "deleted, version 3")
    calls = said(dialer, "calls Ada")
    assert max(calls) <= deleted
    assert len(re.findall("calls Ada.* rings 2000 ms", dialer.out.decode())) == len(calls) - 1
    waits = seconds(said(dialer, "Ada does not answer")[1 : len(calls) - 1], calls[2:])
    assert all(1 <= waiting < 1 + LATE for waiting in waits)


async def test_after_a_crash_it_goes_on_with_the_events_that_came_meanwhile(
    deployment: Deployment, client: OutplanClient, queue: str
) -> None:
    async with a_dialer(deployment, queue) as dialer:
        id_ = await create(client, max_try_count_0=1)
        await dialer.printed("no more for Ada: all exhausted")
        dialer.process.kill()
        await dialer.ended()
    await client.update(id_, max_try_count_0=3)

    async with a_dialer(deployment, queue, "--once") as again:
        assert await again.ended() == 0

    assert said(again, "updated, version 2")
    assert len(said(again, "calls Ada")) == 3


async def test_each_outplan_is_a_campaign_of_its_own(
    deployment: Deployment, client: OutplanClient, queue: str
) -> None:
    async with a_dialer(deployment, queue) as dialer:
        doomed = await create(client, max_try_count_0=9, try_interval=2_147_483_647)
        await dialer.printed("Bob not before")
        await client.delete(doomed)
        await dialer.printed("no more for Bob: outplan deleted")
        await create(client, max_try_count_0=1)
        await dialer.printed("no more for Bob: all exhausted")

    assert len(said(dialer, "calls Bob")) == 2
