"""Say at once what keeps each command, the client and the worker from RabbitMQ, and what to do."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from outplan.client import NoExchange, OutplanClient, Refused, Unreachable, events
from outplan.mongodb.store import MongoStore
from outplan.testing import Deployment
from outplan.testing.servers import reserve_ports
from tests.support.commands import CommandProcess, run_command
from tests.support.plain_words import find_foreign_words
from tests.support.strange_servers import make_untrusted_context, serve
from tests.support.world import CUSTOMER, World

CREATE = (
    "publish", "create", "--customer-id", CUSTOMER, "--name", "evenings",
    "--source", "tel:+15559876543", "--max-try-count-0", "1",
)  # fmt: skip
COMMANDS: dict[str, tuple[str, ...]] = {
    "publish": CREATE,
    "import": ("import", "FILE"),
    "watch": ("watch",),
    "list": ("rejected", "list"),
    "show": ("rejected", "show", "1"),
    "redrive": ("rejected", "redrive", "--all"),
    "discard": ("rejected", "discard", "--all", "--yes"),
    "check": ("check",),
    "partitions": ("partitions", "2"),
    "run": ("run",),
}
# A refusal is told as soon as the program has started and connected.
AT_ONCE = 10


@asynccontextmanager
async def run(
    deployment: Deployment, name: str, folder: Path, url: str, **environment: str
) -> AsyncIterator["Told"]:
    file = folder / "plans.jsonl"
    file.write_text('{"name": "x"}\n')
    arguments = [str(file) if each == "FILE" else each for each in COMMANDS[name]]
    settings: dict[str, Any] = {"OUTPLAN_AMQP_URL": url, "OUTPLAN_HTTP_PORT": "0", "COLUMNS": "300"}
    if name == "partitions" and not environment:
        await write_layout(deployment)
    async with run_command(deployment, *arguments, **{**settings, **environment}) as process:
        yield Told(process)


async def write_layout(deployment: Deployment) -> None:
    """Write what the first worker writes; outplan partitions needs it."""
    store = MongoStore(deployment.mongo_url, deployment.database)
    await store.open_registry(deployment.prefix).ensure_layout(1)
    await store.close()


class Told:
    """What a command says, on either stream."""

    def __init__(self, process: CommandProcess) -> None:
        self.process = process

    @property
    def text(self) -> str:
        return (self.process.out + self.process.err).decode()

    async def wait_for(self, words: str) -> None:
        """Wait until the command says this; fail when it has ended or the time is up."""
        waiting = [
            asyncio.create_task(wait(words, seconds=AT_ONCE))
            for wait in (self.process.wait_for_output, self.process.wait_for_error)
        ]
        try:
            for each in asyncio.as_completed(waiting):
                try:
                    return await each
                except (AssertionError, TimeoutError):
                    continue
            pytest.fail(f"it never says {words!r}: {self.text}")
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            assert not find_foreign_words(self.text), self.text

    async def ends_with(self, code: int) -> None:
        assert await self.process.wait(AT_ONCE) == code, self.text


# Who waits for a server that may come, instead of ending.
WAITING = {"publish", "import", "watch", "partitions", "run"}


@pytest.mark.parametrize("name", COMMANDS)
async def test_a_port_that_nobody_listens_on_is_told(
    deployment: Deployment, world: World, name: str, tmp_path: Path
) -> None:
    with reserve_ports(1) as (port,):
        pass
    async with run(deployment, name, tmp_path, f"amqp://127.0.0.1:{port}/") as told:
        await told.wait_for(f"nothing listens at 127.0.0.1:{port}")
        await told.wait_for("OUTPLAN_AMQP_URL")
        if name not in WAITING:
            await told.ends_with(1)


@pytest.mark.parametrize("name", COMMANDS)
async def test_wrong_credentials_are_told_and_end_the_command(
    deployment: Deployment, world: World, name: str, tmp_path: Path
) -> None:
    url = str(URL(deployment.amqp_url).with_password("not-it"))
    async with run(deployment, name, tmp_path, url) as told:
        await told.wait_for("user and password")
        await told.ends_with(1)
        assert "not-it" not in told.text


# One of each way to connect.
WAYS = ("publish", "watch", "list", "check", "partitions", "run")


@pytest.mark.parametrize("name", WAYS)
async def test_a_missing_virtual_host_is_told_and_ends_the_command(
    deployment: Deployment, world: World, name: str, tmp_path: Path
) -> None:
    url = str(URL(deployment.amqp_url).with_path("/nowhere"))
    async with run(deployment, name, tmp_path, url) as told:
        await told.wait_for("vhost nowhere not found")
        await told.wait_for("virtual host")
        await told.ends_with(1)


HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("name", WAYS)
async def test_a_server_that_speaks_http_is_told_and_ends_the_command(
    deployment: Deployment, world: World, name: str, tmp_path: Path
) -> None:
    async with (
        serve(HTTP) as port,
        run(deployment, name, tmp_path, f"amqp://127.0.0.1:{port}/") as told,
    ):
        await told.wait_for("does not speak AMQP 0-9-1")
        await told.wait_for("HTTP/1.1 400")
        await told.ends_with(1)


@pytest.mark.parametrize("name", ["publish", "list", "run"])
@pytest.mark.parametrize(
    ("greeting", "words"),
    [(None, "says nothing"), (b"", "closes each connection at once")],
    ids=["silent", "closing"],
)
async def test_a_server_that_does_not_greet_is_told(
    deployment: Deployment,
    world: World,
    name: str,
    greeting: bytes | None,
    words: str,
    tmp_path: Path,
) -> None:
    """It may be a proxy whose RabbitMQ is not up yet: a worker and a client wait for it."""
    async with (
        serve(greeting) as port,
        run(deployment, name, tmp_path, f"amqp://127.0.0.1:{port}/") as told,
    ):
        await told.wait_for(words)
        await told.wait_for("is it RabbitMQ?")
        if name not in WAITING:
            await told.ends_with(1)


@pytest.mark.parametrize(
    ("name", "words", "code"),
    [
        ("publish", "no exchange 'elsewhere.commands'", 1),
        ("import", "no exchange 'elsewhere.commands'", 1),
        ("watch", "no exchange 'elsewhere.events'", None),
        ("list", "no queue elsewhere.rejected", 1),
        ("redrive", "no queue elsewhere.rejected", 1),
        ("partitions", "no worker has started with the prefix elsewhere", 1),
    ],
)
async def test_a_prefix_that_no_worker_has_run_with_is_told(
    deployment: Deployment,
    world: World,
    name: str,
    words: str,
    code: int | None,
    tmp_path: Path,
) -> None:
    settings = {"OUTPLAN_PREFIX": "elsewhere", "OUTPLAN_MONGO_DATABASE": "elsewhere"}
    async with run(deployment, name, tmp_path, deployment.amqp_url, **settings) as told:
        await told.wait_for(words)
        if code is not None:
            await told.ends_with(code)
            assert told.text.count("\n") <= 2, told.text


async def test_the_client_raises_at_once_what_waiting_does_not_mend(
    deployment: Deployment, world: World, tmp_path: Path
) -> None:
    url = URL(deployment.amqp_url)
    started = time.monotonic()
    async with (
        serve(HTTP) as http,
        serve(b"", context=make_untrusted_context(tmp_path)) as tls,
        serve(b"\x15\x03\x03\x00\x02\x02\x28") as alert,
    ):
        for wrong, words in (
            (url.with_password("not-it"), "user and password"),
            (url.with_path("/nowhere"), "vhost nowhere not found"),
            (url.with_port(http), "does not speak AMQP 0-9-1"),
            (url.with_port(tls).with_scheme("amqps"), "is not trusted"),
            (url.with_port(alert), "speaks TLS; use amqps://"),
            (url.with_port(http).with_scheme("amqps"), "does not speak TLS"),
            (url.with_scheme("amqps").with_query(cafile="/no/such.pem"), "cannot be read"),
        ):
            with pytest.raises(Refused, match=words):
                async with OutplanClient(str(wrong), prefix=deployment.prefix, timeout=60):
                    pass
            with pytest.raises(Refused, match=words):
                async with events(str(wrong), prefix=deployment.prefix):
                    pass
    with pytest.raises(NoExchange, match=r"no exchange 'elsewhere\.commands'.*has a worker run"):
        async with OutplanClient(str(url), prefix="elsewhere", timeout=60):
            pass
    assert issubclass(NoExchange, Unreachable)
    assert time.monotonic() - started < AT_ONCE


async def test_a_client_takes_a_url_with_a_line_break(deployment: Deployment, world: World) -> None:
    async with (
        OutplanClient(f"{deployment.amqp_url}\r\n", prefix=deployment.prefix, timeout=5),
        events(f" {deployment.amqp_url}\n", prefix=deployment.prefix),
    ):
        pass


@pytest.mark.parametrize("name", ["publish", "list", "check"])
async def test_a_command_takes_settings_with_white_space_and_an_empty_one(
    deployment: Deployment, world: World, name: str, tmp_path: Path
) -> None:
    """A command reads the environment as a worker does."""
    settings = {"OUTPLAN_PREFIX": f"{deployment.prefix}\n", "OUTPLAN_HTTP_PORT": " "}
    url = f"{deployment.amqp_url}\r\n"
    async with run(deployment, name, tmp_path, url, **settings) as told:
        await told.wait_for({"check": "answers at", "list": "", "publish": ""}[name])
        assert "OUTPLAN_AMQP_URL" not in told.text
