"""Run ``outplan rejected redrive`` on real servers: nothing is lost or applied twice."""

import asyncio
import json
import signal
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from outplan.testing import Deployment
from tests.support.commands import run_command
from tests.support.rejects import drain_queue, list_ids, put_rejected, run, world
from tests.support.worker_process import run_worker
from tests.support.world import World, create_body

__all__ = ["world"]  # a fixture, by its name


async def test_a_command_that_is_possible_now_is_accepted_with_its_message_id(
    deployment: Deployment, world: World
) -> None:
    id_ = str(uuid4())
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with run_worker(deployment):
        await world.ask(
            "outplan_update", {"id": id_, "name": "renamed"}, message_id="early",
            correlation_id="mine", headers={"traceparent": trace, "outplan_id": id_},
        )  # fmt: skip
        await world.ask("outplan_create", create_body(id=id_))
        code, out, err = await run(deployment, "redrive", "early")

    assert (code, err) == (0, "1 of 1 message: 1 accepted\n")
    assert out.split() == ["accepted", "outplan_update", "early", "version", "2"]
    await world.wait_for_event("early")
    event = world.events[-1]
    assert event.correlation_id == "mine"
    assert event.headers["traceparent"] == trace
    assert await drain_queue(world) == []


async def test_redrive_publishes_the_original_message_without_what_the_rejection_added(
    deployment: Deployment, world: World
) -> None:
    sent: dict[str, Any] = {
        "headers": {
            "outplan_id": str(uuid4()),
            "half": 0.5,
            "bytes": bytearray(b"\xff"),
            "n": {"a": [1]},
        },
        "priority": 3,
        "app_id": "theirs",
        "correlation_id": "c",
        "content_type": "text/plain",
        "timestamp": 1_764_000_000,
    }
    body = json.dumps(create_body(), indent=3).encode()
    spy = await world.channel.declare_queue(f"{deployment.prefix}.witness.commands", exclusive=True)
    await spy.bind(f"{deployment.prefix}.commands", "#")
    more = {"x-first-death-reason": "expired", "x-original-cc": "x", "x-headers-dropped": True}
    await put_rejected(
        world, "m", body=body, **{**sent, "headers": {**sent["headers"], **more}},
        reply_to="gone", user_id=None,
    )  # fmt: skip
    async with run_worker(deployment):
        code, _, _ = await run(deployment, "redrive", "m")
    assert code == 0

    again = await spy.get(timeout=10)
    assert again is not None
    assert again.body == body
    assert again.routing_key == "outplan_create"
    assert (again.message_id, again.correlation_id, again.app_id) == ("m", "c", "theirs")
    assert (again.priority, again.content_type, again.type) == (3, "text/plain", None)
    assert again.timestamp == datetime.fromtimestamp(1_764_000_000, UTC)
    assert again.headers == sent["headers"]
    assert again.reply_to != "gone"


async def test_an_invalid_command_is_not_sent_and_stays_in_the_queue(
    deployment: Deployment, world: World
) -> None:
    spy = await world.channel.declare_queue(f"{deployment.prefix}.witness.commands", exclusive=True)
    await spy.bind(f"{deployment.prefix}.commands", "#")
    await put_rejected(world, "wrong", body=create_body(dial_timeout=30))
    await put_rejected(world, "right")
    async with run_worker(deployment):
        code, out, err = await run(deployment, "redrive", "--all")

    assert code == 3
    assert "invalid    outplan_create  wrong  /dial_timeout: 30 is less" in out
    assert err == "2 of 2 messages: 1 still invalid, not sent, 1 accepted\n"
    assert [m.message_id for m in await drain_queue(world)] == ["wrong"]
    sent = await spy.get(timeout=10)
    assert sent is not None
    assert sent.message_id == "right"
    assert await spy.get(fail=False) is None


async def test_a_dry_run_reports_which_commands_are_valid_and_sends_nothing(
    deployment: Deployment, world: World
) -> None:
    await put_rejected(world, "wrong", body=create_body(dial_timeout=30))
    await put_rejected(world, "right")
    code, out, err = await run(deployment, "redrive", "--all", "--dry-run", "--json")

    said = {line["message_id"]: line["status"] for line in map(json.loads, out.splitlines())}
    assert (code, said) == (3, {"wrong": "invalid", "right": "valid"})
    assert err == "2 of 2 messages: 1 still invalid, not sent, 1 valid now\n"
    assert await world.count_waiting() == 0
    assert len(await drain_queue(world)) == 2


