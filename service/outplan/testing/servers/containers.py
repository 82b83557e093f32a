"""Run the servers as Docker containers, through testcontainers."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from secrets import token_hex
from time import sleep
from typing import Any, cast

from docker.errors import APIError, DockerException  # type: ignore[import-untyped]
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from outplan.testing.errors import ServerFailed, ServersUnavailable
from outplan.testing.servers.interface import Servers
from outplan.testing.servers.own import OwnRabbit, own_mongodb, start_together
from outplan.testing.servers.ports import reserve_ports
from outplan.testing.servers.processes import LESS_SPINNING, enabled_plugins
from outplan.testing.servers.supervisor import run_on_death

RABBITMQ_IMAGE_VARIABLE = "OUTPLAN_TEST_RABBITMQ_IMAGE"
MONGO_IMAGE_VARIABLE = "OUTPLAN_TEST_MONGO_IMAGE"
# A minor version: RabbitMQ changes what it does from one to the next.
RABBITMQ_IMAGE = "rabbitmq:4.3-management"

_AMQP_PORT = 5672
_MANAGEMENT_PORT = 15672
_STOP_SECONDS = 30
_KILLED = 137  # the exit code after SIGKILL
# The Docker client also raises the errors of requests, which are OSErrors.
_DOCKER_ERRORS = (DockerException, OSError)


@contextmanager
def container_servers(
    *, management_port: int | None = None, rabbitmq_image: str | None = None
) -> Iterator[Servers]:
    """Start both servers in containers, published on free ports of 127.0.0.1 only.

    With ``management_port`` RabbitMQ has its management plugin, published there. Without
    ``rabbitmq_image`` the environment or this module chooses the image. Raises
    `ServersUnavailable` if no Docker daemon answers, `ServerFailed` if a container does not start.
    """
    require_docker()
    session = token_hex(4)
    names = [f"outplan-{server}-{session}" for server in ("rabbitmq", "mongodb")]
    with ExitStack() as stack:
        # A container does not end with the process that started it.
        stack.enter_context(run_on_death("docker", "rm", "--force", "--volumes", *names))
        amqp, mongo = stack.enter_context(reserve_ports(2))
        rabbitmq_container = _rabbitmq_container(
            rabbitmq_image or os.environ.get(RABBITMQ_IMAGE_VARIABLE, RABBITMQ_IMAGE),
            names[0],
            amqp,
            management_port,
        )
        mongo_container = _mongo_container(names[1], mongo)
        for container in (rabbitmq_container, mongo_container):
            stack.enter_context(closing(container.get_docker_client().client))
        rabbitmq = _rabbitmq(rabbitmq_container, amqp)
        mongodb = own_mongodb(mongo, Container(mongo_container))
        with without_ryuk():
            start_together([rabbitmq, mongodb])
        yield Servers("docker", rabbitmq, mongodb)


def require_docker() -> None:
    """Raise `ServersUnavailable` unless a Docker daemon answers."""
    # By the command, which `run_on_death` needs too. The client leaves a socket open if no daemon
    # answers.
    docker = shutil.which("docker")
    if docker is None:
        raise ServersUnavailable("found no docker command on the PATH")
    version = subprocess.run(  # noqa: S603 - the command is fixed
        [docker, "version"], check=False, capture_output=True, text=True
    )
    if version.returncode != 0:
        raise ServersUnavailable(f"no Docker daemon answers; start one ({version.stderr.strip()})")


@contextmanager
def without_ryuk() -> Iterator[None]:
    """Disable testcontainers' own cleanup: it needs one more image, which may be out of reach."""
    before = testcontainers_config.ryuk_disabled
    testcontainers_config.ryuk_disabled = True
    try:
        yield
    finally:
        testcontainers_config.ryuk_disabled = before


def _rabbitmq(container: DockerContainer, port: int) -> OwnRabbit:
    return OwnRabbit(port, Container(container, ["rabbitmqctl", "stop"]), rabbitmqctl(container))


