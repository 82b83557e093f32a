"""Run ``outplan watch`` in terminals and pipes, on a real broker."""

import asyncio
import json
import os
import sys
from typing import Any
from uuid import uuid4

import pytest

from outplan.testing import Deployment
from outplan.testing.servers import Servers
from tests.support.commands import COLUMNS, CommandProcess, run_command, run_program
from tests.support.events import OUTPLAN_ID, encode_event, publish_events
from tests.support.worker_process import WorkerProcess
from tests.support.world import CUSTOMER, World, create_body, open_world

OTHER = "0b7c1199-7a3b-4a4e-9d0e-0c8a1f5e4d9c"


async def run_lifecycle(world: World, **fields: Any) -> str:
    """Create, change and delete an outplan, and return its id."""
    created = await world.ask("outplan_create", create_body(**fields))
    id_: str = created["outplan"]["id"]
    await world.ask("outplan_update", {"id": id_, "dial_timeout": 20_000, "max_try_count_0": 3})
    await world.ask("outplan_delete", {"id": id_})
    return id_


def types(watching: CommandProcess) -> list[str]:
    return [json.loads(line)["type"] for line in watching.out.splitlines()]


async def test_a_pipe_gets_each_event_on_a_line_byte_for_byte_as_published(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    async with run_command(deployment, "watch", "--limit", "3") as watching:
        await watching.wait_for_error("watching")
        await run_lifecycle(world, name="Büro", detail="\u202e")
        assert await watching.wait() == 0

    await world.wait_for(lambda: len(world.events) == 3)
    assert watching.out.splitlines() == [event.body for event in world.events]
    assert watching.err.count(b"\n") == 1


async def test_a_terminal_shows_a_table_with_what_changed(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    async with run_command(
        deployment, "watch", "--limit", "3", terminal=True, NO_COLOR="1"
    ) as watching:
        await watching.wait_for_error("watching")
        id_ = await run_lifecycle(world, name="evenings")
        assert await watching.wait() == 0

    lines = watching.out.decode().splitlines()
    assert lines[1].split() == ["UTC", "event", "version", "outplan", "name"]
    shown = [line[8:] for line in lines[2:]]
    assert shown == [
        f"  created        1  {id_}  evenings",
        f"  customer_id {CUSTOMER}",
        "  source tel +15559876543",
        "  dial_timeout 30000  try_interval 60000  max_try_count_0…4 0 0 0 0 0",
        f"  updated        2  {id_}  evenings",
        "  dial_timeout 30000 → 20000",
        "  max_try_count_0 0 → 3",
        f"  deleted        3  {id_}  evenings",
    ]


async def test_a_narrow_terminal_shows_the_id_whole_and_the_name_below(
    deployment: Deployment, world: World
) -> None:
    program = ["env", "COLUMNS=60", sys.executable, "-m", "outplan", "watch", "--limit", "1"]
    variables = deployment.environment(TERM="xterm", NO_COLOR="1")
    async with run_program(program, variables, terminal=True) as watching:
        await watching.wait_for_error("watching")
        await publish_events(world, encode_event(1))
        await watching.wait()

    _, head, row, name, *_ = watching.out.decode().splitlines()
    assert row.endswith(f"  created    1  {OUTPLAN_ID}")
    assert name == " " * 10 + "version 1"
    assert max(len(head), len(row)) <= 60


async def test_a_dumb_terminal_is_used_to_its_full_width(
    deployment: Deployment, world: World
) -> None:
    async with run_command(
        deployment, "watch", "--limit", "1", terminal=True, TERM="dumb"
    ) as watching:
        await watching.wait_for_error("watching")
        await publish_events(world, encode_event(1, name="n" * 200))
        await watching.wait()

    lines = watching.out.decode().splitlines()
    assert len(next(line for line in lines if "nnn" in line)) == COLUMNS


async def test_only_the_new_value_is_shown_after_missed_events(
    deployment: Deployment, world: World
) -> None:
    async with run_command(deployment, "watch", "--limit", "3", terminal=True) as watching:
        await watching.wait_for_error("watching")
        await publish_events(world, encode_event(2), encode_event(3), encode_event(6))
        assert await watching.wait() == 0

    names = [
        line.split(" name ")[1] for line in watching.out.decode().splitlines() if " name " in line
    ]
    assert names == ['"version 2"', '"version 2" → "version 3"', '"version 6"']
    assert f"missed versions 4 to 5 of outplan {OUTPLAN_ID}" in watching.err.decode()


async def test_no_color_turns_off_every_escape_sequence(
    deployment: Deployment, world: World
) -> None:
    async with (
        run_command(deployment, "watch", "--limit", "1", terminal=True) as coloured,
        run_command(deployment, "watch", "--limit", "1", terminal=True, NO_COLOR="1") as plain,
    ):
        for watching in (coloured, plain):
            await watching.wait_for_error("watching")
        await publish_events(world, encode_event(1))
        await coloured.wait()
        await plain.wait()

    assert b"\x1b[32mcreated" in coloured.out
    assert b"\x1b" not in plain.out
    assert b"created" in plain.out


@pytest.mark.parametrize("form", [[], ["--json"]])
async def test_text_from_other_people_cannot_steer_a_terminal(
    deployment: Deployment, world: World, form: list[str]
) -> None:
    evil = "\x1b]0;mine\x07 \x9b31m \u202e\r\x7f"
    source = {"type": "line", "target": "1", "target_name": evil, "name": "", "detail": evil}
    events = [
        encode_event(1, detail=evil, source=source),
        encode_event(2, detail=evil, source=source),
    ]
    events[1]["changed"] = ["detail", "source"]
    async with run_command(
        deployment, "watch", "--limit", "2", *form, terminal=True, NO_COLOR="1"
    ) as watching:
        await watching.wait_for_error("watching")
        await publish_events(world, evil.encode(), *events)
        assert await watching.wait() == 0

    for text in (watching.out.decode(), watching.err.decode()):
        assert [c for c in text if not c.isprintable() and c not in "\r\n"] == []
        assert "\r" not in text.replace("\r\n", "")
    if form:
        assert [json.loads(line) for line in watching.out.splitlines()] == events
    assert b"cannot read a message with routing key outplan_updated." in watching.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--kind", "created", "--kind", "deleted"], ["outplan_created", "outplan_deleted"]),
        (["--kind", "updated"], ["outplan_updated"]),
        (
            ["--customer-id", CUSTOMER.upper()],
            [f"outplan_{k}d" for k in ("create", "update", "delete")],
        ),
    ],
)
async def test_events_are_filtered_by_kind_and_customer(
    deployment: Deployment,
    world: World,
    worker: WorkerProcess,
    options: list[str],
    expected: list[str],
) -> None:
    async with run_command(
        deployment, "watch", *options, "--limit", str(len(expected))
    ) as watching:
        await watching.wait_for_error("watching")
        await run_lifecycle(world, customer_id=OTHER) if "--customer-id" in options else None
        await run_lifecycle(world)
        assert await watching.wait() == 0

    assert types(watching) == expected
    assert OTHER.encode() not in watching.out


async def test_one_outplan_can_be_watched(
    deployment: Deployment, world: World, worker: WorkerProcess
) -> None:
    id_ = str(uuid4())
    async with run_command(deployment, "watch", "--outplan-id", id_, "--limit", "1") as watching:
        await watching.wait_for_error("watching")
        await run_lifecycle(world)
        await world.ask("outplan_create", create_body(id=id_))
        assert await watching.wait() == 0

    assert json.loads(watching.out)["data"]["id"] == id_


async def test_a_durable_queue_continues_where_the_last_watch_ended(
    deployment: Deployment, world: World, queue: str
) -> None:
    async with run_command(deployment, "watch", "--queue", queue, "--limit", "2") as first:
        await first.wait_for_error("watching")
        await publish_events(world, *map(encode_event, range(1, 6)))
        assert await first.wait() == 0
    async with run_command(deployment, "watch", "--queue", queue, "--limit", "3") as second:
        assert await second.wait() == 0

    lines = (first.out + second.out).splitlines()
    assert [json.loads(line)["version"] for line in lines] == [1, 2, 3, 4, 5]


async def test_ctrl_c_ends_watch_without_a_message(deployment: Deployment, world: World) -> None:
    async with run_command(deployment, "watch") as watching:
        await watching.wait_for_error("watching")
        assert await watching.interrupt() == 130

    assert (watching.out, watching.err.count(b"\n")) == (b"", 1)