@pytest.mark.parametrize(("options", "tried"), [([], 1), (["--keep-going"], 3)])
async def test_redrive_stops_when_the_same_problem_comes_back_and_tries_no_command_twice(
    deployment: Deployment, world: World, options: list[str], tried: int
) -> None:
    for n in range(3):
        body = {"id": str(uuid4()), "name": "x"}
        await put_rejected(world, f"id-{n}", code="not_found", name="outplan_update", body=body)
    async with run_worker(deployment):
        code, out, err = await run(deployment, "redrive", "--all", *options)

    assert code == 3
    assert [line.split()[2] for line in out.splitlines()] == [f"id-{n}" for n in range(tried)]
    if tried == 1:
        assert "1 of 3 messages: 1 rejected again; 2 not tried\n" in err
        assert "same code, not_found; --keep-going" in err
    back = [str(message.message_id) for message in await drain_queue(world)]
    assert sorted(back) == ["id-0", "id-1", "id-2"]
    assert back[: 3 - tried] == ["id-1", "id-2"][: 3 - tried]


async def test_another_problem_does_not_stop_a_redrive(
    deployment: Deployment, world: World
) -> None:
    body = {"id": str(uuid4()), "name": "x"}
    await put_rejected(world, "gone", code="invalid_command", name="outplan_update", body=body)
    await put_rejected(world, "right")
    async with run_worker(deployment):
        code, _, err = await run(deployment, "redrive", "--all")

    assert code == 3
    assert err == "2 of 2 messages: 1 rejected again, 1 accepted\n"


async def test_without_a_worker_the_outcome_is_unknown_and_the_message_stays(
    deployment: Deployment, world: World
) -> None:
    await put_rejected(world, "twice")
    code, _, err = await run(deployment, "redrive", "--all", "--timeout", "0.5")
    assert code == 4
    assert "no reply to twice within 0.5 s: the command was sent" in err
    assert await list_ids(deployment) == ["twice"]

    async with run_worker(deployment):
        await world.wait_for_event("twice")
        code, _, err = await run(deployment, "redrive", "--all")
    assert (code, err) == (0, "1 of 1 message: 1 duplicate (took effect before)\n")
    assert len((await world.read_documents())[1]) == 1
    assert await list_ids(deployment) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_a_redrive_that_is_interrupted_and_run_again_applies_each_command_once_and_in_order(
    deployment: Deployment, world: World, how: signal.Signals
) -> None:
    id_ = str(uuid4())
    wanted = [f"id-{n:03}" for n in range(120)]
    async with run_worker(deployment):
        await world.ask("outplan_create", create_body(id=id_))
        for name in wanted:
            body = {"id": id_, "name": name}
            await put_rejected(world, name, code="not_found", name="outplan_update", body=body)
        async with run_command(
            deployment, "rejected", "redrive", "--all", "--rate", "200"
        ) as process:
            await process.wait_for_output("accepted", 20)
            process.process.send_signal(how)
            code = await process.wait()
        assert code == (-9 if how == signal.SIGKILL else 130), process.err
        assert b"Traceback" not in process.err
        # Another command reads the queue in between, and is killed too.
        async with run_command(deployment, "rejected", "list") as process:
            process.process.kill()

        code, _, err = await run(deployment, "redrive", "--all")
        assert code == 0, err

    history = await world.read_history(id_)
    assert [event["_id"] for event in history[1:]] == wanted
    assert await drain_queue(world) == []


async def test_redrive_keeps_its_rate(deployment: Deployment, world: World) -> None:
    for n in range(5):
        await put_rejected(world, f"id-{n}")
    async with run_worker(deployment):
        began = asyncio.get_running_loop().time()
        code, _, _ = await run(deployment, "redrive", "--all", "--rate", "4")
        took = asyncio.get_running_loop().time() - began
    assert code == 0
    assert took > 1