def rabbitmqctl(container: DockerContainer, *options: str) -> Callable[[Sequence[str]], str]:
    """Return a function that runs rabbitmqctl in the container and returns its output.

    The function raises `ServerFailed`.
    """

    def ctl(arguments: Sequence[str]) -> str:
        command = ["rabbitmqctl", *options, "-q", *arguments]
        with _docker_errors(" ".join(command)):  # the container may be down
            code, output = container.exec(command)
        if code != 0:
            raise ServerFailed(f"{' '.join(command)}:\n{output.decode()}")
        return str(output, "utf-8")

    return ctl


def _rabbitmq_container(
    image: str, name: str, port: int, management_port: int | None
) -> DockerContainer:
    container = new_container(image, name)
    container.with_env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", LESS_SPINNING)
    plugins = enabled_plugins(management=management_port is not None)
    container.with_copy_into_container(plugins.encode(), "/etc/rabbitmq/enabled_plugins")
    if management_port is not None:
        _publish(container, _MANAGEMENT_PORT, management_port)
    return _publish(container, _AMQP_PORT, port)


def _mongo_container(name: str, port: int) -> DockerContainer:
    image = os.environ.get(MONGO_IMAGE_VARIABLE, "mongo:8")
    container = new_container(image, name)
    # The same port inside and outside: a replica set's member and its clients use one address.
    # The image itself adds --bind_ip_all and may refuse a second option.
    options = ["--replSet", "rs0", "--port", str(port), "--wiredTigerCacheSizeGB", "0.5"]
    container.with_command(["mongod", *options])
    return _publish(container, port, port)


def new_container(image: str, name: str) -> DockerContainer:
    """Make a container without starting it. Raises `ServerFailed`."""
    with _docker_errors(image):
        return DockerContainer(image, name=name)


@contextmanager
def _docker_errors(subject: str) -> Iterator[None]:
    """Raise Docker's errors as `ServerFailed` about the image or command."""
    try:
        yield
    except _DOCKER_ERRORS as error:
        # The Docker client leaves the connection of a failed pull open.
        if isinstance(error, APIError) and error.response is not None:
            error.response.close()
        raise ServerFailed(f"{subject}: {error}") from error


def _publish(container: DockerContainer, inside: int, outside: int) -> DockerContainer:
    # Not with_bind_ports: it publishes on all interfaces of this machine.
    cast(dict[str, Any], container.ports)[f"{inside}/tcp"] = ("127.0.0.1", outside)
    return container


class Container:
    """A `Runner` that is a Docker container.

    To terminate, it runs the command ``shutdown`` in the container, if any, and then sends SIGTERM
    to process 1.
    """

    def __init__(self, container: DockerContainer, shutdown: Sequence[str] = ()) -> None:
        self._container = container
        self._shutdown = list(shutdown)
        self._created = False

    def launch(self) -> None:
        if self.resume():
            return
        with _docker_errors(self._container.image):
            if self._created:
                self._container.get_wrapped_container().start()
            else:
                self._container.start()
                self._created = True

    def terminate(self) -> bool:
        if not self.resume():
            return True
        if self._shutdown:
            self._container.exec(self._shutdown)
        self._container.get_wrapped_container().stop(timeout=_STOP_SECONDS)
        return self._container.wait() != _KILLED

    def kill(self) -> None:
        if self.resume():
            self._container.get_wrapped_container().kill()

    def pause(self) -> bool:
        if self._status() == "running":
            self._container.get_wrapped_container().pause()
        return self._status() == "paused"

    def resume(self) -> bool:
        if self._status() == "paused":
            self._container.get_wrapped_container().unpause()
        return self._status() == "running"

    def wait(self, seconds: float) -> bool:
        sleep(seconds)
        return self._status() not in {"running", "paused"}

    def log(self) -> str:
        if not self._created:
            return ""
        return str(self._container.get_wrapped_container().logs(tail=20), "utf-8", "replace")

    def _status(self) -> str:
        self._container.reload()
        return self._container.status
