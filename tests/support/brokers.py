"""Start the RabbitMQ versions under test: 3.10 from the system, 4 from Docker."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import pytest

from outplan.testing.servers import Servers, start_servers

Broker = Literal["3.10", "4"]
BROKERS: Final[tuple[Broker, ...]] = ("3.10", "4")


def skip_without_docker() -> None:
    """Skip the test if no Docker daemon answers."""
    docker = shutil.which("docker")
    version = docker and subprocess.run([docker, "version"], capture_output=True, check=False)
    if not version or version.returncode != 0:
        pytest.skip("no Docker daemon answers")


@contextmanager
def own_servers(broker: Broker) -> Iterator[Servers]:
    """Start servers that the test may stop or break; skip if this RabbitMQ is not available."""
    if broker == "4":
        skip_without_docker()
    with start_servers("docker" if broker == "4" else "processes") as servers:
        yield servers
