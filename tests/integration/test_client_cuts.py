"""Cut the client's connection at random moments: every result is true, no command acts twice."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from outplan.client import CommandRejected, OutplanClient, Request, Result
from outplan.testing import Deployment
from tests.support.balancer import Balancer, run_balancer
from tests.support.worker_process import WorkerProcess
from tests.support.world import CUSTOMER, TEL, World, create_body

CUTS = int(os.environ.get("OUTPLAN_TEST_CUTS", "1000"))
CALLERS = 8


async def summarize(call: Awaitable[Result]) -> str:
    """Return the status and version of a result, or the code of its rejection."""
    try:
        result = await call
    except CommandRejected as error:
        return error.code
    return f"{result.status} {result.version}"


async def run_lifecycle(client: OutplanClient) -> tuple[str, list[str]]:
    """Send one outplan's commands one at a time and check each result; return its id and events."""
    id_ = str(uuid4())
    commands: list[tuple[Request, str]] = [
        (Request.update(id_, name="too early"), "not_found"),
        (Request.create(id=id_, customer_id=CUSTOMER, name="a", source=TEL), "accepted 1"),
        (Request.create(id=id_, customer_id=CUSTOMER, name="b", source=TEL), "already_exists"),
        (Request.update(id_, name="c"), "accepted 2"),
        (Request.update(id_, name="c"), "unchanged 2"),
        (Request.update(id_, name="d", expected_version=1), "version_conflict"),
        (Request.update(id_, name="a", expected_version=2), "accepted 3"),
        (Request.delete(id_), "accepted 4"),
        (Request.update(id_, name="e"), "not_found"),
        (Request.delete(id_), "unchanged 4"),
    ]
    results = [await summarize(client.ask(request)) for request, _ in commands]
    assert results == [expected for _, expected in commands]
    accepted = [r.message_id for r, expected in commands if expected.startswith("accepted")]
    return id_, accepted


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_random_connection_cuts_cause_no_false_result_and_no_second_effect(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    luck = random.Random()
    lifecycles: list[tuple[str, list[str]]] = []

    async def repeat_lifecycles(client: OutplanClient, proxy: Balancer) -> None:
        while proxy.disconnects < CUTS:
            lifecycles.append(await run_lifecycle(client))

    async with (
        run_balancer(deployment.amqp_url) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix, timeout=120) as client,
    ):
        # Opening a session takes about 2,000 bytes, a command and its reply 1,400.
        proxy.budget = lambda: luck.randrange(20_000) if proxy.disconnects < CUTS else None
        proxy.disconnect()
        await asyncio.gather(*(repeat_lifecycles(client, proxy) for _ in range(CALLERS)))

    assert proxy.disconnects >= CUTS
    for id_, accepted in lifecycles:
        assert [e["_id"] for e in await world.read_history(id_)] == accepted
    assert len((await world.read_documents())[1]) == 4 * len(lifecycles)


async def test_a_command_still_in_the_lost_connection_does_not_falsify_the_result(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    id_ = str(uuid4())
    async with (
        run_balancer(deployment.amqp_url) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix) as client,
    ):
        proxy.stall("up")
        updating = asyncio.create_task(client.update(id_, name="late"))
        await proxy.wait_for(lambda: proxy.held_bytes > 0)
        before = proxy.accepted_count
        proxy.leave_half_open()
        # Both of the client's connections are back, while its first publish is still in the lost
        # one. A resend at this moment would be rejected: there is no such outplan yet.
        await proxy.wait_for(lambda: proxy.accepted_count >= before + 2)
        assert (await world.ask("outplan_create", create_body(id=id_)))["version"] == 1
        proxy.release()
        result = await updating

    # RabbitMQ either accepted the first publish or dropped it with its connection.
    assert (result.status, result.version) == ("accepted", 2)
    assert [e["_id"] for e in await world.read_history(id_)][1:] == [result.message_id]


async def test_every_confirmed_command_takes_effect_despite_cuts(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    async with (
        run_balancer(deployment.amqp_url) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix, timeout=60) as client,
    ):
        proxy.budget = budgets(3_000, 2_500, 4_000, 3_500)
        proxy.disconnect()
        sent = [
            await client.send(Request.create(customer_id=CUSTOMER, name="x", source=TEL))
            for _ in range(20)
        ]
    assert proxy.disconnects >= 4
    await world.wait_for_events(set(sent))
    assert len((await world.read_documents())[1]) == 20


async def test_send_many_keeps_one_outplans_order_despite_cuts(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    id_, luck = str(uuid4()), random.Random()
    requests = [
        Request.create(id=id_, customer_id=CUSTOMER, name="version 1", source=TEL),
        *[Request.update(id_, name=f"version {n + 1}", expected_version=n) for n in range(1, 60)],
    ]
    async with (
        run_balancer(deployment.amqp_url) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix, timeout=60) as client,
    ):
        proxy.budget = lambda: luck.randrange(3_000, 9_000) if proxy.disconnects < 8 else None
        proxy.disconnect()
        statuses = [result.status async for result in client.send_many(requests)]

    assert proxy.disconnects >= 4
    assert statuses == ["accepted"] * 60


def budgets(*sizes: int) -> Callable[[], int | None]:
    left: list[Any] = list(sizes)
    return lambda: left.pop(0) if left else None
