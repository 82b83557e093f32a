"""Test the routing keys that commands are published with, as a queue bound to the exchange sees."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aiormq.abc import FieldTable

from outplan.client import OutplanClient, Request
from outplan.contract.fields import derive_outplan_id
from outplan.contract.messages import CommandName
from outplan.testing import Deployment
from outplan.testing.live.raw_command_publisher import open_raw_command_publisher
from outplan.testing.raw_command import RawCommand
from tests.support.examples import run_program
from tests.support.rejects import run, world
from tests.support.shell import outplan
from tests.support.worker_process import WorkerProcess
from tests.support.world import World, create_body

EXAMPLES = Path(__file__).parents[2] / "examples"

__all__ = ["world"]  # a fixture, by its name


@pytest.fixture
async def spy(deployment: Deployment, world: World) -> AsyncIterator[AbstractQueue]:
    """Declare a queue that gets a copy of every command."""
    found = await world.channel.declare_queue(f"{deployment.prefix}.spy", exclusive=True)
    await found.bind(f"{deployment.prefix}.commands", "#")
    yield found
    await found.delete()


async def receive(spy: AbstractQueue) -> AbstractIncomingMessage:
    async with asyncio.timeout(10):
        while (message := await spy.get(no_ack=True, fail=False)) is None:
            await asyncio.sleep(0.01)
    return message


async def receive_keys(spy: AbstractQueue, count: int) -> list[str | None]:
    return [(await receive(spy)).routing_key for _ in range(count)]


async def test_the_client_sends_every_command_with_its_slot(
    client: OutplanClient, spy: AbstractQueue
) -> None:
    id_ = str(uuid4())
    create = Request.create(**create_body(id=id_.upper()))
    async for outcome in client.send_many([create, Request.update(id_, name="renamed")]):
        assert outcome.error is None
    await client.delete(id_)
    await client.send(Request.delete(id_))
    names = ["outplan_create", "outplan_update", "outplan_delete", "outplan_delete"]
    assert await receive_keys(spy, 4) == [f"{name}.{id_[-2:]}" for name in names]


async def test_a_create_without_id_and_an_update_of_its_outplan_have_the_same_slot(
    client: OutplanClient, spy: AbstractQueue
) -> None:
    created = await client.create(**create_body(), message_id="c-1")
    await client.update(created.outplan.id, name="renamed")
    slot = derive_outplan_id("c-1")[-2:]
    assert await receive_keys(spy, 2) == [f"outplan_create.{slot}", f"outplan_update.{slot}"]


async def test_a_body_without_a_readable_id_goes_with_the_bare_name(
    deployment: Deployment, worker: WorkerProcess, spy: AbstractQueue
) -> None:
    async with OutplanClient(
        deployment.amqp_url, prefix=deployment.prefix, validate=False
    ) as client:
        await client.send(Request("outplan_update", {"id": "7", "name": "x"}))
        await client.send(Request(cast(CommandName, "outplan_paint"), {"id": str(uuid4())}))
    assert await receive_keys(spy, 2) == ["outplan_update", "outplan_paint"]


async def test_publish_and_import_send_the_slot(
    deployment: Deployment, worker: WorkerProcess, spy: AbstractQueue, tmp_path: Path
) -> None:
    published, imported = str(uuid4()), str(uuid4())
    done = await outplan(deployment, "publish", "delete", published)
    assert done.code == 3, done.err
    file = tmp_path / "plans.jsonl"
    file.write_text(json.dumps(create_body(id=imported)))
    done = await outplan(deployment, "import", str(file))
    assert done.code == 0, done.err
    keys = [f"outplan_delete.{published[-2:]}", f"outplan_create.{imported[-2:]}"]
    assert await receive_keys(spy, 2) == keys


async def test_the_example_that_publishes_by_hand_sends_the_slot(
    deployment: Deployment, worker: WorkerProcess, spy: AbstractQueue, tmp_path: Path
) -> None:
    id_ = str(uuid4())
    program = (sys.executable, str(EXAMPLES / "publish.py"), "--prefix", deployment.prefix)
    environment = {**os.environ, "OUTPLAN_AMQP_URL": deployment.amqp_url}
    for body in (create_body(id=id_), create_body()):
        out = await run_program(
            *program, "outplan_create", json.dumps(body), folder=tmp_path, environment=environment
        )
        assert json.loads(out)["status"] == "accepted"
    assert await receive_keys(spy, 2) == [f"outplan_create.{id_[-2:]}", "outplan_create"]


async def test_a_raw_command_is_published_with_its_routing_key(
    deployment: Deployment, worker: WorkerProcess, spy: AbstractQueue
) -> None:
    id_ = str(uuid4())
    bodies: list[dict[str, str] | bytes] = [
        {"id": id_, "colour": "green"},
        json.dumps({"id": id_}).encode(),
    ]
    async with open_raw_command_publisher(deployment.amqp_url, deployment.prefix, 30) as publisher:
        for body in bodies:
            await publisher.publish(RawCommand.of("outplan_update", body, None, None))
    assert await receive_keys(spy, 2) == [f"outplan_update.{id_[-2:]}", "outplan_update"]


@pytest.mark.parametrize("properties", [{}, {"type": "outplan_update"}], ids=["key", "type"])
async def test_redrive_keeps_the_routing_key_that_a_command_came_with(
    deployment: Deployment,
    worker: WorkerProcess,
    world: World,
    spy: AbstractQueue,
    properties: dict[str, str],
) -> None:
    id_ = str(uuid4())
    slot = id_[-2:]
    for key in (f"outplan_update.{slot}", "outplan_update"):
        reply = await world.ask(key, {"id": id_, "name": f"by {key}"}, message_id=key, **properties)
        assert reply["problem"]["code"] == "not_found"
    await world.ask(f"outplan_create.{slot}", create_body(id=id_))
    sent = await receive_keys(spy, 3)

    code, out, err = await run(deployment, "redrive", "--all")

    assert code == 0, err
    assert [line.split()[:2] for line in out.splitlines()] == [["accepted", "outplan_update"]] * 2
    assert await receive_keys(spy, 2) == sent[:2]


async def test_redrive_sends_a_command_that_came_straight_to_the_queue_with_its_name(
    deployment: Deployment, worker: WorkerProcess, world: World, spy: AbstractQueue
) -> None:
    id_ = str(uuid4())
    body = {"id": id_, "name": "renamed"}
    reply = await world.ask("", body, to_queue=True, type="outplan_update")
    assert reply["problem"]["code"] == "not_found"
    await world.ask("outplan_create", create_body(id=id_))
    await receive(spy)

    code, _, err = await run(deployment, "redrive", "--all")

    assert code == 0, err
    assert await receive_keys(spy, 1) == ["outplan_update"]


async def test_redrive_keeps_the_slot_of_a_command_that_the_broker_dead_lettered(
    deployment: Deployment, worker: WorkerProcess, world: World, spy: AbstractQueue
) -> None:
    id_ = str(uuid4())
    exchange = f"{deployment.prefix}.commands"
    key = f"outplan_create.{id_[-2:]}"
    arguments: FieldTable = {
        "x-message-ttl": 0,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{deployment.prefix}.rejected",
    }
    expiring = await world.channel.declare_queue(
        f"{deployment.prefix}.expiring", exclusive=True, arguments=arguments
    )
    await expiring.bind(exchange, key)
    await world.ask(key, create_body(id=id_), message_id="dead")
    await receive(spy)

    code, out, err = await run(deployment, "redrive", "dead")

    assert code == 0, err
    assert out.split()[:2] == ["duplicate", "outplan_create"]
    assert await receive_keys(spy, 1) == [key]
