"""Run every code block of docs/clients.md unchanged against a worker."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import aio_pika
import aiohttp
import pytest

from outplan.testing import Deployment
from outplan.testing.servers import MODE_VARIABLE, Servers, ServersUnavailable, reserve_ports
from outplan.testing.servers.containers import container_servers
from outplan.testing.servers.processes import process_servers
from tests.support.examples import read_code_blocks, run_program
from tests.support.worker_process import run_worker

PAGE = "docs/clients.md"
AMQPLIB = "amqplib@2.3.1"
NODE = shutil.which("node")
CURL = shutil.which("curl")
ROUTED = '{"routed":true}'


@pytest.fixture(scope="module")
def http_port() -> Iterator[int]:
    with reserve_ports(1) as (port,):
        yield port


@pytest.fixture(scope="module")
def managed_servers(http_port: int) -> Iterator[Servers]:
    """Start servers for this module, with RabbitMQ's management plugin."""
    openers = [process_servers, container_servers]
    if os.environ.get(MODE_VARIABLE) == "docker":
        openers.reverse()
    with ExitStack() as stack:
        try:
            servers = stack.enter_context(openers[0](management_port=http_port))
        except ServersUnavailable:
            servers = stack.enter_context(openers[1](management_port=http_port))
        yield servers


@pytest.fixture(scope="module")
async def broker(managed_servers: Servers) -> AsyncIterator[str]:
    """Run a worker with the prefix of the page; return the broker's URL."""
    deployment = Deployment(
        managed_servers.rabbitmq.url, managed_servers.mongodb.url, prefix="outplan"
    )
    async with run_worker(deployment):
        yield deployment.amqp_url


async def run(*program: str, folder: Path, broker: str = "") -> str:
    environment = {**os.environ, "HOME": str(folder), "OUTPLAN_AMQP_URL": broker}
    return await run_program(*program, folder=folder, environment=environment)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (
            0,
            [
                "the interval is 3600000 in version 2",
                "somebody was faster: version 2",
                "/dial_timeout 30 is less than the minimum of 1000; dial_timeout is in milli",
            ],
        ),
        (1, ["accepted accepted duplicate"]),
        (
            2,
            [
                "500 done, 1 rejected",
                "import of Monday, line 7 rejected",
                "1000 done, 1 rejected",
                "the broker has",
            ],
        ),
        (3, ["1 mornings "]),
        (
            4,
            [
                "accepted \nrejected The command breaks its schema",
                "accepted \n1 mornings\n2 noon\n3 evenings\n",
            ],
        ),
        (5, ["outplan_created.5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11.", " pika\n"]),
    ],
    ids=["client", "no answer", "many", "events", "blocking", "pika"],
)
async def test_python_examples_print_what_the_page_says(
    broker: str, tmp_path: Path, number: int, expected: list[str]
) -> None:
    program = read_code_blocks(PAGE, "python")[number]
    out = await run(sys.executable, "-W", "error", "-c", program, folder=tmp_path, broker=broker)

    assert [text for text in expected if text not in out] == [], out


def test_every_python_example_is_tested() -> None:
    # The seventh one, which deletes, runs in test_readme.py.
    assert len(read_code_blocks(PAGE, "python")) == 7


@pytest.mark.skipif(NODE is None, reason="node is not installed")
async def test_the_javascript_example_prints_what_the_page_says(
    broker: str, tmp_path: Path
) -> None:
    (program,) = read_code_blocks(PAGE, "js")
    (tmp_path / "create.js").write_text(program)
    await run("npm", "install", "--no-audit", "--no-fund", AMQPLIB, folder=tmp_path)
    out = await run("node", "create.js", folder=tmp_path, broker=broker)

    assert out.startswith("outplan_created.5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11.")
    assert out.endswith(" node\n")


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
async def test_the_curl_example_prints_what_the_page_says(
    broker: str, http_port: int, tmp_path: Path
) -> None:
    publish, receive = read_code_blocks(PAGE, "sh")
    await wait_for_management(http_port)
    local, here = "@localhost:15672/", f"@127.0.0.1:{http_port}/"
    assert await run("sh", "-euc", publish.replace(local, here), folder=tmp_path) == ROUTED
    await wait_for_message(broker, "mine")
    received = await run("sh", "-euc", receive.replace(local, here), folder=tmp_path)

    (message,) = json.loads(received)
    event = json.loads(message["payload"])
    assert (event["type"], event["data"]["name"]) == ("outplan_created", "by hand")


async def wait_for_management(http_port: int) -> None:
    """Wait for the management plugin, which starts a moment after the broker."""
    async with asyncio.timeout(30), aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.get(f"http://127.0.0.1:{http_port}/") as found:
                    if found.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def wait_for_message(broker: str, queue: str) -> None:
    """Wait until a queue has a message."""
    async with asyncio.timeout(30), await aio_pika.connect(broker) as connection:
        channel = await connection.channel()
        while not (
            await channel.declare_queue(queue, passive=True)
        ).declaration_result.message_count:
            await asyncio.sleep(0.05)
