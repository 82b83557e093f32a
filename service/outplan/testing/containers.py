"""The servers as Docker containers, by testcontainers."""

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

from outplan.testing.processes import SPIN, enabled_plugins, reserved_ports, start_together
from outplan.testing.servers import (
    OwnMongo,
    OwnRabbit,
    ServerFailed,
    Servers,
    ServersUnavailable,
)
from outplan.testing.warden import last_will

RABBITMQ_IMAGE_VARIABLE = "OUTPLAN_TEST_RABBITMQ_IMAGE"
MONGO_IMAGE_VARIABLE = "OUTPLAN_TEST_MONGO_IMAGE"

_AMQP_PORT = 5672
_MANAGEMENT_PORT = 15672
_STOP_SECONDS = 30
_KILLED = 137  # the exit code of what SIGKILL ended
# Requests' errors, which the Docker client lets through, are OSErrors.
_DOCKER_ERRORS = (DockerException, OSError)


@contextmanager
def container_servers(*, management_port: int | None = None) -> Iterator[Servers]:
    """Start both servers in containers, published on free ports of 127.0.0.1 alone.

    With ``management_port`` RabbitMQ has its management plugin, published there. Raises
    `ServersUnavailable` when no Docker daemon answers, and `ServerFailed` when one does and the
    containers don't start.
    """
    _require_docker()
    session = token_hex(4)
    names = [f"outplan-{server}-{session}" for server in ("rabbitmq", "mongodb")]
    with ExitStack() as stack:
        # A container that was killed with its parent's session would otherwise run for ever.
        stack.enter_context(last_will("docker", "rm", "--force", "--volumes", *names))
        amqp, mongo = stack.enter_context(reserved_ports(2))
        rabbitmq_container = _rabbitmq_container(names[0], amqp, management_port)
        mongo_container = _mongo_container(names[1], mongo)
        for container in (rabbitmq_container, mongo_container):
            stack.enter_context(closing(container.get_docker_client().client))
        rabbitmq = _rabbitmq(rabbitmq_container, amqp)
        mongodb = OwnMongo(mongo, Container(mongo_container))
        with _without_ryuk():
            start_together([rabbitmq, mongodb])
        yield Servers("docker", rabbitmq, mongodb)


def _require_docker() -> None:
    # By the command, which is needed anyhow: the client leaves a socket open when nobody answers.
    docker = shutil.which("docker")
    if docker is None:
        raise ServersUnavailable("found no docker command on the PATH")
    asked = subprocess.run(  # noqa: S603 - nothing in it is anybody's input
        [docker, "version"], check=False, capture_output=True, text=True
    )
    if asked.returncode != 0:
        raise ServersUnavailable(f"no Docker daemon answers; start one ({asked.stderr.strip()})")


@contextmanager
def _without_ryuk() -> Iterator[None]:
    """Do without testcontainers' own warden: its image may be out of reach where ours are not."""
    before = testcontainers_config.ryuk_disabled
    testcontainers_config.ryuk_disabled = True
    try:
        yield
    finally:
        testcontainers_config.ryuk_disabled = before


def _rabbitmq(container: DockerContainer, port: int) -> OwnRabbit:
    return OwnRabbit(port, Container(container, ["rabbitmqctl", "stop"]), rabbitmqctl(container))


def rabbitmqctl(container: DockerContainer, *options: str) -> Callable[[Sequence[str]], str]:
    """The program in there: it returns what it prints, and raises ServerFailed."""

    def ctl(arguments: Sequence[str]) -> str:
        command = ["rabbitmqctl", *options, "-q", *arguments]
        with _blamed_on(" ".join(command)):  # The container may be down.
            code, output = container.exec(command)
        if code != 0:
            raise ServerFailed(f"{' '.join(command)}:\n{output.decode()}")
        return str(output, "utf-8")

    return ctl


def _rabbitmq_container(name: str, port: int, management_port: int | None) -> DockerContainer:
    image = os.environ.get(RABBITMQ_IMAGE_VARIABLE, "rabbitmq:4-management")
    container = _container(image, name)
    container.with_env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", SPIN)
    plugins = enabled_plugins(management=management_port is not None)
    container.with_copy_into_container(plugins.encode(), "/etc/rabbitmq/enabled_plugins")
    if management_port is not None:
        _published(container, _MANAGEMENT_PORT, management_port)
    return _published(container, _AMQP_PORT, port)


def _mongo_container(name: str, port: int) -> DockerContainer:
    image = os.environ.get(MONGO_IMAGE_VARIABLE, "mongo:8")
    container = _container(image, name)
    # The same port inside and outside: under the one address, it finds itself and we find it.
    # The image binds it to all interfaces of the container by itself, and may refuse to be told.
    options = ["--replSet", "rs0", "--port", str(port), "--wiredTigerCacheSizeGB", "0.5"]
    container.with_command(["mongod", *options])
    return _published(container, port, port)


def _container(image: str, name: str) -> DockerContainer:
    with _blamed_on(image):
        return DockerContainer(image, name=name)


@contextmanager
def _blamed_on(what: str) -> Iterator[None]:
    try:
        yield
    except _DOCKER_ERRORS as error:
        # The Docker client leaves the connection of a failed pull open.
        if isinstance(error, APIError) and error.response is not None:
            error.response.close()
        raise ServerFailed(f"{what}: {error}") from error


def _published(container: DockerContainer, inside: int, outside: int) -> DockerContainer:
    # with_bind_ports knows no address: it would publish on all interfaces of this machine.
    cast(dict[str, Any], container.ports)[f"{inside}/tcp"] = ("127.0.0.1", outside)
    return container


class Container:
    """A `Runner` that is a Docker container. `shutdown` is a command in it that ends the server.

    Without one, or beside it, the image's process 1 is sent SIGTERM.
    """

    def __init__(self, container: DockerContainer, shutdown: Sequence[str] = ()) -> None:
        self._container = container
        self._shutdown = list(shutdown)
        self._created = False

    def launch(self) -> None:
        if self.thaw():
            return
        with _blamed_on(self._container.image):
            if self._created:
                self._container.get_wrapped_container().start()
            else:
                self._container.start()
                self._created = True

    def terminate(self) -> bool:
        if not self.thaw():
            return True
        if self._shutdown:
            self._container.exec(self._shutdown)
        self._container.get_wrapped_container().stop(timeout=_STOP_SECONDS)
        return self._container.wait() != _KILLED

    def kill(self) -> None:
        if self.thaw():
            self._container.get_wrapped_container().kill()

    def freeze(self) -> bool:
        if self._status() == "running":
            self._container.get_wrapped_container().pause()
        return self._status() == "paused"

    def thaw(self) -> bool:
        if self._status() == "paused":
            self._container.get_wrapped_container().unpause()
        return self._status() == "running"

    def ended(self, within: float) -> bool:
        sleep(within)
        return self._status() not in {"running", "paused"}

    def log(self) -> str:
        if not self._created:
            return ""
        return str(self._container.get_wrapped_container().logs(tail=20), "utf-8", "replace")

    def _status(self) -> str:
        self._container.reload()
        return self._container.status