async def test_watch_ends_without_a_message_when_its_reader_is_gone(
    deployment: Deployment, world: World
) -> None:
    read, write = os.pipe()
    async with run_command(deployment, "watch", stdout=write) as watching:
        os.close(write)
        await watching.wait_for_error("watching")
        await publish_events(world, encode_event(1))
        with os.fdopen(read) as pipe:
            line = await asyncio.to_thread(pipe.readline)
        assert await watching.wait() == 0

    assert json.loads(line)["version"] == 1
    assert watching.err.count(b"\n") == 1


async def test_a_full_disk_is_reported(deployment: Deployment, world: World) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    async with run_command(deployment, "watch", stdout=full) as watching:
        os.close(full)
        await watching.wait_for_error("watching")
        await publish_events(world, encode_event(1))
        assert await watching.wait() == 1

    assert watching.err.endswith(b"outplan: standard output: No space left on device\n")


async def test_a_slow_reader_does_not_cost_the_connection(
    deployment: Deployment, world: World
) -> None:
    # RabbitMQ closes the connection after two missed heartbeats.
    often = f"{deployment.amqp_url}?heartbeat=1"
    read, write = os.pipe()
    async with run_command(
        deployment, "watch", "--amqp-url", often, "--limit", "200", stdout=write
    ) as watching:
        os.close(write)
        await watching.wait_for_error("watching")
        await publish_events(world, *(encode_event(n, detail="x" * 2_000) for n in range(1, 201)))
        await asyncio.sleep(5)  # Stop reading for longer than that.
        with os.fdopen(read) as pipe:
            reading = asyncio.create_task(asyncio.to_thread(pipe.readlines))
            try:
                assert await watching.wait() == 0
            finally:
                await watching.kill()  # The reader ends with it.
                lines = await reading

    assert len(lines) == 200
    assert watching.err.count(b"\n") == 1


async def test_watch_survives_a_restart_of_the_broker_and_reports_it(
    servers: Servers, deployment: Deployment, world: World, worker: WorkerProcess, queue: str
) -> None:
    async with (
        run_command(deployment, "watch", "--limit", "4") as passing,
        run_command(deployment, "watch", "--queue", queue, "--limit", "4") as durable,
    ):
        for watching in (passing, durable):
            await watching.wait_for_error("watching")
        await world.ask("outplan_create", create_body())
        for watching in (passing, durable):
            await watching.wait_for_output("outplan_created")
        await asyncio.to_thread(servers.rabbitmq.restart)
        await passing.wait_for_error("events published meanwhile are lost", seconds=60)
        await durable.wait_for_error("reconnected; no event was missed", seconds=60)
        async with open_world(deployment) as again:
            await run_lifecycle(again)
        assert await passing.wait() == 0
        assert await durable.wait() == 0

    for watching in (passing, durable):
        assert b"no events for now: " in watching.err
        assert b"Traceback" not in watching.err


async def test_watch_waits_for_a_broker_and_a_service_that_are_not_there_yet(
    deployment: Deployment,
) -> None:
    nobody = "amqp://127.0.0.1:1/"
    async with (
        run_command(deployment, "watch") as too_early,
        run_command(deployment, "watch", "--amqp-url", nobody) as nowhere,
    ):
        await too_early.wait_for_error(f"no exchange '{deployment.prefix}.events'")
        await nowhere.wait_for_error("nothing listens at 127.0.0.1:1; ")
        assert await nowhere.interrupt() == 130


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--kind", "changed"], "--kind"),
        (["--limit", "0"], "--limit"),
        (["--customer-id", "7"], "--customer-id"),
        (["--queue", ""], "--queue"),
        (["--queue", "\udcff"], "--queue"),
        (["--amqp-url", "localhost"], "--amqp-url"),
        (["everything"], "everything"),
    ],
)
async def test_wrong_usage_ends_with_exit_code_2(
    deployment: Deployment, arguments: list[str], complaint: str
) -> None:
    async with run_command(deployment, "watch", *arguments) as wrong:
        assert await wrong.wait() == 2

    assert complaint in wrong.err.decode()
    assert "Traceback" not in wrong.err.decode()


async def test_a_refusal_by_the_broker_is_reported_in_one_line(
    deployment: Deployment, world: World
) -> None:
    async with run_command(deployment, "watch", "--queue", "amq.mine") as refused:
        assert await refused.wait() == 1

    assert refused.err.startswith(b"outplan: RabbitMQ refuses: ACCESS_REFUSED")
    assert refused.err.count(b"\n") == 1
