"""Test ``docker compose up`` as the README describes it: start, commands, restart."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import pytest

from outplan.client import OutplanClient
from outplan.testing.sandbox import is_ready
from outplan.testing.servers import reserve_ports
from tests.support.brokers import skip_without_docker
from tests.support.leak_check import wait_until
from tests.support.modes import outplan_fields

# Building the image and downloading its packages takes minutes.
pytestmark = pytest.mark.timeout(600)

FILE = Path(__file__).parents[2] / "docker-compose.yml"
PORTS = ("HTTP_PORT", "AMQP_PORT", "MANAGEMENT_PORT", "MONGO_PORT")
DRAIN = "import os, signal; os.kill(1, signal.SIGTERM)"


class Project(NamedTuple):
    """Identify the containers of one ``docker compose up`` and their ports on this machine."""

    name: str
    ports: dict[str, str]

    def compose(self, *arguments: str) -> str:
        command = ["docker", "compose", "--file", str(FILE), "--project-name", self.name]
        process = subprocess.run(
            [*command, *arguments],
            env=os.environ | self.ports,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    def is_ready(self) -> bool:
        return is_ready(int(self.ports["HTTP_PORT"]))

    async def create(self) -> int:
        """Create an outplan and return its version."""
        url = f"amqp://guest:guest@127.0.0.1:{self.ports['AMQP_PORT']}/"
        async with OutplanClient(url) as client:
            return (await client.create(**outplan_fields())).version


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    skip_without_docker()
    if subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    ).returncode:
        pytest.skip("docker has no compose")
    with reserve_ports(len(PORTS)) as ports:
        project = Project(f"outplan-{token_hex(4)}", dict(zip(PORTS, map(str, ports), strict=True)))
        try:
            project.compose("up", "--build", "--wait")
            yield project
        finally:
            project.compose("down", "--volumes")


async def test_compose_up_returns_when_the_worker_takes_commands(project: Project) -> None:
    assert project.is_ready()
    assert await project.create() == 1


async def test_a_worker_that_exits_is_restarted(project: Project) -> None:
    worker = project.compose("ps", "--quiet", "worker").strip()
    before = read_start_time(worker)
    project.compose("exec", "-T", "worker", "python", "-c", DRAIN)
    wait_until(lambda: read_start_time(worker) != before and project.is_ready())
    assert await project.create() == 1


def read_start_time(container: str) -> str:
    command = ["docker", "inspect", "--format", "{{.State.StartedAt}}", container]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
