"""Run examples/dialer.py with a real worker and check the times and number of its calls."""

import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from outplan.client import OutplanClient
from outplan.testing import Deployment
from tests.support.commands import CommandProcess, run_program
from tests.support.world import CUSTOMER, TEL

DIALER = Path(__file__).parents[2] / "examples" / "dialer.py"
SPEED = 20
# Seconds of the dialer's time by which a busy machine may delay it.
LATE = SPEED * 2.0


@asynccontextmanager
async def run_dialer(
    deployment: Deployment, queue: str, *options: str
) -> AsyncIterator[CommandProcess]:
    arguments = [
        str(DIALER),
        "--amqp-url",
        deployment.amqp_url,
        "--prefix",
        deployment.prefix,
        "--queue",
        queue,
    ]
    program = [sys.executable, *arguments, "--speed", str(SPEED), *options]
    async with run_program(program, deployment.environment()) as dialer:
        await dialer.wait_for_output("listening")
        yield dialer


async def create(client: OutplanClient, **fields: Any) -> str:
    shortest = {"dial_timeout": 1_000, "try_interval": 20_000, "max_try_count_0": 2}
    result = await client.create(
        customer_id=CUSTOMER, name="evenings", source=TEL, **{**shortest, **fields}
    )
    return result.outplan.id


def find_times(dialer: CommandProcess, pattern: str) -> list[datetime]:
    """Return the times of matching lines, by the dialer's clock."""
    found = re.findall(rf"^(\S+ \S+)  'evenings': {pattern}", dialer.out.decode(), re.MULTILINE)
    return [datetime.fromisoformat(time) for time in found]


def differences(earlier: list[datetime], later: list[datetime]) -> list[float]:
    return [(b - a).total_seconds() for a, b in zip(earlier, later, strict=True)]


async def test_the_dialer_makes_each_attempt_with_the_interval_between(
    deployment: Deployment, client: OutplanClient, queue: str
) -> None:
    async with run_dialer(deployment, queue, "--once") as dialer:
        await create(client, max_try_count_1=1)
        assert await dialer.wait() == 0

    calls = find_times(dialer, "calls Ada")
    ends = find_times(dialer, "Ada does not answer")
    assert all(1 <= ringing < 1 + LATE for ringing in differences(calls, ends))
    assert all(20 <= waiting < 20 + LATE for waiting in differences(ends[:-1], calls[1:]))
    assert re.findall(r"calls Ada, destination (\d), attempt (\d)", dialer.out.decode()) == [
        ("0", "1"),
        ("0", "2"),
        ("1", "1"),
    ]
    assert len(find_times(dialer, "calls Bob")) == 2
    assert find_times(dialer, "Bob answers")
    assert find_times(dialer, "no more for Ada: all exhausted")


async def test_an_update_applies_from_the_next_attempt_and_a_delete_stops_calls(
    deployment: Deployment, client: OutplanClient, queue: str
) -> None:
    async with run_dialer(deployment, queue) as dialer:
        id_ = await create(client, try_interval=3_600_000, max_try_count_0=50)
        await dialer.wait_for_output("Ada not before")
        # One hour takes three minutes at this speed: calling again at once shows the update.
        await client.update(id_, try_interval=1_000, dial_timeout=2_000)
        await dialer.wait_for_output("calls Ada", times=3)
        await client.delete(id_)
        await dialer.wait_for_output("no more for Ada: outplan deleted")
        dialer.process.send_signal(signal.SIGINT)
        assert await dialer.wait() == 0

    (deleted,) = find_times(dialer, "deleted, version 3")
    calls = find_times(dialer, "calls Ada")
    assert max(calls) <= deleted
    assert len(re.findall("calls Ada.* rings 2000 ms", dialer.out.decode())) == len(calls) - 1
    waits = differences(find_times(dialer, "Ada does not answer")[1 : len(calls) - 1], calls[2:])
    assert all(1 <= waiting < 1 + LATE for waiting in waits)


async def test_after_a_crash_the_dialer_reads_the_events_that_it_missed(
    deployment: Deployment, client: OutplanClient, queue: str
) -> None:
    async with run_dialer(deployment, queue) as dialer:
        id_ = await create(client, max_try_count_0=1)
        await dialer.wait_for_output("no more for Ada: all exhausted")
        dialer.process.kill()
        await dialer.wait()
    await client.update(id_, max_try_count_0=3)

    async with run_dialer(deployment, queue, "--once") as again:
        assert await again.wait() == 0

    assert find_times(again, "updated, version 2")
    assert len(find_times(again, "calls Ada")) == 3


async def test_each_outplan_counts_its_own_attempts(
    deployment: Deployment, client: OutplanClient, queue: str
) -> None:
    async with run_dialer(deployment, queue) as dialer:
        doomed = await create(client, max_try_count_0=9, try_interval=2_147_483_647)
        await dialer.wait_for_output("Bob not before")
        await client.delete(doomed)
        await dialer.wait_for_output("no more for Bob: outplan deleted")
        await create(client, max_try_count_0=1)
        await dialer.wait_for_output("no more for Bob: all exhausted")

    assert len(find_times(dialer, "calls Bob")) == 2
