"""The versions of RabbitMQ that are tried: 3.10, the system's own, and 4, which Docker brings."""

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
    """Skip what only Docker can bring, where no daemon answers."""
    docker = shutil.which("docker")
    asked = docker and subprocess.run([docker, "version"], capture_output=True, check=False)
    if not asked or asked.returncode != 0:
        pytest.skip("no Docker daemon answers")


@contextmanager
def own_servers(broker: Broker) -> Iterator[Servers]:
    """Servers that may be hurt, with this RabbitMQ; skips where it can't be had."""
    if broker == "4":
        skip_without_docker()
    with start_servers("docker" if broker == "4" else "processes") as running:
        yield running
