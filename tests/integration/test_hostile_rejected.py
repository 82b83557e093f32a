"""Run ``outplan rejected`` on copies with properties that most AMQP libraries cannot decode."""

import json
from collections.abc import AsyncIterator

import pytest

from outplan.contract.amqp import Delivery
from outplan.contract.topology import build_topology
from outplan.rabbitmq.frames import WireProperties
from outplan.testing import Deployment
from tests.support.hostile import HOSTILE, Hostile
from tests.support.raw_publisher import RawPublisher, open_raw_publisher
from tests.support.rejects import list_rejected, run, world
from tests.support.sessions import consume_queues
from tests.support.worker_process import run_worker
from tests.support.world import World, create_body

__all__ = ["world"]  # a fixture, by its name


@pytest.fixture
async def publisher(deployment: Deployment, world: World) -> AsyncIterator[RawPublisher]:
    async with open_raw_publisher(deployment.amqp_url) as opened:
        yield opened


async def reject_all(deployment: Deployment, publisher: RawPublisher, body: bytes) -> list[str]:
    """Let a worker reject a command with each kind of properties; return their message_ids."""
    async with run_worker(deployment):
        for name, hostile in HOSTILE.items():
            command = hostile.apply("outplan_create", body, {"message_id": name.encode()})
            await publisher.publish(f"{deployment.prefix}.commands", [command])
        last = Hostile().apply("outplan_create", body, {"message_id": b"last"})
        await publisher.publish(f"{deployment.prefix}.commands", [last])
        while "last" not in [copy["message_id"] for copy in await list_rejected(deployment)]:
            pass
    return [*HOSTILE, "last"]


async def take_copies(deployment: Deployment, count: int) -> list[Delivery]:
    topology = build_topology(deployment.prefix)
    copies: list[Delivery] = []
    async with consume_queues(deployment.amqp_url, topology, [topology.rejected]) as session:
        while len(copies) < count:
            copies += await session.receive(1_000)
        await session.ack(copies[-1])
    return copies


@pytest.mark.slow
async def test_list_and_show_name_every_copy(
    deployment: Deployment, publisher: RawPublisher
) -> None:
    sent = await reject_all(deployment, publisher, b"{}")
    found = await list_rejected(deployment)

    assert len(found) == len(sent)
    for name, copy in zip(sent, found, strict=True):
        escaped = r"\xff\xfe" if name == "message_id-not-UTF-8" else name
        assert copy["message_id"] == escaped
        code, out, err = await run(deployment, "show", "--json", str(copy["number"]))
        assert code == 0, err
        assert json.loads(out)["message_id"] == escaped
        assert json.loads(out)["body"] == "{}"
    code, out, err = await run(deployment, "list")
    assert code == 0, err
    assert len(out.splitlines()) == len(sent) + 1


async def test_a_copy_keeps_its_bytes_in_list_show_and_a_dry_run(
    deployment: Deployment, publisher: RawPublisher
) -> None:
    sent = await reject_all(deployment, publisher, b"{}")
    for arguments in (["list"], ["show", "3"], ["redrive", "--all", "--dry-run"]):
        await run(deployment, *arguments)
    copies = await take_copies(deployment, len(sent))

    for name, copy in zip(sent, copies, strict=True):
        assert isinstance(copy.properties, WireProperties)
        for field, value in HOSTILE.get(name, Hostile()).properties.items():
            raw = copy.properties.raw[slice(*copy.properties.spans[field])]
            kept = raw[1:] if isinstance(value, bytes) else int.from_bytes(raw, "big", signed=True)
            assert kept == value
        for header, value in HOSTILE.get(name, Hostile()).table or []:
            assert bytes([len(header)]) + header + value in copy.properties.table


async def test_redrive_sends_what_is_valid_and_reports_the_rest(
    deployment: Deployment, publisher: RawPublisher, world: World
) -> None:
    key = f"{deployment.prefix}.rejected"
    body = json.dumps(create_body()).encode()
    copies = [
        hostile.apply(key, body, {"message_id": name.encode(), "message_type": b"outplan_create"})
        for name, hostile in HOSTILE.items()
        if not hostile.key
    ]
    await publisher.publish("", copies)
    async with run_worker(deployment):
        code, out, err = await run(
            deployment, "redrive", "--all", "--json", "--keep-going", "--rate", "1000"
        )

    assert code == 3, err
    statuses = {line["message_id"]: line["status"] for line in map(json.loads, out.splitlines())}
    invalid = {"correlation_id-not-UTF-8", r"\xff\xfe", "message_type-not-UTF-8"}
    assert {id_ for id_, status in statuses.items() if status == "invalid"} == invalid
    accepted = {name for name, hostile in HOSTILE.items() if not hostile.key} - invalid
    accepted -= {"message_id-not-UTF-8"}
    assert {id_ for id_, status in statuses.items() if status == "accepted"} == accepted
    await world.wait_for_events(accepted)


async def test_discard_saves_and_removes_every_copy(
    deployment: Deployment, publisher: RawPublisher
) -> None:
    await reject_all(deployment, publisher, b"{}")
    code, _, err = await run(deployment, "discard", "--all", "--yes")
    assert code == 0, err
    assert await list_rejected(deployment) == []
