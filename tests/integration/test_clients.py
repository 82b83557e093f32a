"""Every piece of docs/clients.md, run as it stands there, beside a worker."""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import aio_pika
import aiohttp
import pytest

from outplan.testing.containers import container_servers
from outplan.testing.processes import process_servers, reserved_ports
from outplan.testing.servers import MODE_VARIABLE, Servers, ServersUnavailable
from tests.support.deployment import Deployment
from tests.support.worker_process import run_worker

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
AMQPLIB = "amqplib@2.3.1"
NODE = shutil.which("node")


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def http_port() -> Iterator[int]:
    with reserved_ports(1) as (port,):
        yield port


@pytest.fixture(scope="module")
def managed(http_port: int) -> Iterator[Servers]:
    """Servers of this file's own, with the management plugin and the names of the page."""
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
async def broker(managed: Servers) -> AsyncIterator[str]:
    """The address of a broker with a worker, under the names of the page."""
    deployment = Deployment(managed.rabbitmq.url, managed.mongodb.url, prefix="outplan")
    async with run_worker(deployment):
        yield deployment.amqp_url


async def ran(*program: str, folder: Path, broker: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        *program,
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "OUTPLAN_AMQP_URL": broker},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.parametrize(
    ("number", "printed"),
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
        (4, ["outplan_created.5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11.", " pika\n"]),
    ],
    ids=["client", "no answer", "many", "events", "pika"],
)
async def test_the_python_of_the_page_does_what_it_says(
    broker: str, tmp_path: Path, number: int, printed: list[str]
) -> None:
    program = snippets("python")[number]
    out = await ran(sys.executable, "-W", "error", "-c", program, folder=tmp_path, broker=broker)

    assert [text for text in printed if text not in out] == [], out


def test_all_python_of_the_page_is_run() -> None:
    # The sixth one, which deletes, runs in test_readme.py.
    assert len(snippets("python")) == 6


@pytest.mark.skipif(NODE is None, reason="there is no node")
async def test_the_javascript_of_the_page_does_what_it_says(broker: str, tmp_path: Path) -> None:
    (program,) = snippets("js")
    (tmp_path / "create.js").write_text(program)
    await ran("npm", "install", "--no-audit", "--no-fund", AMQPLIB, folder=tmp_path)
    out = await ran("node", "create.js", folder=tmp_path, broker=broker)

    assert out.startswith("outplan_created.5e4d9c3a-7a3b-4a4e-9d0e-0c8a1f0b7c11.")
    assert out.endswith(" node\n")


async def test_the_rabbitmqadmin_of_the_page_does_what_it_says(
    broker: str, http_port: int, tmp_path: Path
) -> None:
    publish, receive = snippets("sh")
    (tmp_path / ".rabbitmqadmin.conf").write_text(
        f"[default]\nhostname = 127.0.0.1\nport = {http_port}\n"
    )
    await answering(http_port)
    publish = publish.replace("http://localhost:15672/", f"http://127.0.0.1:{http_port}/")
    assert "published" in await ran("bash", "-euc", publish, folder=tmp_path)
    await filled(broker, "mine")
    received = await ran("bash", "-euc", receive, folder=tmp_path)

    assert '"type":"outplan_created"' in received
    assert '"name":"by hand"' in received
    assert "queue deleted" in received


async def answering(http_port: int) -> None:
    """Await the plugin, which may be ready a moment after the broker."""
    async with asyncio.timeout(30), aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.get(f"http://127.0.0.1:{http_port}/cli/rabbitmqadmin") as found:
                    if found.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def filled(broker: str, queue: str) -> None:
    """Await a message in a queue."""
    async with asyncio.timeout(30), await aio_pika.connect(broker) as connection:
        channel = await connection.channel()
        while not (
            await channel.declare_queue(queue, passive=True)
        ).declaration_result.message_count:
            await asyncio.sleep(0.05)
