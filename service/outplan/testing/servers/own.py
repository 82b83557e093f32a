"""Servers that the tests start, stop and crash."""

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from time import monotonic
from typing import Protocol

from outplan.testing.errors import ServerFailed
from outplan.testing.servers.interface import Server
from outplan.testing.servers.probes import NOT_READY, primary_version, rabbitmq_version

_START_SECONDS = 90.0


class Runner(Protocol):
    """Run a server in a process group or a container. Every call may be repeated."""

    def launch(self) -> None:
        """Start it, or resume it if it is paused. Do not wait until it is ready."""

    def terminate(self) -> bool:
        """Ask it to shut down and wait. Return false if it had to be killed."""

    def kill(self) -> None: ...

    def pause(self) -> bool:
        """Suspend it. Return false if it is not running."""

    def resume(self) -> bool:
        """End a pause. Return false if it is not running."""

    def wait(self, seconds: float) -> bool:
        """Wait for its exit. Return false if it still runs after so many seconds."""

    def log(self) -> str:
        """Return the last lines that it printed."""


class OwnServer:
    """A `Server` on ``port`` of this host.

    ``probe`` returns the version, or raises one of `NOT_READY` until the server takes work.
    """

    def __init__(
        self, name: str, url: str, port: int, runner: Runner, probe: Callable[[], str]
    ) -> None:
        self.name = name
        self.url = url
        self.version = ""
        self._port = port
        self._runner = runner
        self._probe = probe

    def start(self) -> None:
        self._runner.launch()
        deadline = monotonic() + _START_SECONDS
        while not self._is_ready(late=monotonic() > deadline):
            self._require(not self._runner.wait(0.05), "exited while it started")

    def stop(self) -> None:
        self._require(self._runner.terminate(), "did not shut down and was killed")

    def kill(self) -> None:
        self._runner.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        self._require(self._runner.pause(), "is not running")

    def resume(self) -> None:
        self._require(self._runner.resume(), "is not running")

    def _is_ready(self, *, late: bool) -> bool:
        try:
            # Saves the drivers, and their logs, the attempts while nothing listens yet.
            socket.create_connection(("127.0.0.1", self._port), timeout=5).close()
            self.version = self._probe()
        except NOT_READY as error:
            self._require(not late, f"is not ready after {_START_SECONDS:.0f} s: {error!r}")
            return False
        return True

    def _require(self, condition: bool, complaint: str) -> None:
        if not condition:
            raise ServerFailed(f"{self.name} {complaint}. Its log ends:\n{self._runner.log()}")


class OwnRabbit(OwnServer):
    """A `RabbitServer` on ``port`` of this host; ``ctl`` runs rabbitmqctl there."""

    def __init__(
        self,
        port: int,
        runner: Runner,
        ctl: Callable[[Sequence[str]], str],
        name: str = "rabbitmq",
    ) -> None:
        url = f"amqp://guest:guest@127.0.0.1:{port}/"
        super().__init__(name, url, port, runner, lambda: rabbitmq_version(url))
        self._ctl = ctl

    def ctl(self, *arguments: str) -> str:
        return self._ctl(arguments)


def own_mongodb(port: int, runner: Runner) -> OwnServer:
    """Make a MongoDB `Server`: a replica set of one, which transactions need."""
    url = f"mongodb://127.0.0.1:{port}/?replicaSet=rs0"
    return OwnServer("mongodb", url, port, runner, lambda: primary_version(port))


def start_together(servers: Sequence[Server]) -> None:
    """Start all servers at the same time. If one fails, kill them all and raise its error."""
    with ThreadPoolExecutor() as pool:
        try:
            for start in as_completed(pool.submit(server.start) for server in servers):
                start.result()
        except BaseException:
            for server in servers:
                server.kill()
            raise
