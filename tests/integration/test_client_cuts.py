"""The connection cut at any moment: every verdict is true, and nothing takes effect twice."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from outplan.client import CommandRejected, OutplanClient, Request, Result
from tests.integration.proxy import Proxy, proxied
from tests.support.deployment import Deployment
from tests.support.worker_process import WorkerProcess
from tests.support.world import CUSTOMER, TEL, World, create_body

CUTS = int(os.environ.get("OUTPLAN_TEST_CUTS", "1000"))
TELLERS = 8


async def told(asking: Awaitable[Result]) -> str:
    try:
        result = await asking
    except CommandRejected as error:
        return error.code
    return f"{result.status} {result.version}"


async def a_life(client: OutplanClient) -> tuple[str, list[str], list[str]]:
    """An outplan's life, of one writer: each verdict can be foretold. Its id, what was told."""
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
    verdicts = [await told(client.ask(request)) for request, _ in commands]
    assert verdicts == [expected for _, expected in commands]
    accepted = [r.message_id for r, expected in commands if expected.startswith("accepted")]
    return id_, accepted, verdicts


@pytest.mark.timeout(900)
async def test_connections_cut_at_random_moments_make_no_false_verdict_and_no_second_effect(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    luck = random.Random()
    lives: list[tuple[str, list[str], list[str]]] = []

    async def tell(client: OutplanClient, proxy: Proxy) -> None:
        while proxy.cuts < CUTS:
            lives.append(await a_life(client))

    async with (
        proxied(deployment.amqp_url) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix, timeout=120) as client,
    ):
        # A session is opened with some 2,000 bytes, and a command and its reply have 1,400.
        proxy.budget = lambda: luck.randrange(20_000) if proxy.cuts < CUTS else None
        proxy.cut()
        await asyncio.gather(*(tell(client, proxy) for _ in range(TELLERS)))

    assert proxy.cuts >= CUTS
    for id_, accepted, _ in lives:
        assert [e["_id"] for e in await world.read_history(id_)] == accepted
    assert len((await world.read_documents())[1]) == 4 * len(lives)


async def test_what_a_lost_connection_still_delivers_cannot_belie_the_verdict(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    id_ = str(uuid4())
    async with (
        proxied(deployment.amqp_url) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix) as client,
    ):
        proxy.stall("up")
        asking = asyncio.create_task(client.update(id_, name="late"))
        await proxy.until(lambda: proxy.held > 0)
        before = proxy.connections
        proxy.strand()
        # The client is back, twice; what it sent at first is on its way yet. Were it to send the
        # command again now, it would hear that there is no such outplan.
        await proxy.until(lambda: proxy.connections >= before + 2)
        assert (await world.ask("outplan_create", create_body(id=id_)))["version"] == 1
        proxy.release()
        result = await asking

    # Of the first sending RabbitMQ has taken the command, or dropped it with its connection.
    assert (result.status, result.version) == ("accepted", 2)
    assert [e["_id"] for e in await world.read_history(id_)][1:] == [result.message_id]


async def test_a_confirmed_command_was_sent_whatever_was_cut(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    async with (
        proxied(deployment.amqp_url) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix, timeout=60) as client,
    ):
        proxy.budget = iter_of(3_000, 2_500, 4_000, 3_500)
        proxy.cut()
        sent = [
            await client.send(Request.create(customer_id=CUSTOMER, name="x", source=TEL))
            for _ in range(20)
        ]
    assert proxy.cuts >= 4
    await world.wait_for_events(set(sent))
    assert len((await world.read_documents())[1]) == 20


async def test_many_for_one_outplan_stay_in_turn_whatever_is_cut(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    id_, luck = str(uuid4()), random.Random()
    requests = [
        Request.create(id=id_, customer_id=CUSTOMER, name="version 1", source=TEL),
        *[Request.update(id_, name=f"version {n + 1}", expected_version=n) for n in range(1, 60)],
    ]
    async with (
        proxied(deployment.amqp_url) as proxy,
        OutplanClient(proxy.url, prefix=deployment.prefix, timeout=60) as client,
    ):
        proxy.budget = lambda: luck.randrange(3_000, 9_000) if proxy.cuts < 8 else None
        proxy.cut()
        verdicts = [verdict.status async for verdict in client.send_many(requests)]

    assert proxy.cuts >= 4
    assert verdicts == ["accepted"] * 60


def iter_of(*budgets: int) -> Callable[[], int | None]:
    left: list[Any] = list(budgets)
    return lambda: left.pop(0) if left else None
