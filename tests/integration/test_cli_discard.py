"""Run ``outplan rejected discard`` on real servers, and use every subcommand wrongly."""

import asyncio
import fcntl
import json
import os
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from outplan.testing import Deployment
from tests.support.rejects import drain_queue, list_ids, put_rejected, run, world
from tests.support.world import World, create_body

__all__ = ["world"]  # a fixture, by its name


@asynccontextmanager
async def open_terminal(
    deployment: Deployment, *arguments: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Run a command at a terminal; the descriptor is its keyboard."""
    master, slave = os.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "outplan", "rejected", *arguments,
        stdin=slave, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=deployment.environment(), preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(slave)
    try:
        yield process, master
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        os.close(master)


async def read_question(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async with asyncio.timeout(30):
        return (await process.stderr.readuntil(b"[y/N] ")).decode()


@pytest.mark.parametrize(
    ("typed", "code", "left"),
    [
        (b"y\n", 0, ["b"]),
        (b"YES\n", 0, ["b"]),
        (b"n\n", 1, ["a", "b"]),
        (b"\n", 1, ["a", "b"]),
        (b"\x04", 1, ["a", "b"]),
        (b"\x03", 130, ["a", "b"]),
    ],
)
async def test_discard_asks_first_at_a_terminal(
    deployment: Deployment, world: World, typed: bytes, code: int, left: list[str]
) -> None:
    await put_rejected(world, "a")
    await put_rejected(world, "b", code="not_found")
    async with open_terminal(deployment, "discard", "--code", "invalid_command") as (
        process,
        keyboard,
    ):
        assert "Discard 1 message for ever?" in await read_question(process)
        os.write(keyboard, typed)
        async with asyncio.timeout(30):
            _, err = await process.communicate()
        assert process.returncode == code, err
        assert b"Traceback" not in err
    assert [m.message_id for m in await drain_queue(world)] == left


async def test_discard_killed_while_it_asks_removes_nothing(
    deployment: Deployment, world: World
) -> None:
    await put_rejected(world, "a")
    async with open_terminal(deployment, "discard", "--all") as (process, _):
        await read_question(process)
        _, _, err = await run(deployment, "list")
        assert "another consumer reads the queue" in err
        process.kill()
        await process.wait()
    assert await list_ids(deployment) == ["a"]


async def test_discard_without_a_terminal_needs_yes(deployment: Deployment, world: World) -> None:
    await put_rejected(world, "a")
    code, _, err = await run(deployment, "discard", "--all")
    assert (code, "--yes" in err) == (2, True)
    assert await list_ids(deployment) == ["a"]


async def test_discard_saves_messages_whole_before_it_removes_them(
    deployment: Deployment, world: World, tmp_path: Path
) -> None:
    file = tmp_path / "dropped.jsonl"
    file.write_text('{"before": true}\n')
    await put_rejected(world, "a", body=b"\xff", headers={"h": 0.5}, correlation_id="c")
    await put_rejected(world, "b")
    code, out, err = await run(
        deployment, "discard", "a", "b", "--yes", "--json", "--save", str(file)
    )

    assert code == 0
    assert err.endswith(f"discarded 2 messages; saved in {file}\n")
    assert [json.loads(line)["message_id"] for line in out.splitlines()] == ["a", "b"]
    before, first, second = map(json.loads, file.read_text().splitlines())
    assert before == {"before": True}
    assert (first["body_base64"], first["headers"]["h"]) == ("/w==", 0.5)
    assert first["properties"]["correlation_id"] == "c"
    assert json.loads(second["body"]) == create_body()
    assert await drain_queue(world) == []


async def test_messages_that_cannot_be_saved_are_not_discarded(
    deployment: Deployment, world: World, tmp_path: Path
) -> None:
    await put_rejected(world, "a")
    missing = str(tmp_path / "nowhere" / "file")
    code, _, err = await run(deployment, "discard", "a", "--yes", "--save", missing)
    assert (code, "nowhere" in err) == (1, True)
    assert await list_ids(deployment) == ["a"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["list", "--code", "notfound"], 2, "none of"),
        (["list", "--older-than", "1 fortnight"], 2, "not an age such as"),
        (["list", "--older-than", "99999999999999w"], 2, "too long an age"),
        (["list", "--customer-id", "5e4d"], 2, "valid UUID"),
        (["list", "--limit", "-1"], 2, "--limit"),
        (["list", "--amqp-url", "http://localhost/"], 2, "amqp://"),
        (["list", "--message-id", "nobody"], 1, "no message has the message_id nobody"),
        (["list", "--number", "9"], 1, "there is no number 9: 1 message in the queue"),
        (["show"], 2, "Missing argument"),
        (["show", "nobody"], 1, "neither a message_id nor a number"),
        (["show", "0"], 1, "neither a message_id nor a number"),
        (["redrive"], 2, "no messages selected"),
        (["redrive", "--all", "a"], 2, "--all cannot be combined"),
        (["redrive", "--all", "--rate", "0"], 2, "--rate"),
        (["redrive", "a", "nobody"], 1, "no message has the message_id nobody"),
        (["discard", "--yes"], 2, "no messages selected"),
        (["list", "--prefix", "nowhere-at-all"], 1, "check --prefix, or start a worker"),
        (["list", "--amqp-url", "amqp://127.0.0.1:1/"], 1, "127.0.0.1"),
    ],
)
async def test_wrong_usage_ends_with_a_message_and_an_exit_code(
    deployment: Deployment, world: World, arguments: list[str], code: int, words: str
) -> None:
    await put_rejected(world, "a")
    found, out, err = await run(deployment, *arguments, NO_COLOR="1", COLUMNS="200")
    assert (found, out) == (code, ""), err
    assert words in err
    assert await list_ids(deployment) == ["a"]


async def test_an_empty_queue_is_no_error(deployment: Deployment, world: World) -> None:
    for arguments in (["list"], ["redrive", "--all"], ["discard", "--all", "--yes"]):
        code, out, err = await run(deployment, *arguments)
        assert (code, out, err) == (0, "", "no rejected messages\n")


async def test_all_of_many_are_removed_from_between_others(
    deployment: Deployment, world: World
) -> None:
    """Acks for runs of messages must not take those between them along."""
    codes = ["invalid_command", "not_found", "version_conflict"] * 300
    await asyncio.gather(*(put_rejected(world, str(n), code=code) for n, code in enumerate(codes)))
    chosen = ["--code", "invalid_command", "--code", "version_conflict"]

    code, _, err = await run(deployment, "discard", *chosen, "--yes")

    assert code == 0, err
    left = {str(n) for n, code in enumerate(codes) if code == "not_found"}
    assert set(await list_ids(deployment)) == left
