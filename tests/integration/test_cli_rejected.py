"""Run ``outplan rejected list`` and ``show`` on real servers: they change nothing."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from aio_pika.abc import AbstractIncomingMessage

from outplan.testing import Deployment
from tests.support.commands import run_program
from tests.support.rejects import drain_queue, list_ids, list_rejected, put_rejected, run, world
from tests.support.worker_process import run_worker
from tests.support.world import CUSTOMER, World, create_body

__all__ = ["world"]  # a fixture, by its name

OTHER_CUSTOMER = "9d0e0c8a-7a3b-4a4e-9d0e-1f0b7c115e4d"


async def test_rejected_commands_are_listed_with_their_errors_the_oldest_first(
    deployment: Deployment, world: World
) -> None:
    id_ = str(uuid4())
    async with run_worker(deployment):
        await world.ask("outplan_create", create_body(dial_timeout=30), message_id="too-short")
        await world.ask("outplan_update", {"id": id_, "name": "x"}, message_id="not-there")
        await world.ask("outplan_delete", b"{", message_id="no-json")

    found = await list_rejected(deployment)
    assert [(copy["number"], copy["message_id"], copy["code"]) for copy in found] == [
        (1, "too-short", "invalid_command"),
        (2, "not-there", "not_found"),
        (3, "no-json", "invalid_json"),
    ]
    assert found[0]["detail"].startswith("/dial_timeout: 30 is less than the minimum")
    assert found[0]["customer_id"] == CUSTOMER
    assert found[1]["outplan_id"] == id_
    assert found[2]["command"] == "outplan_delete"
    assert {copy["rejected_by"] for copy in found} == {"worker"}


async def test_a_pipe_gets_whole_lines_without_colours_and_standard_error_the_counts(
    deployment: Deployment, world: World
) -> None:
    for n in range(3):
        await put_rejected(world, f"id-{n}", problem={"detail": "long " * 40})
    await put_rejected(world, "id-3", code="not_found")
    code, out, err = await run(deployment, "list")

    assert code == 0
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0].split()[0] == "n"
    assert [line.split()[6] for line in lines[1:]] == ["id-0", "id-1", "id-2", "id-3"]
    assert "long " * 40 in lines[1] + " "
    assert err == "4: 3 invalid_command, 1 not_found\n"


async def test_a_closed_standard_output_is_reported(deployment: Deployment, world: World) -> None:
    await put_rejected(world, "mine")
    program = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "outplan"]
    arguments = ["rejected", "list", "--json"]
    async with run_program([*program, *arguments], deployment.environment()) as listing:
        assert await listing.wait() == 1
    assert listing.err == b"outplan: standard output: Bad file descriptor\n"
    assert await list_ids(deployment) == ["mine"]


async def test_a_terminal_gets_lines_that_fit(deployment: Deployment, world: World) -> None:
    await put_rejected(world, str(uuid4()), problem={"detail": "電話 " * 100})
    _, out, _ = await run(deployment, "list", terminal=True, NO_COLOR="1")

    lines = out.splitlines()
    assert len(lines) == 2
    assert all(len(line.encode("utf-16-le")) // 2 <= 120 for line in lines)
    assert lines[1].endswith("…")


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], ["a", "b", "c", "d"]),
        (["--code", "not_found"], ["b"]),
        (["--code", "not_found", "--code", "invalid_json"], ["b", "d"]),
        (["--older-than", "1h"], ["a", "b"]),
        (["--newer-than", "1h30m"], ["c", "d"]),
        (["--older-than", "1h", "--newer-than", "1d1h"], ["b"]),
        (["--customer-id", OTHER_CUSTOMER], ["c"]),
        (["--customer-id", OTHER_CUSTOMER.upper()], ["c"]),
        (["--outplan-id", "0192f0c1-7a51-7b7e-a2f5-d7a0e9a4b1c3"], ["b"]),
        (["--message-id", "a", "--message-id", "d"], ["a", "d"]),
        (["--number", "2", "--number", "3"], ["b", "c"]),
        (["--code", "too_large"], []),
        (["--limit", "2"], ["a", "b"]),
        (["--limit", "0"], []),
    ],
)
async def test_filters_select_messages(
    deployment: Deployment, world: World, conditions: list[str], expected: list[str]
) -> None:
    update = {"id": "0192F0C1-7A51-7B7E-A2F5-D7A0E9A4B1C3", "name": "x"}
    await put_rejected(world, "a", age=timedelta(days=2))
    await put_rejected(world, "b", age=timedelta(days=1), code="not_found", name="outplan_update",
              body=update)  # fmt: skip
    await put_rejected(world, "c", body=create_body(customer_id=OTHER_CUSTOMER))
    await put_rejected(world, "d", code="invalid_json", body=b"{")

    assert await list_ids(deployment, *conditions) == expected


async def test_reading_the_queue_keeps_its_messages_and_their_order(
    deployment: Deployment, world: World
) -> None:
    wanted = [f"id-{n}" for n in range(5_000)]
    for start in range(0, 5_000, 500):
        await asyncio.gather(*(put_rejected(world, id_) for id_ in wanted[start : start + 500]))

    # More messages than one prefetch, so several consumers read them.
    before = sorted(await list_ids(deployment))
    await run(deployment, "list", "--limit", "1")
    await run(deployment, "show", "17")
    await run(deployment, "redrive", "--all", "--dry-run")

    found = [str(message.message_id) for message in await drain_queue(world)]
    assert found == wanted
    assert before == sorted(wanted)


async def test_messages_in_flight_to_another_consumer_are_mentioned(
    deployment: Deployment, world: World
) -> None:
    await put_rejected(world, "a")
    async with hold_messages(world) as taken:
        await taken.get()
        code, out, err = await run(deployment, "list")

    assert (code, out) == (0, "")
    assert "another consumer reads the queue" in err
    assert await list_ids(deployment) == ["a"]


@asynccontextmanager
async def hold_messages(world: World) -> AsyncIterator["asyncio.Queue[AbstractIncomingMessage]"]:
    """Consume every message without an ack, as another operator does."""
    channel = await world.connection.channel()
    messages: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    rejected = await channel.get_queue(f"{world.deployment.prefix}.rejected")
    await rejected.consume(messages.put)
    yield messages
    await channel.close()


async def test_a_message_is_shown_with_every_validation_error_and_its_body(
    deployment: Deployment, world: World
) -> None:
    async with run_worker(deployment):
        await world.ask("outplan_create", create_body(dial_timeout=30, colour=1), message_id="two")
    by_id, by_number = await run(deployment, "show", "two"), await run(deployment, "show", "1")

    assert by_id[0] == by_number[0] == 0
    assert "/dial_timeout: 30 is less than the minimum of 1000" in by_id[1]
    assert "/colour: is not a known field" in by_id[1]
    assert "now           invalid: " in by_id[1]
    assert '\n  "dial_timeout": 30,\n' in by_id[1]
    assert by_id[1].splitlines()[2:] == by_number[1].splitlines()[2:]

    _, out, _ = await run(deployment, "show", "two", "--json")
    shown = json.loads(out)
    assert [error["pointer"] for error in shown["problem"]["errors"]] == [
        "/dial_timeout",
        "/colour",
    ]
    assert json.loads(shown["body"])["colour"] == 1
    assert shown["valid_now"] is False
    assert shown["headers"]["x-original-routing-key"] == "outplan_create"


ODD: list[dict[str, Any]] = [
    {"body": b"\xff\xfe"},
    {"body": b""},
    {"body": b"[" * 5_000},
    {"body": b'{"id": 5, "customer_id": ["x"]}'},
    {"headers": {"x-problem": "{", "x-problem-code": 7, "x-rejected-at": "yesterday"}},
    {"headers": {"x-problem": "[]", "x-rejected-at": 12}},
    {"headers": {"x-problem": '{"detail": 5, "errors": [1, {"pointer": null}, {}]}'}},
    {"headers": {"x-death": "what", "x-first-death-reason": "delivery_limit"}},
    {"headers": {"x-death": [{"time": "t", "routing-keys": 5, "queue": []}]}},
    {"headers": {"x-death": [5], "x-original-routing-key": {}}},
    {
        "headers": {
            "nested": {
                "a": [1, {"b": bytearray(b"\xff")}],
                "time": datetime(1970, 1, 1, tzinfo=UTC),
            }
        }
    },
    {"headers": {"outplan_id": ["no", "text"]}, "body": b"{"},
    {"type": "\x1b[2J\x07", "problem": {"detail": "\x1b]0;mine\x07\u202e"}},
]


async def test_malformed_messages_can_be_shown_redriven_and_discarded(
    deployment: Deployment, world: World
) -> None:
    for n, what in enumerate(ODD):
        await put_rejected(world, f"odd-{n}", **{"body": b"no json", **what})
    # No library can read this message: see docs/adr/0008.
    await world.send_raw("x", b"{}", message_id=b"\xff\xfe", timestamp=2**63 - 1, reply_to=None)
    copies = await world.channel.get_queue(f"{deployment.prefix}.rejected")
    async with run_worker(deployment):
        while (await copies.declare()).message_count != len(ODD) + 1:
            await asyncio.sleep(0.01)

    found = await list_rejected(deployment)
    assert len(found) == len(ODD) + 1
    assert found[-1]["message_id"] == "\\xff\\xfe"
    for copy in found:
        for form in ([], ["--json"]):
            how = {"terminal": True, "NO_COLOR": "1"}
            code, out, _ = await run(deployment, "show", str(copy["number"]), *form, **how)
            assert code == 0
            assert [c for c in out if not c.isprintable() and c not in "\r\n"] == []
    code, out, _ = await run(deployment, "redrive", "--all")
    assert code == 3
    assert {line.split()[0] for line in out.splitlines()} == {"invalid"}
    code, _, _ = await run(deployment, "discard", "--all", "--yes")
    assert code == 0
    assert await drain_queue(world) == []


async def test_commands_that_the_broker_dead_letters_are_listed_and_redriven(
    deployment: Deployment, world: World
) -> None:
    await world.send("outplan_create", create_body(), message_id="late", expiration=0.001)
    commands = await world.channel.get_queue(f"{deployment.prefix}.rejected")
    while not (await commands.declare()).message_count:
        await asyncio.sleep(0.01)

    (copy,) = await list_rejected(deployment)
    assert (copy["code"], copy["rejected_by"], copy["command"]) == (
        "expired", "broker", "outplan_create",
    )  # fmt: skip
    assert f"{deployment.prefix}.commands" in copy["detail"]
    age = datetime.now(UTC) - datetime.fromisoformat(f"{copy['rejected_at']}+00:00")
    assert timedelta(-1) < age < timedelta(seconds=60)

    async with run_worker(deployment):
        code, out, err = await run(deployment, "redrive", "--code", "expired")
    assert (code, err) == (0, "1 of 1 message: 1 accepted\n")
    assert out.split() == ["accepted", "outplan_create", "late", "version", "1"]
    assert (await world.wait_for_event("late"))["version"] == 1
