"""``docker compose up`` as the README has it: all of it comes up, works, and comes back."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import pytest

from outplan.client import OutplanClient
from outplan.testing.processes import reserved_ports
from outplan.testing.sandbox import is_ready
from tests.support.brokers import skip_without_docker
from tests.support.leak_check import wait_until
from tests.support.modes import an_outplan

# The image is built first, and its packages are fetched.
pytestmark = pytest.mark.timeout(600)

FILE = Path(__file__).parents[2] / "docker-compose.yml"
PORTS = ("HTTP_PORT", "AMQP_PORT", "MANAGEMENT_PORT", "MONGO_PORT")
DRAIN = "import os, signal; os.kill(1, signal.SIGTERM)"


class Project(NamedTuple):
    """The containers of one ``docker compose up``, and the ports of this machine they have."""

    name: str
    ports: dict[str, str]

    def compose(self, *arguments: str) -> str:
        command = ["docker", "compose", "--file", str(FILE), "--project-name", self.name]
        told = subprocess.run(
            [*command, *arguments],
            env=os.environ | self.ports,
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout

    def is_ready(self) -> bool:
        return is_ready(int(self.ports["HTTP_PORT"]))

    async def create(self) -> int:
        """The version of a new outplan."""
        url = f"amqp://guest:guest@127.0.0.1:{self.ports['AMQP_PORT']}/"
        async with OutplanClient(url) as client:
            return (await client.create(**an_outplan())).version


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    skip_without_docker()
    if subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    ).returncode:
        pytest.skip("docker has no compose")
    with reserved_ports(len(PORTS)) as ports:
        found = Project(f"outplan-{token_hex(4)}", dict(zip(PORTS, map(str, ports), strict=True)))
        try:
            found.compose("up", "--build", "--wait")
            yield found
        finally:
            found.compose("down", "--volumes")


async def test_it_is_up_and_takes_commands_when_it_says_so(project: Project) -> None:
    assert project.is_ready()
    assert await project.create() == 1


async def test_a_worker_that_ends_is_started_again(project: Project) -> None:
    worker = project.compose("ps", "--quiet", "worker").strip()
    before = started(worker)
    project.compose("exec", "-T", "worker", "python", "-c", DRAIN)
    wait_until(lambda: started(worker) != before and project.is_ready())
    assert await project.create() == 1


def started(container: str) -> str:
    asked = ["docker", "inspect", "--format", "{{.State.StartedAt}}", container]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout
