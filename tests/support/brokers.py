"""Start the RabbitMQ versions under test: 3.10 from the system, 4.0 and 4.3 from Docker."""

import shutil
import socket
import subprocess
from contextlib import AbstractContextManager
from typing import Final, Literal
from urllib.parse import urlsplit

import pytest

from outplan.testing.servers import Server, Servers
from outplan.testing.servers.containers import container_servers
from outplan.testing.servers.processes import process_servers

Broker = Literal["3.10", "4.0", "4.3"]
# The oldest and the newest version that the service supports.
BROKERS: Final[tuple[Broker, ...]] = ("3.10", "4.3")


def skip_without_docker() -> None:
    """Skip the test if no Docker daemon answers."""
    docker = shutil.which("docker")
    version = docker and subprocess.run([docker, "version"], capture_output=True, check=False)
    if not version or version.returncode != 0:
        pytest.skip("no Docker daemon answers")


def find_image(broker: Broker) -> str | None:
    """Return the Docker image of this RabbitMQ, or None if it runs as child processes."""
    return None if broker == "3.10" else f"rabbitmq:{broker}-management"


def skip_if_unavailable(broker: Broker) -> None:
    """Skip the test if this RabbitMQ needs Docker and no daemon answers."""
    if find_image(broker):
        skip_without_docker()


def start_broker(broker: Broker) -> AbstractContextManager[Servers]:
    """Start servers that the caller may stop or break. Raises `ServersUnavailable`."""
    image = find_image(broker)
    return container_servers(rabbitmq_image=image) if image else process_servers()


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
