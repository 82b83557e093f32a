"""Start the RabbitMQ versions under test: 3.10 from the system, 4 from Docker."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal
from urllib.parse import urlsplit

import pytest

from outplan.testing.servers import Server, Servers, start_servers

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


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port
    return port


def is_listening(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port_of(server.url)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def list_containers(*arguments: str) -> str:
    listed = subprocess.run(
        ["docker", "ps", *arguments], capture_output=True, check=True, text=True
    )
    return listed.stdout.strip()
